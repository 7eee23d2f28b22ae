"""A key opens the API only while its hash is in the setting, and the setting never shows up in an error."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from function_app.api_keys import main, new_key
from function_app.chat_keys import OPERATIONS, KeyRefused, check_key, find_key, read_keys
from function_app.settings import SettingsError

ROOT = Path(__file__).resolve().parents[2]


def test_each_key_is_known_by_its_name() -> None:
    (alice, alice_entry), (bob, bob_entry) = new_key("alice"), new_key("bob")
    setting = f"{alice_entry}, {bob_entry},"
    assert check_key(f"Bearer {alice}", setting) == "alice"
    assert check_key(f"bearer {bob}", setting) == "bob"


def test_the_setting_holds_sha256_of_salt_and_key() -> None:
    key, entry = new_key("alice")
    name, salt, digest = entry.split(":")
    assert (name, digest) == ("alice", hashlib.sha256((salt + key).encode()).hexdigest())
    assert key not in entry


@given(st.text(max_size=60))
def test_no_other_header_opens(authorization: str) -> None:
    with pytest.raises(KeyRefused):
        check_key(authorization, new_key("alice")[1])


def test_a_removed_key_no_longer_opens() -> None:
    key, _ = new_key("alice")
    with pytest.raises(KeyRefused, match="not one that this app knows"):
        check_key(f"Bearer {key}", new_key("alice")[1])


@pytest.mark.parametrize("setting", ["", " ", ","])
def test_without_keys_the_error_says_how_to_make_one(setting: str) -> None:
    with pytest.raises(KeyRefused, match="api_keys NAME"):
        check_key("Bearer x", setting)


@pytest.mark.parametrize(
    "bad", ["hunter2", "a:b:c", "alice:00:ff", f"{new_key('a')[1]}:x", f"{new_key('a')[1]},hunter2"]
)
def test_a_malformed_setting_is_named_without_its_value(bad: str) -> None:
    with pytest.raises(SettingsError, match="CHAT_API_KEYS is malformed at entry") as error:
        read_keys(bad)
    assert not any(part in str(error.value) for part in bad.replace(":", ",").split(",") if len(part) > 3)


def test_the_command_prints_a_key_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alice"]) == 0
    key, entry = (line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  "))
    assert check_key(f"Bearer {key}", entry) == "alice"


def test_a_key_may_be_limited(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alice", "--models", "support, sales", "--concurrency", "8"]) == 0
    printed = capsys.readouterr().out
    secret, entry = (line.strip() for line in printed.splitlines() if line.startswith("  "))
    assert entry.endswith(":models=support|sales:concurrency=8")
    (stored,) = read_keys(entry)
    assert (stored.models, stored.concurrency) == ({"support", "sales"}, 8)
    assert find_key(secret, [stored]) == stored
    # An entry from before there were limits, and one with one of them.
    plain, one = read_keys(f"{new_key('a')[1]},{new_key('b', concurrency=1)[1]}")
    assert (plain.models, plain.concurrency, one.models, one.concurrency) == (None, None, None, 1)


@pytest.mark.parametrize(
    "limits",
    [
        ":", ":models=", ":models=Support", ":models=a|", ":models=a,b", ":concurrency=0", ":concurrency=",
        ":concurrency=x", ":concurrency=-1", ":concurrency=1000000", ":concurrency=1:models=aa",
        ":models=aa:models=bb", ":model=aa",
    ],
)  # fmt: skip
def test_a_limit_that_is_not_understood_is_no_key(limits: str) -> None:
    with pytest.raises(SettingsError, match=r"at entry 1: each must be name:salt:sha256hex\[:models=a\|b\]\[:concurr"):
        read_keys(new_key("alice")[1] + limits)


def test_two_keys_of_one_name_are_refused() -> None:
    with pytest.raises(SettingsError, match="CHAT_API_KEYS has the name of entry 3 twice"):
        read_keys(",".join(new_key(name)[1] for name in ("alice", "bob", "alice")))


def test_an_operators_key_has_no_limits() -> None:
    with pytest.raises(SettingsError, match=r"each must be name:salt:sha256hex, as printed by"):
        read_keys(new_key("alice", concurrency=1)[1], OPERATIONS)


def test_an_operators_key_is_made_for_the_other_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--operator", "alice"]) == 0
    printed = capsys.readouterr().out
    key, entry = (line.strip() for line in printed.splitlines() if line.startswith("  "))
    assert "OPERATOR_API_KEYS" in printed
    assert "CHAT_API_KEYS" not in printed
    assert check_key(f"Bearer {key}", entry, OPERATIONS) == "alice"
    with pytest.raises(KeyRefused, match=r"operations API is closed.*--operator NAME.*OPERATOR_API_KEYS"):
        check_key(f"Bearer {key}", "", OPERATIONS)
    with pytest.raises(SettingsError, match="OPERATOR_API_KEYS is malformed"):
        read_keys("hunter2", OPERATIONS)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["a", "b"], 2),
        (["--help"], 0),
        (["--operator"], 2),
        (["a", "--operator", "--models", "aa"], 2),
        (["a", "--operator", "--concurrency", "0"], 2),
        (["a", "--concurrency", "many"], 2),
        (["a", "--concurrency", "0"], 1),
        (["a", "--models", ""], 1),
        (["a", "--models", "Support"], 1),
        (["a:b"], 1),
        (["a,b"], 1),
        (["a", "--models", f"aa:{'0' * 16}"], 1),
        ([f"a:{'0' * 16}:{'0' * 64}"], 1),
    ],
)
def test_the_command_refuses_what_it_cannot_use(arguments: list[str], code: int) -> None:
    try:
        ended: object = main(arguments)
    except SystemExit as stop:  # argparse has said what it cannot use
        ended = stop.code
    assert ended == code


def test_the_command_runs_as_documented() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "function_app.api_keys", "alice"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "alice:" in done.stdout
    assert done.stderr == ""
