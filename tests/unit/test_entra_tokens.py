"""A token opens the chat only if the right issuer has signed it for this app; a silent issuer closes nothing."""

import asyncio
import base64
import json
import time
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from chat_support import until
from cryptography.hazmat.primitives import serialization
from entra_support import CLIENT, KEYS, OTHER, PERSON, TENANT, StubEntra, published, serve, sign
from hypothesis import given, settings
from hypothesis import strategies as st

from function_app import entra_signing_keys
from function_app.chat_keys import KeyRefused
from function_app.entra_signing_keys import IssuerUnavailable
from function_app.entra_tokens import EntraTokens, NotAssigned
from function_app.settings import SettingsError, read_settings


@pytest.mark.parametrize("version", [1, 2])
async def test_tokens_of_both_versions_open_and_are_called_by_their_client(entra: StubEntra, version: int) -> None:
    token = entra.token(version)
    assert await entra.tokens(version).check(token) == (
        CLIENT,
        jwt.decode(token, options={"verify_signature": False})["exp"],
    )


async def test_a_person_is_called_by_an_id_and_by_nothing_personal(entra: StubEntra) -> None:
    token = entra.token(scp="Chat.Use", preferred_username="ada@example.com", name="Ada")
    assert (await entra.tokens().check(token))[0] == PERSON
    # A claim that is no id must not get into the log.
    strange = entra.token(azp=CLIENT, scp="Chat.Use", oid="a b\nchat request=1")
    assert (await entra.tokens().check(strange))[0] == CLIENT


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"exp": int(time.time()) - 70}, "expired"),
        ({"exp": None}, "a claim is wrong"),
        ({"exp": "soon"}, "a claim is wrong"),
        ({"nbf": int(time.time()) + 3600}, "not valid yet"),
        ({"aud": OTHER}, "ask for one for api://chat"),
        ({"aud": ["https://graph.microsoft.com", "00000003-0000-0000-c000-000000000000"]}, "something else"),
        ({"aud": None}, "a claim is wrong"),
        ({"iss": f"https://login.microsoftonline.com/{TENANT}/v2.0"}, "another issuer than https://localhost"),
        ({"iss": f"https://sts.windows.net/{TENANT}/"}, "another issuer"),
        ({"iss": None}, "a claim is wrong"),
        ({"tid": OTHER}, "another tenant"),
        ({"tid": None}, "another tenant"),
        ({"azp": None}, "not an access token"),
    ],
)
async def test_a_token_with_a_wrong_claim_is_refused(entra: StubEntra, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(KeyRefused, match=said) as refused:
        await entra.tokens().check(entra.token(**changed))
    assert PERSON not in str(refused.value)


async def test_clocks_may_differ_by_a_minute(entra: StubEntra) -> None:
    now = int(time.time())
    await entra.tokens().check(entra.token(exp=now - 30, nbf=now - 60))
    await entra.tokens().check(entra.token(nbf=now + 30))


async def test_only_the_issuers_own_signature_counts(entra: StubEntra) -> None:
    claims = jwt.decode(entra.token(), options={"verify_signature": False})
    public = (
        KEYS[0].public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    secret = base64.urlsafe_b64encode(public).decode()  # PyJWT itself refuses to sign with the PEM
    forged = {
        "another key": sign(claims, KEYS[1]),
        "another key, not published": sign(claims, KEYS[1], kid="two"),
        "no signature": jwt.encode(claims, None, algorithm="none", headers={"kid": "one"}),
        "a hash with what is public": sign(claims, secret, "HS256"),
        "another algorithm": sign(claims, KEYS[0], "RS512"),
        "a key of the token's own": sign(claims, KEYS[1], jwk=published(KEYS[1], "one")),
        "no key's id": jwt.encode(claims, KEYS[0], algorithm="RS256"),
        "an extension that must be understood": sign(claims, crit=["x"], x=1),
        "a payload exchanged": ".".join(
            [entra.token().split(".")[0], sign(claims | {"oid": CLIENT}).split(".")[1], entra.token().split(".")[2]]
        ),
    }
    tokens = entra.tokens()
    for what, token in forged.items():
        with pytest.raises(KeyRefused):
            print(what, await tokens.check(token))


async def test_the_role_is_asked_for(entra: StubEntra) -> None:
    tokens = entra.tokens(role="Chat.User")
    await tokens.check(entra.token(roles=["Other", "Chat.User"]))
    for roles in (None, [], ["chat.user", "Chat.Users"], [["Chat.User"]]):
        with pytest.raises(NotAssigned, match=r"no role 'Chat\.User'"):
            await tokens.check(entra.token(roles=roles))


async def test_keys_are_read_once_for_all_who_wait_and_the_first_may_leave(entra: StubEntra) -> None:
    tokens = entra.tokens()
    waiting = [asyncio.create_task(tokens.check(entra.token())) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [each[0] for each in done[1:]] == [CLIENT] * 19  # type: ignore[index]
    assert entra.asked == 1


async def test_a_new_key_is_found_and_made_up_ones_are_looked_for_once_a_minute(
    entra: StubEntra, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = entra.tokens()
    await tokens.check(entra.token())
    claims = jwt.decode(entra.token(), options={"verify_signature": False})
    new = sign(claims, KEYS[1], kid="two")
    entra.keys.append(published(KEYS[1], "two"))
    for number in range(5):
        with pytest.raises(KeyRefused):
            await tokens.check(sign(claims, KEYS[1], kid=f"made-up-{number}"))
    assert entra.asked == 1, "the minute is not over"
    monkeypatch.setattr(entra_signing_keys, "UNKNOWN_SECONDS", 0)
    assert (await tokens.check(new))[0] == CLIENT
    assert entra.asked == 2


async def test_old_keys_serve_on_while_the_issuer_is_silent_and_a_withdrawn_one_goes(
    entra: StubEntra, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = entra.tokens()
    await tokens.check(entra.token())
    for name in ("FRESH_SECONDS", "UNKNOWN_SECONDS", "FAILED_SECONDS"):
        monkeypatch.setattr(entra_signing_keys, name, 0)
    entra.status = 500
    await tokens.check(entra.token())
    await until(lambda: entra.asked == 2)
    await tokens.check(entra.token())
    with pytest.raises(IssuerUnavailable, match="try again"):
        await tokens.check(sign({}, kid="two"))
    entra.status, entra.keys = 200, [published(KEYS[1], "two")]
    with pytest.raises(KeyRefused):
        await tokens.check(sign({}, kid="three"))
    with pytest.raises(KeyRefused):
        await tokens.check(entra.token())


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": 500},
        {"status": 302},
        {"body": "<html>"},
        {"body": "[]"},
        {"body": "[" * 100_000},  # deeper than Python follows
        {"changed": {"jwks_uri": "http://localhost/keys"}},
        {"changed": {"jwks_uri": None}},
        {"changed": {"issuer": f"https://sts.windows.net/{OTHER}/"}},
        {"changed": {"issuer": "https://sts.windows.net/{tenantid}/"}},
        {"changed": {"issuer": None}},
        {"keys": []},
        {"keys": [published(KEYS[0], "one", use="enc")]},
        {"keys": [published(KEYS[0], "one", issuer=f"https://login.microsoftonline.com/{OTHER}/v2.0")]},
        {"keys": ["one", {"kty": "RSA", "kid": "one"}, {"kty": "oct", "kid": "one", "k": "AA"}]},
    ],
)
async def test_what_the_issuer_must_not_say_leaves_the_door_closed(
    entra: StubEntra, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, good = entra.tokens(), vars(entra).copy()
    for name, value in wrong.items():
        setattr(entra, name, value)
    for _ in range(2):
        with pytest.raises(IssuerUnavailable):
            await tokens.check(entra.token())
    assert entra.asked == 1, "a broken issuer is left in peace for some seconds"
    monkeypatch.setattr(entra_signing_keys, "FAILED_SECONDS", 0)
    vars(entra).update(good)
    assert (await tokens.check(entra.token()))[0] == CLIENT


async def test_keys_are_not_read_where_anybody_on_the_way_could_exchange_them(entra: StubEntra) -> None:
    async with serve(entra, None) as port:
        entra.changed = {"jwks_uri": f"http://localhost:{port}/keys"}
        with pytest.raises(IssuerUnavailable):
            await entra.tokens().check(entra.token())


async def test_old_keys_are_renewed_once_a_day_and_a_silent_issuer_is_asked_once_a_minute(
    entra: StubEntra, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, now = entra.tokens(), time.monotonic()
    entra_time = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(entra_signing_keys, "time", entra_time)

    async def asked_after(seconds: float) -> int:
        entra_time.monotonic = lambda: now + seconds
        await tokens.check(entra.token())
        if reading := tokens._keys._reading:
            await reading
        return entra.asked

    assert [await asked_after(seconds) for seconds in (0, 23 * 3600)] == [1, 1]
    entra.status = 500
    assert [await asked_after(25 * 3600 + seconds) for seconds in (0, 1, 59, 61)] == [2, 2, 2, 3]
    entra.status = 200
    assert [await asked_after(26 * 3600 + seconds) for seconds in (0, 100)] == [4, 4]


async def test_keys_that_name_no_tenant_or_this_one_sign(entra: StubEntra) -> None:
    for named in (
        "https://login.microsoftonline.com/{tenantid}/v2.0",
        f"https://login.microsoftonline.com/{TENANT}/v2.0",
    ):
        entra.keys = [{"kty": "new", "kid": "x"}, published(KEYS[0], "one", issuer=named)]
        await entra.tokens().check(entra.token())


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "x"]), inner),
    max_leaves=6,
)
parts = st.text("abcABC019-_=", max_size=30) | values.map(
    lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
)


@settings(max_examples=100, deadline=None)
@given(st.lists(parts, min_size=1, max_size=4).map(".".join))
def test_no_other_text_is_anything_but_refused(text: str) -> None:
    tokens = EntraTokens("api://chat", f"https://localhost:1/{TENANT}")
    keys = tokens._keys
    keys._keys, keys.issuer = {"one": jwt.PyJWK(published(KEYS[0], "one"), algorithm="RS256")}, "https://x"
    keys._read_at = keys._tried_at = time.monotonic()
    with pytest.raises(KeyRefused):
        asyncio.run(tokens.check(text))


ADDRESS = f"https://login.microsoftonline.com/{TENANT}/v2.0"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"AUDIENCE": "api://chat"}, "CHAT_ENTRA_ISSUER is missing, without which CHAT_ENTRA_AUDIENCE means nothing"),
        ({"ISSUER": ADDRESS}, "CHAT_ENTRA_AUDIENCE is missing, without which CHAT_ENTRA_ISSUER means nothing"),
        ({"ROLE": "Chat.User"}, "CHAT_ENTRA_AUDIENCE is missing"),
        ({"AUDIENCE": " , ", "ISSUER": ADDRESS}, "CHAT_ENTRA_AUDIENCE is missing"),
        ({"AUDIENCE": "a", "ISSUER": "https://login.microsoftonline.com/common/v2.0"}, "the id of one tenant"),
        ({"AUDIENCE": "a", "ISSUER": ADDRESS.replace("https", "http")}, "CHAT_ENTRA_ISSUER must be an https:// URL"),
    ],
)
def test_half_a_configuration_stops_the_start_with_one_sentence(setting: dict[str, str], said: str) -> None:
    needed = {
        "Storage__blobServiceUri": "https://b", "Storage__queueServiceUri": "https://q", "AZURE_SUBSCRIPTION_ID": "s",
        "AZURE_RESOURCE_GROUP": "g", "AZURE_ML_WORKSPACE": "w",
    }  # fmt: skip
    read_settings(needed | {"CHAT_ENTRA_AUDIENCE": "a", "CHAT_ENTRA_ISSUER": ADDRESS})
    with pytest.raises(SettingsError, match=said):
        read_settings(needed | {f"CHAT_ENTRA_{name}": value for name, value in setting.items()})
