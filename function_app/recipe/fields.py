"""What may stand in a recipe: every key with its type, its bounds and what it means."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

# The upper bounds are far beyond sense; they keep infinity out, and numbers that JSON's readers cannot hold.
Positive = Annotated[float, Meta(gt=0, le=1e6)]
NotNegative = Annotated[float, Meta(ge=0, le=1e6)]
PositiveInt = Annotated[int, Meta(ge=1, le=10**6)]
Share = Annotated[float, Meta(gt=0, lt=1)]
ShareOrNone = Annotated[float, Meta(ge=0, lt=1)]
Tokens = Annotated[int, Meta(ge=16, le=10**7)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]  # numpy takes no larger one
Text = Annotated[str, Meta(min_length=1)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the recipe. None means: the training job's default for that base model."""


class Training(Section, frozen=True):
    """Hyperparameters. What is left out has the training job's default for that base model and method."""

    epochs: Annotated[Positive | None, Meta(description="Passes over the training records.")] = None
    learning_rate: Annotated[Positive | None, Meta(description="Peak learning rate of AdamW.")] = None
    batch_size: Annotated[
        PositiveInt | None, Meta(description="Records in one forward pass, on each GPU (or on the CPU).")
    ] = None
    gradient_accumulation: Annotated[
        PositiveInt | None, Meta(description="Forward passes that are summed up for one optimiser step.")
    ] = None
    max_length: Annotated[
        Tokens | None, Meta(description="Tokens of an example; a longer chat is cut at its end, a longer text split.")
    ] = None
    packing: Annotated[
        bool | None, Meta(description="Lay the records of a batch end to end instead of padding them to the longest.")
    ] = None
    warmup: Annotated[
        ShareOrNone | None, Meta(description="Share of the steps in which the learning rate rises, from 0 to below 1.")
    ] = None
    lr_scheduler: Annotated[
        Literal["cosine", "linear", "constant"] | None,
        Meta(description="How the learning rate falls after the warm-up."),
    ] = None
    weight_decay: Annotated[NotNegative | None, Meta(description="Decoupled weight decay of AdamW.")] = None
    loss_on: Annotated[
        Literal["assistant", "all"] | None,
        Meta(description="Learn the assistant's tokens only, or those of every message."),
    ] = None
    copies_without_system: Annotated[
        bool | None, Meta(description="Train on each record that has a system message a second time without it.")
    ] = None
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"] | None,
        Meta(
            description="Number format of the computation; auto is bf16 where the machine computes it natively, else"
            " fp16 on a GPU, else fp32."
        ),
    ] = None
    activation_checkpointing: Annotated[
        bool | None,
        Meta(description="Recompute activations to save memory; left out: when an estimate says that it must be."),
    ] = None
    sharding: Annotated[
        Literal["none", "zero2", "zero3", "fsdp"] | None,
        Meta(
            description="What several GPUs share out among them: nothing, DeepSpeed's ZeRO stage 2 (gradients and"
            " optimiser state) or 3 (the weights too), or PyTorch's FSDP (the same as stage 3)."
        ),
    ] = None
    eval_every: Annotated[
        NotNegative | None, Meta(description="Epochs between measurements of the held-out loss in training; 0: none.")
    ] = None
    early_stopping: Annotated[
        Annotated[int, Meta(ge=0, le=1000)] | None,
        Meta(
            description="Measurements in a row without a better held-out loss after which training stops and goes back"
            " to the best weights; 0: never."
        ),
    ] = None
    checkpoint_minutes: Annotated[
        NotNegative | None,
        Meta(description="Minutes between the checkpoints from which a stopped job goes on."),
    ] = None
    lora_r: Annotated[PositiveInt | None, Meta(description="Rank of the adapters; with method lora or qlora.")] = None
    lora_alpha: Annotated[
        PositiveInt | None,
        Meta(description="Scale of the adapters: their output counts alpha/r times; with method lora or qlora."),
    ] = None
    lora_dropout: Annotated[
        ShareOrNone | None,
        Meta(description="Dropout on the adapters' input, a share from 0 to below 1; with method lora or qlora."),
    ] = None
    seed: Annotated[
        Seed | None, Meta(description="Of the shuffling, the dropout and the adapters' initial weights.")
    ] = None


