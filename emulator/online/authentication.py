"""Who may call an online endpoint: its keys, its own tokens (aml_token), or tokens of Entra (aad_token)."""

import hmac
import secrets
import time

import jwt

from ..identity import ML_AUDIENCES, Authority
from ..store import Json, Resource

AUTH_MODES = {"key": "Key", "amltoken": "AMLToken", "aadtoken": "AADToken"}
TOKEN_ISSUER = "azureml"  # noqa: S105 - no password
TOKEN_LIFETIME = 12 * 3600  # seconds  # Guess: an aml_token is valid for 12 hours
REFRESH_AFTER = TOKEN_LIFETIME - 3600


def new_secrets() -> Json:
    """What an endpoint keeps to itself: two keys, and the one that signs its tokens."""
    return {
        "primaryKey": secrets.token_urlsafe(32),
        "secondaryKey": secrets.token_urlsafe(32),
        "tokenSecret": secrets.token_urlsafe(32),
    }


def issue_token(endpoint: Resource) -> Json:
    """A token that opens this endpoint alone, as the service answers it."""
    now = int(time.time())
    claims = {"iss": TOKEN_ISSUER, "aud": endpoint.id.lower(), "iat": now, "nbf": now - 5, "exp": now + TOKEN_LIFETIME}
    return {
        "accessToken": jwt.encode(claims, endpoint.internal["tokenSecret"], algorithm="HS256"),
        "expiryTimeUtc": now + TOKEN_LIFETIME,
        "refreshAfterTimeUtc": now + REFRESH_AFTER,
        "tokenType": "Bearer",
    }


def authorize(endpoint: Resource, authorization: str | None, authority: Authority) -> None:
    """Let a request with this ``Authorization`` header in. Raises PermissionError with the reason."""
    match endpoint.properties["authMode"]:
        case "Key":
            _check_key(endpoint, authorization)
        case "AMLToken":
            _check_token(endpoint, authorization)
        case _:
            authority.verify(authorization, ML_AUDIENCES)


def _check_key(endpoint: Resource, authorization: str | None) -> None:
    key = _bearer(authorization).encode()  # only bytes compare outside ASCII
    known = [endpoint.internal[name].encode() for name in ("primaryKey", "secondaryKey")]
    if not sum(hmac.compare_digest(key, each) for each in known):  # compares both, whatever the first says
        raise PermissionError("key_auth_access_denied: the key is missing or wrong.")


def _check_token(endpoint: Resource, authorization: str | None) -> None:
    token = _bearer(authorization)
    try:
        jwt.decode(
            token,
            endpoint.internal["tokenSecret"],
            algorithms=["HS256"],
            audience=endpoint.id.lower(),
            issuer=TOKEN_ISSUER,
            options={"require": ["exp", "aud", "iss"]},
        )
    except jwt.PyJWTError as error:
        raise PermissionError(f"token_auth_access_denied: this is no valid token of the endpoint ({error}).") from None


def _bearer(authorization: str | None) -> str:
    """What follows the scheme, whose name has no case; a key may come without one."""
    scheme, _, rest = (authorization or "").partition(" ")
    return rest if scheme.lower() == "bearer" else authorization or ""
