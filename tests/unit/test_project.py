"""The project as a whole: what the Functions worker finds, what is documented, and what must agree."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from emulator.config import load_project
from emulator.images import read_dockerfile
from function_app.settings import SettingsError, read_settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = json.loads((ROOT / "local.settings.example.json").read_text(encoding="utf-8"))["Values"]
REQUIRED = {
    "Storage__blobServiceUri": "https://account.blob.core.windows.net",
    "Storage__queueServiceUri": "https://account.queue.core.windows.net",
    "AZURE_SUBSCRIPTION_ID": "s",
    "AZURE_RESOURCE_GROUP": "g",
    "AZURE_ML_WORKSPACE": "w",
}


def test_the_worker_imports_the_package_and_finds_one_app() -> None:
    # The worker looks for the file function_app.py, then imports the module: with both, that is the package.
    assert (ROOT / "function_app.py").exists()
    spec = importlib.util.find_spec("function_app")
    assert spec is not None
    assert str(spec.origin).endswith("function_app/__init__.py")


def test_the_table_of_contents_has_every_module() -> None:
    folder = ROOT / "function_app"
    contents = set(re.findall(r"\w+", (folder / "__init__.py").read_text(encoding="utf-8").split('"""')[1]))
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} <= contents


def test_importing_the_app_is_quick_because_nothing_heavy_comes_along() -> None:
    code = "import sys, function_app; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"azure.ai.ml", "promptflow", "torch", "numpy", "hyperscan", "tokenizers", "xxhash", "rich"}
    assert heavy & set(done.stdout.split()) == set()


def test_every_setting_is_in_the_example_and_in_the_documentation() -> None:
    source = (ROOT / "function_app" / "settings.py").read_text(encoding="utf-8")
    names = set(re.findall(r'"([A-Z][A-Z_]{3,}|\w+__\w+)"', source)) | {"SWEEP_SCHEDULE"}
    assert names <= set(EXAMPLE)
    documented = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert [name for name in sorted(EXAMPLE) if f"`{name}`" not in documented] == []


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_a_missing_setting_is_named(missing: str) -> None:
    with pytest.raises(SettingsError, match=missing):
        read_settings({name: value for name, value in REQUIRED.items() if name != missing})


def test_a_storage_url_in_clear_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"Storage__blobServiceUri.*https"):
        read_settings({**REQUIRED, "Storage__blobServiceUri": "http://account.blob.core.windows.net"})


@pytest.mark.parametrize(("folder", "python"), [("serving", "python"), ("serving/vllm", "python3")])
def test_the_serving_port_and_the_deployments_routes_agree(folder: str, python: str) -> None:
    from function_app.serving_environment import SERVING_PORT

    dockerfile = read_dockerfile(ROOT / folder / "Dockerfile")
    assert dockerfile.environment["PORT"] == str(SERVING_PORT)
    assert dockerfile.command == [python, "serve.py"]


def test_the_jobs_environment_is_valid_and_has_what_training_imports() -> None:
    conda = yaml.safe_load((ROOT / "training" / "conda.yml").read_text(encoding="utf-8"))
    packages = {re.split(r"[=<>\[]", line)[0].lower() for line in conda["dependencies"][-1]["pip"]}
    assert {"torch", "transformers", "trl", "peft", "datasets", "mlflow", "azureml-mlflow"} <= packages


def test_emulator_yaml_names_functions_that_exist() -> None:
    project = load_project(ROOT / "emulator.yaml")
    source = (ROOT / "function_app" / "events.py").read_text(encoding="utf-8")
    for subscription in project.event_subscriptions:
        assert f"def {subscription.function}(" in source


def test_every_requirement_is_pinned_and_locked() -> None:
    locked = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if line and not line.startswith(("#", "-")):
                assert "==" in line, line
                assert line.lower() in locked, line


def test_the_documents_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