class Evaluation(Section, frozen=True):
    """What the tuned model is measured on."""

    holdout: Annotated[
        Share,
        Meta(description="Share of the records that is held out for measuring, where the folder has no eval.jsonl."),
    ] = 0.1
    questions: Annotated[
        list[Text], Meta(description="Asked of the base and of the tuned model; the answers are in the run's numbers.")
    ] = []


class Compute(Section, frozen=True):
    """The cluster to train on; made when it does not exist, with no node while nothing runs."""

    cluster: Annotated[
        Text | None,
        Meta(
            description="The cluster's name; without it the app's TRAINING_COMPUTE or, for another instance_type or"
            " tier than the app's, one that is named after it."
        ),
    ] = None
    instance_type: Annotated[
        Text | None,
        Meta(
            description="Azure's name of its machines, such as Standard_NC24ads_A100_v4, for a cluster that is yet to"
            " be made; without it the app's TRAINING_INSTANCE_TYPE."
        ),
    ] = None
    instance_count: Annotated[
        Annotated[int, Meta(ge=1, le=64)], Meta(description="Machines that one job trains on, all of their GPUs.")
    ] = 1
    max_nodes: Annotated[PositiveInt, Meta(description="Machines that the cluster grows to, when it is made.")] = 1
    tier: Annotated[
        Literal["dedicated", "low_priority"],
        Meta(
            description="Of a cluster that is yet to be made: low_priority costs about a fifth, and Azure may take a"
            " machine away at any time; the job goes on from its last checkpoint."
        ),
    ] = "dedicated"
    idle_minutes: Annotated[
        Positive, Meta(description="Minutes after which an idle machine of the cluster is given back, when it is made.")
    ] = 5.0
    max_hours: Annotated[Positive, Meta(description="Hours after which the job is stopped.")] = 12.0
    budget: Annotated[
        Positive | None,
        Meta(description="US dollars that the training may cost by the estimate; a run above it is rejected."),
    ] = None


class Serving(Section, frozen=True):
    """The machines that answer, and how long they may take."""

    server: Annotated[
        Literal["auto", "transformers", "vllm", "mlflow"],
        Meta(
            description="What serves: transformers is serving/ (on a CPU or a GPU), vllm the vLLM server (a GPU is"
            " needed), mlflow Azure's deployment without an environment; auto is vllm on a machine with GPUs, else"
            " transformers."
        ),
    ] = "auto"
    instance_type: Annotated[
        Text | None,
        Meta(description="Azure's name of the machine; without it the app's SERVING_INSTANCE_TYPE."),
    ] = None
    instance_count: Annotated[PositiveInt, Meta(description="Machines of the deployment.")] = 1
    max_concurrent_requests: Annotated[
        PositiveInt,
        Meta(description="Requests that one machine works on at a time; the others wait. With server mlflow it is 1."),
    ] = 32
    request_timeout_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=180)], Meta(description="Seconds for one answer; Azure allows 180.")
    ] = 180.0
    max_queue_wait_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=180)],
        Meta(description="Seconds for which a request waits for its turn before it is refused."),
    ] = 60.0
    startup_minutes: Annotated[
        Annotated[float, Meta(gt=0, le=300)],
        Meta(description="Minutes for the machine, the image and the model to become ready; then the release fails."),
    ] = 30.0
    probe_seconds: Annotated[
        Annotated[float, Meta(ge=1, le=600)], Meta(description="Seconds between two looks at the server's health.")
    ] = 10.0
    probe_timeout_seconds: Annotated[
        Annotated[float, Meta(ge=1, le=60)], Meta(description="Seconds that the server has to say that it is healthy.")
    ] = 5.0
    probe_failures: Annotated[
        Annotated[int, Meta(ge=1, le=1000)],
        Meta(description="Looks in a row without an answer after which the server is started again."),
    ] = 6


class Chat(Section, frozen=True):
    """What the chat API does for this model before a request goes to it."""

    system_prompt: Annotated[
        Annotated[str, Meta(max_length=20_000)],
        Meta(description="Put before a chat that brings no system message of its own; empty: nothing is put there."),
    ] = ""
    trim_history: Annotated[
        bool,
        Meta(
            description="Leave out the oldest turns of a chat that has outgrown the model's context; the answer says"
            " how many. Without it such a chat is refused."
        ),
    ] = True
    max_severity: Annotated[
        Annotated[int, Meta(ge=0, le=6)] | None,
        Meta(
            description="Severity that a user's message may have in Azure AI Content Safety (0 none, 2 low, 4 medium, 6"
            " high) before it is refused; the app's CONTENT_SAFETY_ENDPOINT must be set. Without it nobody looks."
        ),
    ] = None


