"""Scripts in the order and with the calls of Azure's documentation run unchanged after ``python -m emulator env``.

The scripts in documented/ are ours; they know nothing of the local Azure. The tutorials themselves, as they are
printed, are run by test_tutorial_scripts.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from azure.ai.ml import MLClient

from tests.local_azure import LocalAzure

DOCUMENTED = Path(__file__).parent / "documented"


@pytest.fixture(scope="module")
def folder(azure: LocalAzure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("scripts") / "project"
    shutil.copytree(DOCUMENTED, copy)
    (copy / "words.txt").write_text("one two two three of the words")
    return copy


def run(folder: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, script], cwd=folder, env=os.environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_a_job_is_run_followed_downloaded_and_registered_then_deployed_and_asked(folder: Path, ml: MLClient) -> None:
    trained = run(folder, "train.py")
    assert "counted 5 words" in trained  # "of" is too short
    assert re.search(r"registered counts:1 from job \w+", trained)
    deployed = run(folder, "deploy.py")
    (answer,) = re.findall(r"answer (.*)$", deployed, flags=re.MULTILINE)
    assert json.loads(answer) in ({"one": 1, "two": 2, "nothing": 0}, json.dumps({"one": 1, "two": 2, "nothing": 0}))
    assert "word-counts" not in [endpoint.name for endpoint in ml.online_endpoints.list()]
