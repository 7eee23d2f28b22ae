"""Several processes that train one model: how they find each other, agree, fail together, and share out its state.

Azure ML's PyTorch distribution and torchrun set the same variables for each process: RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT. Without them there is one process, and every function here does nothing much.
"""

import contextlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from training import FineTuneError
from training.arguments import FineTuneArguments
from training.phases import is_first

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl import SFTTrainer

SHARDING = Path(__file__).parent / "sharding"
# How long a process waits for the others in a collective call. It is long because the first process measures the base
# model while the others wait; a process that fails is seen in seconds, by the watch.
PATIENCE = timedelta(hours=12)
WATCH_SECONDS = 2.0


def world_size() -> int:
    """Return the number of processes that train."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start() -> None:
    """Join the other processes, if there are any, and watch them. Calling it twice is calling it once.

    To be called before anything that takes long, so that a process that fails early takes the others with it. When
    another process fails, or the first one is gone, this process ends with exit code 1.
    """
    if world_size() == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # gloo beside nccl: gathering the weights of a sharded model goes through the CPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    _watch.begin()


def finish() -> None:
    """Part from the other processes, once all of them have come here. What follows, each does on its own."""
    if world_size() == 1 or not dist.is_initialized():
        return
    _watch.end()
    dist.barrier()
    dist.destroy_process_group()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other processes and, when what is done here fails, let them know, so that none of them waits for it."""
    start()
    try:
        yield
    except BaseException as error:
        _watch.tell(found_here=isinstance(error, FineTuneError))
        raise


def agree(*flags: bool) -> list[bool]:
    """Return for each flag whether any process set it; all processes must call this at the same point."""
    if world_size() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32, device=_device())
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def total(*numbers: float) -> list[float]:
    """Return the sum of each number over the processes."""
    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64, device=_device())
    dist.all_reduce(sums)
    return [float(each) for each in sums.tolist()]


def from_first(value: Any) -> Any:
    """Return the first process's ``value`` in all of them."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class _Watch:
    """A thread that ends this process when another one has failed.

    The news goes through the store by which the processes found each other. A store that does not answer is news too:
    the first process keeps it (under torchrun its agent does), so that one is gone.
    """

    def __init__(self) -> None:
        self._store: Any = None
        self._over = threading.Event()
        # A restart by torchrun finds the same store, with the failure that it was restarted for.
        self._key = f"training/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    def begin(self) -> None:
        # A connection of its own: the other one may be busy waiting.
        self._store = dist.distributed_c10d._get_default_store().clone()
        self._over.clear()
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def end(self) -> None:
        self._over.set()

    def tell(self, *, found_here: bool) -> None:
        if self._store is None or self._over.is_set():
            return
        # What fails here may be no more than the other one's end, seen by a collective call before it was seen here. A
        # sentence of our own is not: when all find the same mistake, the first one's log shall say it too.
        if not found_here:
            self._end_if_told()
        self._over.set()
        with contextlib.suppress(RuntimeError):  # the store is gone, and with it those who would have read this
            self._store.set(self._key, os.environ.get("RANK", "0"))

    def _look(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            self._end_if_told()

    def _end_if_told(self) -> None:
        try:
            news = f"process {self._store.get(self._key).decode()}" if self._store.check([self._key]) else ""
        except RuntimeError:  # DistError and its kind
            news = "the first process"
        if news and not self._over.is_set():
            print(f"error: {news} has failed, so process {os.environ['RANK']} ends; see its log", flush=True)
            # Not sys.exit: the main thread may wait in a collective call that nobody will answer.
            os._exit(1)


_watch = _Watch()


def sharding_options(arguments: FineTuneArguments) -> dict[str, Any]:
    """Return what SFTConfig needs for ``arguments.sharding``.

    Raises FineTuneError where that kind of sharding cannot work: without a GPU (Accelerate would silently train
    without it on a CPU), in one process, without DeepSpeed, or with weights in 4 bits that cannot be shared out.
    """
    kind = arguments.sharding
    if kind == "none":
        return {}
    if not torch.cuda.is_available():
        raise FineTuneError(f"sharding: {kind} needs GPUs, and this machine has none; set sharding to none")
    if world_size() == 1:
        raise FineTuneError(
            f"sharding: {kind} shares a model out among several processes, and here is one; "
            "set sharding to none, or compute.instance_count or the GPUs of a node above 1"
        )
    if arguments.method == "qlora" and kind != "zero2":
        raise FineTuneError(f"sharding: {kind} cannot share out weights in 4 bits; use zero2, or the method lora")
    if kind == "fsdp":
        return {"fsdp": True, "fsdp_config": str(SHARDING / "fsdp.json")}
    if importlib.util.find_spec("deepspeed") is None:
        raise FineTuneError(f"sharding: {kind} needs DeepSpeed, which is not installed here; use fsdp")
    return {"deepspeed": str(SHARDING / f"{kind}.json")}


def unwrapped(trainer: "SFTTrainer", arguments: FineTuneArguments) -> "PreTrainedModel | None":
    """Return the trained model as it was before it was wrapped, with its adapters, whole.

    Weights that the processes shared out are gathered in the first one, into a new model on the CPU; the others get
    None. All processes must call this.
    """
    if arguments.sharding in ("none", "zero2"):
        # Without Accelerate's wrapper, which would compute in the training's precision from here on.
        return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if arguments.sharding == "zero3":
        # Its weights come in 16 bits, which is what is exported of a model of a size that needs this.
        state = trainer.model_wrapped._zero3_consolidated_16bit_state_dict()
    else:
        state = gathered(trainer.model)
    return whole_model(trainer.model, state) if is_first() else None


def gathered(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of an FSDP2 model on the CPU, whole, in the first process; an empty dict in the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def whole_model(sharded: Any, state: dict[str, torch.Tensor]) -> "PreTrainedModel":
    """Return a new model like ``sharded``, adapters included, that holds the weights ``state``."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    adapters = getattr(sharded, "peft_config", None)
    base = sharded.get_base_model() if adapters else sharded
    model = AutoModelForCausalLM.from_config(base.config, dtype=next(iter(state.values())).dtype)
    model.generation_config = base.generation_config
    if adapters:
        model = get_peft_model(model, adapters["default"])
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights() if not adapters else model.get_base_model().tie_weights()
    # A tied weight is stored once; anything else that is missing would be random.
    tied = set(getattr(base, "all_tied_weights_keys", None) or ())
    lost = [name for name in missing if not any(name.endswith(key) for key in tied)]
    if lost or unexpected:
        raise RuntimeError(f"the gathered weights do not fit the model: {lost[:3] or unexpected[:3]}")
    return model
