"""How much memory a training takes, estimated before it starts, to decide whether activations must be recomputed."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROOM = 0.8  # of what is free; the rest is for fragments, the data, and what the estimate leaves out
GIGABYTE = 1e9


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. ``state``: weights, gradients and AdamW's moments; the others: of one forward pass."""

    state: int
    activations: int
    activations_checkpointed: int
    logits: int

    def total(self, checkpointing: bool) -> int:
        """Return the peak in bytes."""
        activations = self.activations_checkpointed if checkpointing else self.activations
        return self.state + activations + self.logits


def estimate(
    model: "PreTrainedModel",
    *,
    dtype: torch.dtype,
    compute: torch.dtype,
    adapters: int | None,
    tokens: int,
    longest: int,
    quadratic: bool,
    shared: tuple[int, int] = (1, 1),
) -> Memory:
    """Return the estimate for a causal transformer with gated MLPs, such as Phi-3 or Llama.

    ``dtype``: of the weights; ``compute``: of the matrix products. ``adapters``: rank, None when every weight is
    trained. ``tokens``, of which the longest record has ``longest``, go through a forward pass together;
    ``quadratic``: the attention keeps its weights for the way back (eager and its like), as flash and sdpa do not.
    ``shared``: processes that share out the weights, and the gradients with the optimiser's state (ZeRO).

    State (Rajbhandari et al. 2020, ZeRO, section 3.1): each trained weight has an fp32 gradient and two fp32 moments;
    under autocast a copy in ``compute`` of each weight that is stored otherwise.
    """
    config = model.config.get_text_config()
    width, vocabulary, layers = config.hidden_size, config.vocab_size, config.num_hidden_layers
    each = compute.itemsize
    count = sum(p.numel() for p in model.parameters())
    if getattr(model, "is_loaded_in_4bit", False):
        weights = sum(p.numel() * p.itemsize for p in model.parameters())
    else:
        weights = count * dtype.itemsize + (count * each if dtype != compute else 0)
    trained = count if adapters is None else _adapter_weights(model, adapters)
    state = weights // shared[0] + trained * (4 + 8) // shared[1] + (trained * 4 if adapters else 0)
    layer = _layer(config, each, longest if quadratic else 0) * tokens
    return Memory(
        state=state,
        activations=layers * layer + tokens * width * each,
        # What is kept is each layer's input (Korthikanti et al. 2022, section 5: 2 s b h L); one layer is recomputed.
        activations_checkpointed=layers * tokens * width * 4 + layer,
        # fp32 logits, their gradient and the copy in the compute format, in pieces of 2**26.
        logits=min(tokens * vocabulary, 2**26) * (4 + 4 + each),
    )


def _layer(config: "object", each: int, row: int) -> int:
    """Return the bytes that a decoder layer keeps of each token for the way back.

    The terms of Korthikanti et al. 2022 (Reducing Activation Recomputation in Large Transformer Models, section 4.1,
    s b h (34 + 5 a s / h) bytes for GPT in 16 bits with dropout), written again for RMSNorm and a gated MLP:
    two norms that keep their input and the normalised one, in fp32; the inputs of the four products; queries, keys and
    values once; the attention's output; of the MLP gate, its activation, up and their product. Without a flash kernel
    the attention keeps its softmax, and its masked copy for dropout: heads * row. ``row`` is the longest record.
    """
    width, inner = config.hidden_size, config.intermediate_size  # type: ignore[attr-defined]
    heads = config.num_attention_heads  # type: ignore[attr-defined]
    size = getattr(config, "head_dim", None) or width // heads
    queries = heads * size
    keys = (getattr(config, "num_key_value_heads", None) or heads) * size
    norms = 2 * (4 + 4) * width
    attention = each * (width + 2 * queries + 2 * keys + queries)
    mlp = each * (width + 4 * inner)
    return norms + attention + mlp + each * heads * row


def _adapter_weights(model: "PreTrainedModel", rank: int) -> int:
    """Return the number of weights of adapters on every linear layer but the head."""
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return sum(rank * (m.in_features + m.out_features) for m in linear)


def available() -> int:
    """Return the bytes that a training may take on the device: the GPU's, else the machine's or the container's.

    What this process has on the GPU already counts as free: that is a base in 4 bits, which is in the estimate too.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0]) + torch.cuda.memory_reserved()
    free = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        free.append(int(limit) - int(used))
    return min(free) if free else 2**62  # not Linux: nothing is known, so nothing is limited


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
