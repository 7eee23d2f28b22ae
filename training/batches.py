"""Records of like length side by side, padded, for measuring without training."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Row = tuple[list[int], list[int]]  # token ids and labels
TOKENS_PER_BATCH = 4096  # with padding; keeps the logits of a 128k vocabulary under 2 GB


def batches(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows, the shortest first, in batches of at most TOKENS_PER_BATCH tokens once padded."""
    cut: list[list[Row]] = []
    for row in sorted(rows, key=lambda each: len(each[0])):
        if not cut or (len(cut[-1]) + 1) * len(row[0]) > TOKENS_PER_BATCH:
            cut.append([])
        cut[-1].append(row)
    return cut


def padded(rows: list[list[int]], value: int) -> "torch.Tensor":
    """Return the rows as one tensor (rows, longest), filled with ``value`` on the right."""
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
