"""What is really there in Azure, as far as the next step of a run depends on it. No I/O."""

from dataclasses import dataclass, field

from .runs import Stage


@dataclass(frozen=True)
class JobSeen:
    """An Azure ML job: its status in Azure's words, and why it failed."""

    status: str
    error: str = ""


@dataclass(frozen=True)
class DeploymentSeen:
    """An online deployment: its provisioning state, and the end of its log when that is Failed."""

    state: str
    error: str = ""


@dataclass(frozen=True)
class Twin:
    """Another run with the same records and recipe, that has not ended badly; ``earlier`` by the time of its drop."""

    id: str
    stage: Stage
    earlier: bool


@dataclass(frozen=True)
class Observation:
    """What the run's stage needs to know.

    ``overtaken_by``: the run of newer data. ``safety``: sampled answers are to be checked before the gate.
    ``used_again``: the model that the idle watch wants to retire has answered a chat since.
    ``releasing``: another run that has the model's turn to release. ``champion``: the deployment that serves beside the
    run's own on the same endpoint; "" when there is none. ``traffic``: percent by deployment.
    """

    overtaken_by: str = ""
    twins: tuple[Twin, ...] = ()
    job: JobSeen | None = None
    safety: bool = False
    used_again: bool = False
    releasing: str = ""
    endpoint_state: str = ""
    deployment: DeploymentSeen | None = None
    champion: str = ""
    traffic: dict[str, int] = field(default_factory=dict)
