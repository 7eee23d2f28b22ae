"""A key opens the API only while its hash is in the setting, and the setting never shows up in an error."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from function_app.api_keys import main, new_key
from function_app.chat_keys import OPERATIONS, KeyRefused, check_key, read_keys
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
        (["--help"], 2),
        (["--operator"], 2),
        (["a", "--operator"], 2),
        (["a:b"], 1),
        (["a,b"], 1),
    ],
)
def test_the_command_refuses_what_it_cannot_use(arguments: list[str], code: int) -> None:
    assert main(arguments) == code


def test_the_command_runs_as_documented() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "function_app.api_keys", "alice"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "alice:" in done.stdout
    assert done.stderr == ""
