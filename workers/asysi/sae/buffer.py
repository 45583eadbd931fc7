"""The mixing buffer: returns rows in random order, each exactly once.

Training on an unshuffled stream costs two to four points of explained variance, because neighbouring tokens
are similar.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BufferSize:
    """Determines when a buffer is filled: both counts are reached, or the cap is."""

    rows: int
    sequences: int
    cap: int
    """Maximum number of rows; takes precedence over both counts."""

    def filled(self, rows: int, sequences: int) -> bool:
        """Return whether `rows` rows of `sequences` sequences are enough."""
        return rows >= self.cap or (rows >= self.rows and sequences >= self.sequences)


class MixingBuffer:
    """A random-replacement reservoir of rows.

    It fills first. Then every batch of new rows replaces a batch of random rows. At the end of the stream it
    drains, also in random order.

    Args:
        width: elements per row.
        dtype: dtype of stored elements.
        rng: random generator; its owner is responsible for checkpointing it.
    """

    def __init__(self, width: int, dtype: torch.dtype, rng: np.random.Generator) -> None:
        self._slots = torch.empty(0, width, dtype=dtype)
        self._rng = rng
        self._size = 0
        self.sequences = 0
        """Number of sequences seen while filling."""
        self.floor: int | None = None
        """Minimum number of rows to keep once it is filled; None before."""

    def __len__(self) -> int:
        return self._size

    @property
    def rows(self) -> Tensor:
        """View of the stored rows, [len, width]."""
        return self._slots[: self._size]

    def add(self, rows: Tensor, sequences: int, size: BufferSize) -> None:
        """Add rows [n, width] that belong to `sequences` further sequences."""
        needed = self._size + len(rows)
        if needed > len(self._slots):
            grown = torch.empty(
                max(needed, min(2 * needed, size.cap + needed // 8)),
                *self._slots.shape[1:],
                dtype=self._slots.dtype,
            )
            grown[: self._size] = self.rows
            self._slots = grown
        self._slots[self._size : needed] = rows
        self._size = needed
        if self.floor is None:
            self.sequences += sequences
            if size.filled(self._size, self.sequences):
                self.floor = self._size

    def draw(self, batch: int) -> Tensor | None:
        """Remove and return `batch` random rows, or None if fewer rows than the floor would remain."""
        if self.floor is None or self._size - batch < self.floor:
            return None
        return self._take(batch)

    def drain(self, batch: int) -> Iterator[Tensor]:
        """Remove and yield all rows in random order, in batches of about equal size, at most `batch` rows."""
        while self._size:
            yield self._take(-(-self._size // -(-self._size // batch)))

    def clear(self) -> int:
        """Discard all rows and return how many there were."""
        dropped, self._size = self._size, 0
        return dropped

    def restore(self, rows: Tensor, sequences: int, floor: int | None) -> None:
        """Restore the contents of a checkpoint."""
        self._slots, self._size = rows, len(rows)
        self.sequences, self.floor = sequences, floor

    def _take(self, count: int) -> Tensor:
        """Remove `count` random rows; rows from the end fill the holes."""
        chosen = self._rng.choice(self._size, count, replace=False, shuffle=False)
        picked = torch.from_numpy(chosen)
        taken = self._slots[picked]
        rest = self._size - count
        stays = np.ones(count, dtype=bool)
        stays[chosen[chosen >= rest] - rest] = False
        self._slots[picked[picked < rest]] = self._slots[rest + torch.from_numpy(np.flatnonzero(stays))]
        self._size = rest
        return taken
