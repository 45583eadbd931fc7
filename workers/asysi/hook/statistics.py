"""Running statistics per hook point, over every 16th row."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asysi.bus.packet import ActivationPacket, Kind
from asysi.files import write_atomic

STRIDE = 16
"""Every STRIDE-th row of a hook point's stream is used."""
_PENDING_ROWS = 256

Vector = NDArray[np.float64]


@dataclass
class Moments:
    """Count, mean and variance of rows, merged by the pairwise update of Chan, Golub and LeVeque (1979)."""

    rows: int = 0
    width: int = 0
    """Of the first row; 0 before it. Rows of another width have no place in [width] and are only counted."""
    other_width: int = 0
    """Rows of another width; they are excluded from all other statistics."""
    non_finite: int = 0
    """Rows with NaN or infinity; they are excluded from all other statistics."""
    mean: Vector = field(default_factory=lambda: np.zeros(0))
    """[width]"""
    squares: Vector = field(default_factory=lambda: np.zeros(0))
    """[width] Sum of squared deviations from the mean."""
    least: float = np.inf
    most: float = -np.inf
    norm: float = 0.0
    """Mean L2 norm of a row."""

    def add(self, block: NDArray[np.float32]) -> None:
        """Add rows [n, width]."""
        finite = np.isfinite(block).all(axis=1)
        self.non_finite += int(len(block) - finite.sum())
        values = block[finite].astype(np.float64)
        count = len(values)
        if count == 0:
            return
        mean = values.mean(axis=0)
        squares = ((values - mean) ** 2).sum(axis=0)
        total, gap = self.rows + count, mean - (self.mean if self.rows else 0.0)
        self.squares = (self.squares if self.rows else 0.0) + squares + gap**2 * (self.rows * count / total)
        self.mean = (self.mean if self.rows else 0.0) + gap * (count / total)
        norms = np.sqrt((values**2).sum(axis=1))
        self.norm += (float(norms.mean()) - self.norm) * (count / total)
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))
        self.rows = total

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as JSON; the inverse of `from_json`."""
        return {
            "rows": self.rows,
            "nonFinite": self.non_finite,
            "otherWidth": self.other_width,
            "meanL2": self.norm,
            "min": self.least if self.rows else None,
            "max": self.most if self.rows else None,
            "mean": self.mean.tolist(),
            "variance": (self.squares / max(1, self.rows)).tolist(),
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Moments":
        """Return the statistics saved by `to_json`.

        Raises:
            KeyError, TypeError, ValueError: `saved` does not have the expected format.
        """
        rows = int(saved["rows"])
        mean, variance = (np.array(saved[name], np.float64) for name in ("mean", "variance"))
        if mean.ndim != 1 or mean.shape != variance.shape or bool(rows) != bool(len(mean)):
            raise ValueError(f"mean {mean.shape} and variance {variance.shape} of {rows} rows do not fit")
        return cls(
            rows=rows,
            width=len(mean),
            other_width=int(saved.get("otherWidth", 0)),
            non_finite=int(saved["nonFinite"]),
            mean=mean,
            squares=variance * rows,
            least=float(saved["min"]) if rows else np.inf,
            most=float(saved["max"]) if rows else -np.inf,
            norm=float(saved["meanL2"]),
        )


class Statistics:
    """Statistics of all hook points, in one JSON file that is kept across restarts and attempts.

    Rows are selected by their index in each hook point's stream, independent of how they were packed. Rows
    that a killed worker processed after its last write are lost; the counts do not include them. The width
    of a hook point is that of its first row.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._moments = _read(path)
        self._pending: dict[str, list[NDArray[np.float32]]] = {}

    def observe(self, packet: ActivationPacket) -> None:
        """Add every 16th row of the packet."""
        if int(packet.header["kind"]) == Kind.PARAMETER_GRADIENT:
            return  # its row is a record of statistics
        first = -int(packet.header["rows_before"]) % STRIDE
        if first >= len(packet.rows):
            return
        few = packet.select(slice(first, None, STRIDE))
        moments = self._moments.setdefault(packet.point, Moments())
        width = few.payload.shape[1]
        if moments.width not in {0, width}:
            moments.other_width += len(few.rows)
            return
        moments.width = width
        pending = self._pending.setdefault(packet.point, [])
        pending.append(few.to_float32())
        if sum(map(len, pending)) >= _PENDING_ROWS:
            self._merge(packet.point)

    def _merge(self, point: str) -> None:
        if blocks := self._pending.pop(point, None):
            self._moments[point].add(np.concatenate(blocks))

    def write(self) -> None:
        """Write the file atomically."""
        for point in list(self._pending):
            self._merge(point)
        content = {
            "sampled": f"one row in {STRIDE} of each hook point's captured rows",
            "points": {point: moments.to_json() for point, moments in self._moments.items()},
        }
        write_atomic(self._path, json.dumps(content))


def _read(path: Path) -> dict[str, Moments]:
    try:
        points = json.loads(path.read_text())["points"]
        return {point: Moments.from_json(saved) for point, saved in points.items()}
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError, ValueError, AttributeError):  # unknown format: start over rather than fail
        return {}
