"""Lines of a block, without an object for each: where they begin and end, and bytes of those that are wanted."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

LINE_FEED, OPENING, CLOSING = b"\n{}"


class Lines:
    """The lines of ``data``, each of which ends in a line feed."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._bytes = np.frombuffer(data, np.uint8)
        self._ends = np.flatnonzero(self._bytes == LINE_FEED) + 1

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def shortest(self) -> int:
        """Bytes of the shortest line, its end included; 0 if there is none."""
        return int(np.diff(self._ends, prepend=0).min()) if len(self._ends) else 0

    def are_objects(self) -> bool:
        """Whether each line begins and ends with a brace; an empty one does not."""
        if self.shortest < 2:
            return False
        starts = np.concatenate(([0], self._ends[:-1]))
        return bool((self._bytes[starts] == OPENING).all() and (self._bytes[self._ends - 2] == CLOSING).all())

    def select(self, wanted: Array) -> bytes:
        """The lines whose place in ``wanted`` (bool) is true, in their order."""
        if wanted.all():
            return self.data
        # Neighbours are taken together: mostly one line in ten is left out.
        steps = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
        bounds = np.concatenate(([0], self._ends))[steps].tolist()
        view = memoryview(self.data)
        return b"".join(view[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True))
