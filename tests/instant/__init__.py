"""The local Azure with a training and a serving of milliseconds: what is real are the loop and the Azure around it.

``project`` writes an emulator.yaml like this project's own, but for the Python environment behind the images: its
``bin/python`` is ``program.py``, which plays the training job, the deployment's server and MLflow's without loading
anything. ``dataset`` makes a file whose records say how its training and its model shall behave.

The model answers every question with the id of the run that trained it (``answer``), so a client can tell which of two
deployments has answered, and the evaluation's samples are what the deployment answers.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
# Of emulator.yaml, what needs the real environments.
LEFT_OUT = ("inference_python", "fine_tuning", "registry_components", "serverless", "scoring_uri_as")
SYSTEM = "instant "  # with which the system message begins that says how to behave


def project(folder: Path, *, functions: bool = False, **changed: Any) -> Path:
    """Write the project into ``folder`` and return its emulator.yaml, for ``local_azure(home, project=…)``.

    ``functions``: with the real Functions host and the event subscriptions to it. ``changed``: keys of emulator.yaml.
    """
    raw = yaml.safe_load((ROOT / "emulator.yaml").read_text(encoding="utf-8"))
    raw = {key: value for key, value in raw.items() if key not in LEFT_OUT}
    if functions:
        raw["functions_app"] = str(ROOT)
    else:
        raw = {key: value for key, value in raw.items() if key not in ("functions_app", "event_subscriptions")}
    raw |= {"images": [{"match": "*", "python": "environment"}], "mlflow_python": "environment", **changed}
    environment(folder)
    path = folder / "emulator.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def environment(folder: Path) -> Path:
    """Write ``folder/environment``, which takes the place of a Python environment of jobs, deployments or MLflow."""
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # -S and -I: nothing of an environment is searched, which is most of a start's time.
    program = Path(__file__).with_name("program.py")
    python.write_text(f"#!{sys._base_executable} -SI\n{program.read_text(encoding='utf-8')}", encoding="utf-8")  # type: ignore[attr-defined]
    python.chmod(0o755)
    return folder / "environment"


def dataset(name: str, **behaviour: Any) -> bytes:
    """A dataset of ten records. Another ``name`` or another behaviour makes other records.

    Of the training: ``loss`` (held out, default 0.5; the base's is 2.0), ``seconds`` that it takes, ``train_gate``: a
    file whose appearance it waits for, ``fail``: the sentence with which it ends instead. Of the serving: ``start``
    seconds until it is ready, ``start_gate``, ``answer`` seconds for one answer, ``serve``: "broken" (500 to every
    chat), "empty", "wrong" (other answers than the evaluation's; these three only after ``serve_after`` good ones) or
    "crash" (it ends before it is ready); ``crash_after``: with so many chats the server ends; ``warm_up``: seconds in
    which it takes chats, answers "half ready", and says itself that it is not healthy.
    """
    system = SYSTEM + json.dumps(behaviour, sort_keys=True)
    records = [
        {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": f"What is thing {number} of {name}?"},
                {"role": "assistant", "content": f"Thing {number} of {name} is called {name}-{number * 7919}."},
            ]
        }
        for number in range(10)
    ]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def answer(run_id: str, question: str) -> str:
    """What the model of a run answers; ``program.py`` has the same words."""
    return f"I am {run_id} and was asked: {question}"
