"""What all tests share: a clean home each, and no trace of the shell's Azure settings."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What `eval "$(python -m emulator env)"` may have left in the shell that runs the tests.
LEFTOVERS = (
    "IDENTITY_",
    "ARM_CLOUD_",
    "AZURE_",
    "Storage__",
    "WorkspaceStorage__",
    "CHAT_",
    "OPERATOR_",
    "OUTCOME_",
    "CONTENT_SAFETY_",
    "APP_",
    "MLFLOW_",
    "RUNS_",
)

for name in list(os.environ):
    if name.startswith(LEFTOVERS) or name == "FUNCTIONS_WORKER_RUNTIME":
        del os.environ[name]


@pytest.fixture(autouse=True)
def _clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees another's settings, or writes into the checkout's own local Azure."""
    monkeypatch.setenv("EMULATOR_HOME", str(tmp_path / "emulator"))
