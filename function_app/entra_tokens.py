"""Entra tokens as keys of the chat API: who a token names, once its signature, issuer and audience are right."""

import re
from typing import TYPE_CHECKING, Any

from .chat_keys import KeyRefused
from .entra_signing_keys import SigningKeys, tenant_of

if TYPE_CHECKING:
    import jwt

LEEWAY_SECONDS = 60  # by which the clocks of issuer and app may differ


class NotAssigned(Exception):
    """The token is good, and whom it names has not been given the role; the message says what to do."""

    status = 403


class EntraTokens:
    """The tokens of one issuer for one app registration, with the role that they must have, if any.

    ``audience`` may be several, separated by commas: tokens of version 1.0 name the app's ID URI or its client id,
    those of version 2.0 the client id.
    """

    def __init__(self, audience: str, issuer: str, role: str = "") -> None:
        self.audiences = [part.strip() for part in audience.split(",") if part.strip()]
        self._tenant = tenant_of(issuer)
        self._role = role
        self._keys = SigningKeys(issuer)

    async def check(self, token: str) -> tuple[str, float]:
        """Return a name for the log, an id and nothing personal, and when the token ends, in seconds since 1970.

        Raises KeyRefused, NotAssigned, or IssuerUnavailable (of entra_signing_keys).
        """
        import jwt

        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise KeyRefused("What the request has sent is neither a key of this app nor an Entra token.") from None
        key = await self._keys.find(kid) if isinstance(kid, str) else None
        if key is None:
            raise KeyRefused("The token is not signed with a key of the issuer that this app trusts.")
        claims = self._verify(token, key)
        if self._role and self._role not in _list(claims.get("roles")):
            raise NotAssigned(
                f"The token has no role {self._role!r}. Have the caller assigned that app role, then ask for a new one."
            )
        return _name(claims), float(claims["exp"])

    def _verify(self, token: str, key: "jwt.PyJWK") -> dict[str, Any]:
        import jwt

        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=["RS256"],
                audience=self.audiences,
                issuer=self._keys.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "aud", "iss"]},
            )
        except jwt.ExpiredSignatureError:
            raise KeyRefused("The token has expired; ask for a new one.") from None
        except jwt.ImmatureSignatureError:
            raise KeyRefused("The token is not valid yet; is a clock wrong?") from None
        except jwt.InvalidAudienceError:
            raise KeyRefused(
                f"The token is for something else than this app; ask for one for {self.audiences[0]}."
            ) from None
        except jwt.InvalidIssuerError:
            # The issuer of tokens of version 1.0 is not that of version 2.0.
            raise KeyRefused(f"The token is of another issuer than {self._keys.issuer}.") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise KeyRefused("The token is not valid: its signature or a claim is wrong.") from None
        if str(claims.get("tid", "")).lower() != self._tenant:
            raise KeyRefused("The token is of another tenant than the one that this app trusts.")
        if not _client(claims):
            # An ID token has the same issuer and, of version 2.0, the same audience; it tells the client who has
            # signed in, and is sent to more places than a token that opens something.
            raise KeyRefused("The token is not an access token: it names no client. Send the access token.")
        return claims


def _client(claims: dict[str, Any]) -> str:
    """The client's id: ``appid`` in tokens of version 1.0, ``azp`` in those of 2.0."""
    return _id(claims.get("appid")) or _id(claims.get("azp"))


def _name(claims: dict[str, Any]) -> str:
    """Whom the token names: the person when there is one (``scp``), since many use one client; else the client."""
    return (_id(claims.get("oid")) if "scp" in claims else "") or _client(claims)


def _id(claim: Any) -> str:
    return claim if isinstance(claim, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", claim) else ""


def _list(claim: Any) -> list[Any]:
    return claim if isinstance(claim, list) else [claim]
