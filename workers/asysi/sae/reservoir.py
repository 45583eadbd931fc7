"""The evaluation set: a uniform sample of the held-out rows of the whole run, with their origins."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NOWHERE = -1
"""Value of every column of an unknown origin."""


class Reservoir:
    """Keeps `size` rows of a stream, each with equal probability (Vitter 1985, algorithm R).

    The selection does not depend on how the rows were packed.

    Args:
        size: maximum number of rows.
        width: elements per row.
        dtype: dtype of the elements.
        seed: seed of the selection.
    """

    def __init__(self, size: int, width: int, dtype: torch.dtype, seed: list[int]) -> None:
        self._size = size
        self._rng = np.random.default_rng(seed)
        self.seen = 0
        """Number of rows offered."""
        self.rows = torch.empty(0, width, dtype=dtype)
        """[m, width]"""
        self.origin = torch.empty(0, 3, dtype=torch.int64)
        """[m, 3]: input row (64 bits as signed), position in the sequence, call index."""

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: Tensor, origin: NDArray[np.int64]) -> None:
        """Offer rows [n, width] and their origins [n, 3]; the data is copied."""
        count, kept = len(rows), len(self.rows)
        free = min(self._size - kept, count)
        places = torch.from_numpy(origin)
        if free:
            self.rows = torch.cat([self.rows, rows[:free]])
            self.origin = torch.cat([self.origin, places[:free]])
        numbers = self.seen + np.arange(free, count)
        self.seen += count
        slots = (self._rng.random(count - free) * (numbers + 1)).astype(np.int64)
        chosen = np.flatnonzero(slots < self._size)
        if not len(chosen):
            return
        # If several rows get the same slot, the last one is kept.
        slot, last = np.unique(slots[chosen][::-1], return_index=True)
        source = torch.from_numpy(free + chosen[len(chosen) - 1 - last])
        self.rows[torch.from_numpy(slot)] = rows[source]
        self.origin[torch.from_numpy(slot)] = places[source]

    def state(self) -> dict[str, Any]:
        """Return the JSON-serialisable state; the rest is in `rows` and `origin`."""
        return {"seen": self.seen, "rng": self._rng.bit_generator.state}

    def restore(self, rows: Tensor, origin: Tensor | None, words: dict[str, Any]) -> None:
        """Restore a state. Without origins, they are set to NOWHERE."""
        self.rows = rows.clone()
        self.origin = (
            torch.full((len(rows), 3), NOWHERE, dtype=torch.int64) if origin is None else origin.clone()
        )
        self.seen = int(words.get("seen", len(rows)))
        if "rng" in words:
            self._rng.bit_generator.state = words["rng"]
