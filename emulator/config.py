"""What to run and where: emulator.yaml, the state folder, the chosen ports, the secrets of this checkout."""

import contextlib
import itertools
import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from . import az

HOST = "127.0.0.1"
# Seconds for which a connection is kept that nobody uses, as Azure does. With the usual five, each client that asks now
# and then shakes hands anew, and reads all the certificates that it trusts: 20 ms and more of the processor.
KEEP_ALIVE = 120
# Azurite accepts no other account unless told so; name and key are published in its documentation.
ACCOUNT = "devstoreaccount1"
BLOB_HOST = f"{ACCOUNT}.blob.core.windows.net"  # what azure-ai-ml makes of the account's name
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

SYSTEM_TOPICS = ("storage", "workspace")
PARTS = ("blob", "queue", "table", "arm", "identity", "mlflow", "functions", "proxy")
# Ports below those that systems give to programs which ask for any: each state folder has its own ten among them.
FIRST_PORT, PORT_BLOCKS, BLOCK = 20000, 1000, 10


class ConfigError(ValueError):
    """emulator.yaml or the state folder cannot be used; the message says what to change."""


@dataclass(frozen=True)
class EventSubscription:
    """Which events of a topic (``storage``, ``workspace``, or one of ``topics``) go where.

    To a ``function`` of the app, or to any ``webhook`` (its URL); the latter may come up at any time. No types: all.
    """

    name: str
    topic: str
    function: str = ""
    event_types: list[str] = field(default_factory=list)
    subject_begins_with: str = ""
    webhook: str = ""


@dataclass(frozen=True)
class Image:
    """A row of the image table: images that match ``match`` (shell pattern) run in the environment ``python``.

    ``command`` is what a deployment of such an image runs, when no Dockerfile says it; ``{port}`` in it is the port on
    which it must listen, which ``$PORT`` names too.
    """

    match: str
    python: str
    command: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BaseModel:
    """A row of ``base_models``: ``base`` stands in for the foundation models whose id matches ``match``."""

    match: str
    base: str


@dataclass(frozen=True)
class TrainingOption:
    """Where an option of the training command has its value from.

    ``input`` names the hyperparameter. ``values`` translates some of its values; null leaves the option out.
    """

    input: str
    values: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class FineTuning:
    """The command behind fine-tuning jobs and components; ``{base}`` in it is a model, ``{options}`` are options."""

    command: str
    environment: str
    python_path: str
    base_models: list[BaseModel]
    options: dict[str, TrainingOption]


@dataclass(frozen=True)
class FineTuningComponent:
    """A component of the registry that fine-tunes: which of its inputs and outputs are what."""

    step: str
    compute: str
    base_model: list[str]
    train: str
    evaluate: list[str]
    model: str
    weights: str


@dataclass(frozen=True)
class Serving:
    """What serves a serverless endpoint: a build context whose Dockerfile names the command, and its routes.

    ``export`` writes a base model without any fine-tuning, ``{base}``, as an MLflow model into ``{folder}``.
    """

    context: str
    liveness: str
    readiness: str
    chat: str
    export: list[str]
    python: str
    requests: int


@dataclass(frozen=True)
class Project:
    """The resources of emulator.yaml. Paths are relative to ``root``, the folder of ``file``."""

    root: Path
    file: str
    subscription: str
    tenant: str
    resource_group: str
    workspace: str
    location: str
    containers: list[str] = field(default_factory=list)
    queues: list[str] = field(default_factory=list)
    topics: dict[str, str] = field(default_factory=dict)
    event_subscriptions: list[EventSubscription] = field(default_factory=list)
    functions_app: str = ""
    app_settings: dict[str, str] = field(default_factory=dict)
    api_keys: dict[str, str] = field(default_factory=dict)
    app_registrations: dict[str, str] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)
    mlflow_python: str = ""
    inference_python: str = ""
    scoring_uri_as: str = ""
    shell: dict[str, str] = field(default_factory=dict)
    fine_tuning: FineTuning | None = None
    registry_components: dict[str, FineTuningComponent] = field(default_factory=dict)
    serverless: Serving | None = None

    @property
    def workspace_id(self) -> str:
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{self.workspace}"
        )


