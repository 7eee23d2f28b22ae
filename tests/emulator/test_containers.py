"""What a deployment runs without Docker: plain images by the table, paths of Azure's containers, image environments."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from emulator.config import Image, load_project
from emulator.images import ImageError
from emulator.online.containers import Container, Preparation
from emulator.online.instances import Events, Instance
from emulator.online.probes import probe
from emulator.storage import UriError
from emulator.store import Resource
from tests.local_azure import ROOT

PROJECT = load_project(ROOT / "emulator.yaml")
ENVIRONMENT = "…/environments/e/versions/1"
MODEL = "…/models/words/versions/3"
CODE = "…/codes/c/versions/1"


async def prepare(tmp_path: Path, images: list[Image], environment: dict[str, Any], **deployment: Any) -> Container:
    async def download(_: object, target: Path) -> int:
        target.mkdir(parents=True)
        (target / "words.txt").write_text("one two")
        return 1

    resources = {
        ENVIRONMENT: Resource(ENVIRONMENT, "1", {"properties": environment}, {}, "", ""),
        MODEL: Resource(MODEL, "3", {"properties": {"modelUri": "x"}}, {}, "", ""),
        CODE: Resource(CODE, "1", {"properties": {"codeUri": "x"}}, {}, "", ""),
    }
    control = SimpleNamespace(
        home=SimpleNamespace(project=replace(PROJECT, images=images)),
        store=SimpleNamespace(get=resources.get),
        locate=lambda _: SimpleNamespace(path="outputs/folder"),
        storage=SimpleNamespace(download=download),
    )
    properties = {"environmentId": ENVIRONMENT, **deployment}
    resource = Resource("d", "d", {"properties": properties}, {}, "", "")
    return await Preparation(control, resource, tmp_path / "1", tmp_path / "models", print).run()  # type: ignore[arg-type]


async def test_a_model_mounted_at_the_root_changes_no_other_text(tmp_path: Path) -> None:
    row = Image("*", ".venv", ["serve", "/words"])
    container = await prepare(tmp_path, [row], {"image": "x"}, model=MODEL, modelMountPath="/")
    assert container.command == ["serve", "/words"]


async def test_a_plain_image_runs_the_command_of_its_row_on_the_port_that_it_is_given(tmp_path: Path) -> None:
    command = ["python", "-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory", "/mnt/model"]
    row = Image("ghcr.io/me/server:*", ".venv", command)
    environment = {
        "image": "ghcr.io/me/server:2",
        "inferenceConfig": {"readinessRoute": {"path": "/words/3/folder/words.txt", "port": 8080}},
    }
    container = await prepare(tmp_path, [row], environment, model=MODEL, modelMountPath="/mnt/model")
    ready = probe(container.readiness, {"period": "PT1S"})
    started: list[int] = []
    instance = Instance(container, ready, ready, tmp_path / "log", Events(started.append, lambda: None, lambda _: None))
    await instance.start()
    try:
        address = instance.address + container.readiness
        async with aiohttp.ClientSession() as session, session.get(address) as answer:
            assert await answer.text() == "one two"
    finally:
        await instance.stop()
    assert len(started) == 1


async def test_an_image_without_a_command_names_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"give its row of `images` in emulator\.yaml a command, or") as refused:
        await prepare(tmp_path, [Image("*", ".venv")], {"image": "vllm/vllm-openai:latest"})
    assert "build context" in str(refused.value)


async def test_paths_of_azure_s_containers_become_paths_of_this_machine(tmp_path: Path) -> None:
    variables = {
        "MODEL_BASE_PATH": "/var/azureml-app/azureml-models/words/3/folder",
        "OTHER": "/mnt/model/words/3/folder/words.txt",
        "UNTOUCHED": "/var/log",
    }
    container = await prepare(
        tmp_path,
        [Image("*", ".venv", ["serve"])],
        {"image": "x"},
        model=MODEL,
        modelMountPath="/mnt/model/",
        environmentVariables=variables,
    )
    here = tmp_path / "models" / "words" / "3"
    assert container.variables["MODEL_BASE_PATH"] == str(here / "folder")
    assert Path(container.variables["OTHER"]).read_text() == "one two"
    assert container.variables["UNTOUCHED"] == "/var/log"
    assert container.variables["AZUREML_MODEL_DIR"] == str(here)


async def test_a_scoring_script_outside_the_code_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.py").touch()
    code = {"codeId": CODE, "scoringScript": "../../secret.py"}
    with pytest.raises(UriError, match="no scoring script"):
        await prepare(tmp_path, [Image("*", ".venv")], {"image": "x"}, codeConfiguration=code)


async def test_an_environment_of_another_python_than_the_inference_server_s_is_told_what_to_install(
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    (other / "lib" / "python3.99" / "site-packages").mkdir(parents=True)
    (other / "bin").mkdir()
    (other / "bin" / "python").touch()
    with pytest.raises(ImageError, match="install azureml-inference-server-http into it"):
        await prepare(tmp_path, [Image("*", str(other))], {}, environmentId=None, model=MODEL)
