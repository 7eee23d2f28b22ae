"""What a cold start imports: neither the app nor its first chat may load what they do not need."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import gc, sys
import function_app
print(*sys.modules)
assert gc.isenabled() and gc.get_freeze_count() > 10_000
from function_app.azure_clients import live_container
from function_app.flow_runner import flow_runner
flow_runner()
print(*sys.modules)
assert gc.isenabled()
from promptflow.client import PFClient  # what the development kit is asked for later is there
"""
NEVER = {
    "azure.ai.ml",
    "torch",
    "transformers",
    "numpy",
    "tokenizers",
    "hyperscan",
    "openai",
    "azure.ai.contentsafety",
    "promptflow._sdk",
    "sqlalchemy",
    "pandas",
}
NOT_YET = {"promptflow", "jwt", "azure.identity", "azure.storage.blob", "aiohttp", "opentelemetry", "flask", "rich"}


@pytest.fixture(scope="module")
def loaded() -> list[set[str]]:
    """The modules after the import of the app, and after its flow is ready for the first chat."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr  # a first chat has nothing to warn of
    return [set(line.split()) for line in ran.stdout.splitlines()]


def test_importing_the_app_loads_neither_prompt_flow_nor_anything_else_heavy(loaded: list[set[str]]) -> None:
    assert "function_app.chat" in loaded[0]
    assert not loaded[0] & (NEVER | NOT_YET)


def test_the_first_chat_loads_prompt_flow_without_its_development_kit(loaded: list[set[str]]) -> None:
    assert "promptflow.executor.flow_executor" in loaded[1]
    assert not loaded[1] & NEVER