def load_project(path: Path) -> Project:
    """Read emulator.yaml. Raises ConfigError for a missing file, bad YAML, or a key it does not know."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; run this in the project's folder or pass --project.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must be a mapping: subscription, tenant, resource_group and so on.")
    try:
        raw["event_subscriptions"] = [EventSubscription(**row) for row in raw.get("event_subscriptions", [])]
        raw["images"] = [Image(**row) for row in raw.get("images", [])]
        if raw.get("fine_tuning"):
            raw["fine_tuning"] = _fine_tuning(raw["fine_tuning"])
        components = raw.get("registry_components") or {}
        raw["registry_components"] = {name: FineTuningComponent(**row) for name, row in components.items()}
        if raw.get("serverless"):
            raw["serverless"] = Serving(**raw["serverless"])
        project = Project(root=path.resolve().parent, file=path.name, **raw)
        _check_subscriptions(path, project)
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: {error}.") from None
    return project


def _check_subscriptions(path: Path, project: Project) -> None:
    topics = (*SYSTEM_TOPICS, *project.topics)
    if taken := set(SYSTEM_TOPICS) & set(project.topics):
        raise ConfigError(f"{path}: topics may not be called {', '.join(sorted(taken))}.")
    for row in project.event_subscriptions:
        if row.topic not in topics:
            raise ConfigError(f"{path}: {row.name} subscribes to {row.topic}; there are {', '.join(topics)}.")
        if bool(row.function) == bool(row.webhook):
            raise ConfigError(f"{path}: {row.name} needs either a function or a webhook.")


def _fine_tuning(raw: dict[str, Any]) -> FineTuning:
    models = [BaseModel(**row) for row in raw.get("base_models", [])]
    options = {name: TrainingOption(**row) for name, row in raw.get("options", {}).items()}
    return FineTuning(**{**raw, "base_models": models, "options": options})


@dataclass
class State:
    """Ports, secrets and process ids of one checkout's local Azure; the file is readable by its owner only."""

    ports: dict[str, int]
    identity_header: str
    functions_keys: dict[str, Any]
    api_keys: dict[str, str]
    principal_id: str
    supervisor: dict[str, float] | None = None
    processes: dict[str, dict[str, float]] = field(default_factory=dict)


class Home:
    """The state folder: everything that the local Azure writes lies under it and can be deleted with it."""

    def __init__(self, project: Project, path: Path | None = None) -> None:
        self.project = project
        self.path = (path or Path(os.environ.get("EMULATOR_HOME") or project.root / ".emulator")).resolve()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs = self.folder("logs")

    def folder(self, *names: str) -> Path:
        path = self.path.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def database(self) -> Path:
        return self.path / "resources.db"

    @property
    def commands(self) -> Path:
        """The folder that a shell's PATH gets."""
        return self.path / "bin"

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    def load(self) -> State | None:
        """The saved state, or None before the first start. Raises ConfigError when the file is damaged."""
        try:
            return State(**json.loads(self.state_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{self.state_file} is damaged ({error}); stop the local Azure's processes and delete {self.path}."
            ) from None

    def save(self, state: State) -> None:
        new = self.state_file.with_suffix(".new")
        with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(asdict(state), file, indent=1)
        new.replace(self.state_file)

    def prepare(self) -> State:
        """The state to start with: saved secrets and ports. Raises ConfigError when the saved arm port is in use."""
        saved = self.load()
        state = saved or State(
            ports={},
            identity_header=secrets.token_urlsafe(24),
            functions_keys={
                "masterKey": secrets.token_urlsafe(24),
                "functionKeys": {"default": secrets.token_urlsafe(24)},
                "systemKeys": {"eventgrid_extension": secrets.token_urlsafe(24)},
            },
            api_keys={},
            principal_id=str(uuid4()),
        )
        for name in self.project.api_keys.values():
            state.api_keys.setdefault(name, "sk-local-" + secrets.token_urlsafe(24))
        self._choose_ports(state.ports)
        state.supervisor, state.processes = None, {}
        self.save(state)
        az.install(self.commands)
        keys = self.path / "functions-keys.json"
        keys.touch(mode=0o600)
        keys.chmod(0o600)  # one that an older version wrote
        keys.write_text(json.dumps(state.functions_keys), encoding="utf-8")
        return state

    def _choose_ports(self, ports: dict[str, int]) -> None:
        """Fill in ports: saved ones where they are free, at first consecutive ones that follow from the folder."""
        digest = int.from_bytes(sha256(str(self.path).encode()).digest())
        for offset, part in enumerate(PARTS):
            others = {port for name, port in ports.items() if name != part}
            own = (FIRST_PORT + BLOCK * ((digest + n) % PORT_BLOCKS) + offset for n in range(PORT_BLOCKS))
            candidates = itertools.chain([ports[part]] if part in ports else [], own)
            chosen = next((port for port in candidates if port not in others and is_free(port)), None)
            if chosen is None:
                raise ConfigError(f"No free port on {HOST} from {FIRST_PORT} to {FIRST_PORT + BLOCK * PORT_BLOCKS}.")
            # Clients save the scoring URIs of endpoints, which name this port; all else is looked up anew.
            if part == "arm" and chosen != ports.get(part, chosen):
                raise ConfigError(
                    f"Port {ports[part]}, which the saved addresses of endpoints name, is used by another program: stop"
                    " that program, or run `make clean` to start afresh with another port."
                )
            ports[part] = chosen


def is_free(port: int) -> bool:
    """Whether nothing listens on ``port`` of this machine's loopback address."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that the system picks."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def hashed_api_key(key: str) -> str:
    """The app setting that lets ``key`` in: ``name:salt:sha256(salt + key)``, as docs/chat.md describes it."""
    salt = sha256(b"salt" + key.encode()).hexdigest()[:16]
    return f"local:{salt}:{sha256((salt + key).encode()).hexdigest()}"
