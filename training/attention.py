"""Attention over several records laid end to end in one row, each seeing only itself, without a mask of the whole row.

``transformers`` keeps the records of a packed row apart with a mask of (row, row), so the work grows with the square of
the row. Here each record is attended to alone. Registered as ``documents``, for training on a CPU (choices.py); all
else (padding, a cache) goes to ``sdpa``.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "documents"


def register() -> None:
    """Make ``attn_implementation="documents"`` known to transformers."""
    AttentionInterface.register(NAME, documents_attention)
    AttentionMaskInterface.register(NAME, _mask)


def documents_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output, (1, tokens, heads, head size); a record begins where ``position_ids`` is 0.

    ``query``: (1, heads, tokens, head size); ``key`` and ``value`` may have fewer heads. ``cu_seq_lens_q``, if given,
    are the edges of the records, as TRL's collator computes them.
    """
    edges = kwargs.get("cu_seq_lens_q")
    if attention_mask is not None or query.shape[0] != 1 or query.shape[2] != key.shape[2] or edges is None:
        if position_ids is not None and attention_mask is None and _restarts(position_ids):
            raise ValueError("several records in a row need cu_seq_lens_q, which the padding-free collator gives")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _each_alone(query, key, value, edges, scale, dropout, sliding_window), None


def _each_alone(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edges: torch.Tensor,
    scale: float,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    """Attend to one record after the other, in three matrix products and without padding.

    Eight records of 256 tokens, 8 heads of 64, forward and backward in bf16: 41 ms of CPU time; with sdpa for each
    record 83, whose backward is slow on a CPU; as a padded batch 71 to 114; eager over four rows of 512, 323.
    """
    lengths = edges.diff().tolist()
    heads, size = query.shape[1], query.shape[-1]
    causal = _later(max(lengths), window, query)
    outputs = []
    for q, k, v in zip(*(x[0].split(lengths, dim=1) for x in (query, key, value)), strict=True):
        length = q.shape[1]
        mask = causal[:length, :length].expand(heads, length, length)
        weights = functional.softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale), dim=-1)
        outputs.append(torch.bmm(functional.dropout(weights, dropout), v).transpose(0, 1))
    return torch.cat(outputs).view(1, -1, heads, size)


def _later(length: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Return (length, length) of 0, and -inf where a token may not look: ahead, and ``window`` tokens back or more."""
    mask = like.new_full((length, length), float("-inf")).triu_(1)
    if window is not None and length > window:
        mask += like.new_full((length, length), float("-inf")).tril_(-window)
    return mask


def _restarts(position_ids: torch.Tensor) -> bool:
    return bool((position_ids[:, 1:] <= position_ids[:, :-1]).any())


def _mask(*arguments: Any, attention_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor | None:
    """Return no mask for a row without padding; ``documents_attention`` finds the records itself."""
    if attention_mask is None and options.get("q_length") == options.get("kv_length"):
        return None
    return sdpa_mask(*arguments, attention_mask=attention_mask, **options)