class Gate(Section, frozen=True):
    """When a new model may serve."""

    rule: Annotated[
        Literal["better", "better_than_base", "manual", "always"],
        Meta(
            description="better: held-out loss lower than the base's, and not worse than the serving model's by more"
            " than the tolerance; better_than_base: the first alone; manual: a person approves or rejects; always:"
            " every model passes."
        ),
    ] = "better"
    tolerance: Annotated[
        NotNegative,
        Meta(description="Share by which the held-out loss may be worse than the serving model's, with rule better."),
    ] = 0.01
    max_severity: Annotated[
        Annotated[int, Meta(ge=0, le=6)],
        Meta(
            description="Severity that a sampled answer may have in Azure AI Content Safety (0 none, 2 low, 4 medium, 6"
            " high); checked when the app's CONTENT_SAFETY_ENDPOINT is set."
        ),
    ] = 2


class Release(Section, frozen=True):
    """How a new model takes over from the one that serves, and when an idle one is retired."""

    steps: Annotated[
        list[Annotated[int, Meta(ge=1, le=100)]],
        Meta(
            description="Percent of the requests that the new model gets, step by step: each more than the one before,"
            " the last 100."
        ),
    ] = msgspec.field(default_factory=lambda: [10, 50, 100])
    step_minutes: Annotated[
        Annotated[float, Meta(ge=0, le=55)],
        Meta(description="Minutes that a step lasts before the new model is asked again, and the next step taken."),
    ] = 1.0
    bake_minutes: Annotated[
        Annotated[float, Meta(ge=0, le=10_000)],
        Meta(description="Minutes that the replaced model is kept (and paid for), so that going back takes a moment."),
    ] = 10.0
    min_agreement: Annotated[
        Annotated[float, Meta(ge=0, le=1)],
        Meta(
            description="How like the evaluation's answers those of the new deployment must be, on average: 1 the same"
            " words, 0 none in common."
        ),
    ] = 0.5
    max_latency_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=180)], Meta(description="Seconds that a test question's answer may take.")
    ] = 60.0
    idle_hours: Annotated[
        Annotated[float, Meta(ge=0, le=100_000)],
        Meta(description="Hours without a chat after which the endpoint is deleted, the model kept; 0: never."),
    ] = 168.0


class Recipe(Section, frozen=True):
    """How a dataset becomes a model. Every key may be left out."""

    preset: Annotated[
        Text | None, Meta(description="A recipe that comes with the app; the keys given here win over its own.")
    ] = None
    base_model: Annotated[
        Text,
        Meta(
            description="The model to start from: embedded (a tiny one with random weights, without a download), a"
            " Hugging Face id, a model of a registry (azureml://registries/…), live (the model of this name that"
            " serves now), or a folder that the job sees."
        ),
    ] = "embedded"
    method: Annotated[
        Literal["full", "lora", "qlora"],
        Meta(
            description="Train every weight, low-rank adapters that are merged afterwards, or the same on a base in"
            " 4 bits (an NVIDIA GPU is needed)."
        ),
    ] = "full"
    engine: Annotated[
        Literal["command", "pipeline", "service"],
        Meta(
            description="What trains: command is this project's own code as an Azure ML job, pipeline the registry's"
            " chat_completion_pipeline, service fine-tuning as a service, without machines of one's own."
        ),
    ] = "command"
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    compute: Compute = Compute()
    serving: Serving = Serving()
    chat: Chat = Chat()
    gate: Gate = Gate()
    release: Release = Release()

    def training_options(self) -> dict[str, Any]:
        """The flat config of the training job (docs/interfaces.md): what is set here, and no more."""
        given = {name: value for name, value in msgspec.structs.asdict(self.training).items() if value is not None}
        return {
            "base_model": self.base_model,
            "method": self.method,
            **given,
            "questions": list(self.evaluation.questions),
        }
