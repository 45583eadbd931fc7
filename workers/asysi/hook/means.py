"""Mean activation of each channel, per hook point and call: the reference of ΔSC."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from asysi.files import write_atomically

Vector = NDArray[np.float64]
Place = tuple[str, int]
"""Hook point and call index."""


class ChannelMeans:
    """Running means over all finite rows of each hook point and call, in one file that survives restarts.

    Calls of a module are kept apart, since replacing one of them by the mean of all would be another change.
    A restarted worker continues from the last write; at most one packet counts twice.

    Args:
        file: safetensors; a tensor [1 + width] per place, with the number of rows and their mean. A file that
            cannot be read is replaced.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._means = _read(file)

    def add(self, place: Place, values: NDArray[np.float32]) -> None:
        """Add rows [n, width]; rows that are not finite, or of another width than the first, are left out."""
        sums = values.sum(axis=0, dtype=np.float64)
        count = len(values)
        if not np.isfinite(sums).all():
            finite = values[np.isfinite(values).all(axis=1)]
            sums, count = finite.sum(axis=0, dtype=np.float64), len(finite)
        known = self._means.get(place)
        if known is None:
            known = self._means[place] = np.zeros(1 + values.shape[1])
        if not count or len(known) != 1 + values.shape[1]:
            return
        known[0] += count
        known[1:] += (sums - count * known[1:]) / known[0]

    def of(self, place: Place) -> Vector | None:
        """Return the mean [width] of all rows so far; None if there are none."""
        known = self._means.get(place)
        return None if known is None or not known[0] else known[1:]

    def write(self) -> None:
        """Write the file atomically."""
        tensors = {f"{call} {point}": known for (point, call), known in self._means.items()}
        write_atomically(self._file, lambda temporary: save_file(tensors, temporary))


def _read(file: Path) -> dict[Place, Vector]:
    try:
        with safe_open(str(file), "np") as opened:
            return {_place(name): np.array(opened.get_tensor(name), np.float64) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError):
        return {}


def _place(name: str) -> Place:
    call, _, point = name.partition(" ")
    return point, int(call)
