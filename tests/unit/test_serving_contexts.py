"""The build contexts of the two servers, and the start of vLLM's, with stand-ins for vLLM and for the GPU's driver."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from function_app import serving_environment
from function_app.serving_environment import SERVING_PORT, build_context

STAND_INS = {
    # By the shell: a first line that names the interpreter must not have a space, which the path to it may have.
    "vllm": f"""#!/bin/sh\nexec "{sys.executable}" -c \
'import json, os, sys; print(json.dumps([*sys.argv[1:], os.getpid()]))' "$@"\n""",
    "nvidia-smi": "#!/bin/sh\nfor n in 0 1 2; do echo GPU $n; done\n",
}


def files(server: serving_environment.Server) -> set[str]:
    return set(build_context(server))


def test_a_build_context_has_what_its_dockerfile_and_its_server_need_and_no_more() -> None:
    assert files("vllm") == {"Dockerfile", "serve.py", "model_folder.py"}
    assert {"Dockerfile", "requirements.txt", "serve.py", "model_folder.py"} < files("transformers")
    assert not any("vllm" in name or "__pycache__" in name for name in files("transformers"))
    for server in ("transformers", "vllm"):
        dockerfile = build_context(server)["Dockerfile"].decode()
        assert re.search(rf"\bPORT={SERVING_PORT}\b", dockerfile)
        assert re.search(r'^CMD \["python3?", "serve.py"\]$', dockerfile, re.MULTILINE)
        imported = set(re.findall(r"^(?:from|import) (\w+)", build_context(server)["serve.py"].decode(), re.MULTILINE))
        assert {name for name in imported - sys.stdlib_module_names if f"{name}.py" not in files(server)} == set()


def start(folder: Path, **variables: str) -> subprocess.Popen[str]:
    """serve.py as the image has it, in ``folder``."""
    for name, content in build_context("vllm").items():
        (folder / name).write_bytes(content)
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "AZUREML_MODEL_DIR": str(folder / "model")}
    return subprocess.Popen(
        [sys.executable, "serve.py"], cwd=folder, env={**environment, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A machine with three GPUs and a model whose four heads two of them can share."""
    weights = tmp_path / "model" / "7" / "model" / "model"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    (weights.parent / "MLmodel").write_text("{}")
    (tmp_path / "bin").mkdir()
    for name, script in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def test_vllm_takes_the_processs_place_with_the_models_parts_and_its_public_name(folder: Path) -> None:
    process = start(folder, MODEL_NAME="support", PORT="5055", HOST="127.0.0.1")
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    *words, pid = json.loads(out)
    assert pid == process.pid, "the platform's signals would not reach the server"
    weights = str(folder / "model" / "7" / "model" / "model")
    assert words[:2] == ["serve", weights]
    options = dict(zip(words[2:-1:2], words[3::2], strict=False))
    assert options == {
        "--tokenizer": weights, "--served-model-name": "support", "--host": "127.0.0.1", "--port": "5055",
        "--tensor-parallel-size": "2", "--max-model-len": "auto",
    }  # fmt: skip
    assert words[-1] == "--disable-uvicorn-access-log"


def test_without_a_gpu_or_a_model_it_ends_with_a_sentence(folder: Path) -> None:
    (folder / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    process = start(folder)
    assert "error: this server needs an NVIDIA GPU" in process.communicate(timeout=20)[1]
    assert process.returncode == 1
    process = start(folder, AZUREML_MODEL_DIR=str(folder / "bin"))
    assert "holds no MLflow model" in process.communicate(timeout=20)[1]
