"""How rows are quantised: the reference in numpy, and the rule that freezes the ranges of channels. Pure.

The ring does the same in one native pass (`native/include/asysi/convert.hpp`), bit for bit; what it makes is
read back by `ActivationPacket.to_float32`. Bounds of the error stand with `Quantization`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asysi.bus.packet import NOT_FINITE, Dtype, Quantization, read_back

Rows = NDArray[np.float32]
"""[rows, width]"""
Table = NDArray[np.float32]
"""[2, width]: mean and scale of each channel."""

WIRE = {
    "none": Quantization.NONE,
    "bf16": Quantization.BF16,
    "fp8": Quantization.FP8,
    "int8": Quantization.INT8_CHANNEL,
}
"""What the spec's `capture.quantization` means on the bus."""
FREEZE_ROWS = 4096
"""Rows of a hook point that its ranges are measured on."""
HEADROOM = 1.25
"""A channel's range over the largest deviation from the mean that was measured."""
LEAST_RANGE = 0.25
"""A channel's range at least, over that of the median channel that varies: it may have been silent so far."""
_TINY = np.finfo(np.float32).tiny
_LARGEST_E4M3 = np.float32(448)


class Quantised(NamedTuple):
    """Rows as a packet carries them."""

    payload: NDArray[np.generic]
    """[rows, width]: float32, uint16 with bfloat16 bits, uint8 with E4M3 bits, or int8."""
    scales: NDArray[np.float32] | None = None
    """[rows], of fp8 and of int8 with a scale per row."""
    table: Table | None = None
    """[2, width], of int8 by channel."""
    saturated: NDArray[np.int64] | None = None
    """[rows] values of each row outside the ranges, of int8 by channel."""


def quantise(rows: Rows, quantization: Quantization, table: Table | None = None) -> Quantised:
    """Return `rows` as `quantization` stores them.

    Args:
        rows: [rows, width].
        quantization: how.
        table: of int8 by channel, which needs one.

    Raises:
        ValueError: int8 by channel without a table of this width.
    """
    match quantization:
        case Quantization.NONE:
            return Quantised(rows)
        case Quantization.BF16:
            return Quantised(_bfloat16(rows))
        case Quantization.FP8:
            return _fp8(rows)
        case Quantization.INT8:
            return _int8(rows)
        case Quantization.INT8_CHANNEL:
            if table is None or table.shape != (2, rows.shape[1]):
                raise ValueError("int8 by channel needs a table [2, width]")
            return _int8_by_channel(rows, table)


def round_trip(rows: Rows, quantization: Quantization, table: Table | None = None) -> Rows:
    """Return what readers get of `rows` [rows, width] that travelled as `quantization`."""
    made = quantise(rows, quantization, table)
    return read_back(made.payload, quantization.dtype or Dtype.FLOAT32, made.scales, made.table)


def _bfloat16(rows: Rows) -> NDArray[np.uint16]:
    bits = rows.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    quiet = (bits >> 16).astype(np.uint16) | np.uint16(0x40)
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded)


def _scales(rows: Rows, largest: np.float32) -> NDArray[np.float32]:
    """Return max |finite x| / `largest` of each row, 0 where that is not a normal float32."""
    magnitude = np.where(np.isfinite(rows), np.abs(rows), np.float32(0)).max(axis=1, initial=0)
    scales = np.asarray(magnitude / largest, np.float32)
    return np.where(scales >= _TINY, scales, np.float32(0))


def _fp8(rows: Rows) -> Quantised:
    scales = _scales(rows, _LARGEST_E4M3)
    divisor = np.where(scales > 0, scales, np.float32(np.inf))[:, None]
    with np.errstate(invalid="ignore", under="ignore"):
        bits = np.asarray(rows / divisor, np.float32).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    normal = ((magnitude + np.uint32(0x7FFFF) + ((magnitude >> 20) & 1)) >> 20).astype(np.int64) - (120 << 3)
    with np.errstate(invalid="ignore"):
        small = np.rint(magnitude.view(np.float32) * np.float32(512))  # steps of 2^-9
    is_small = magnitude < 0x3C800000  # 2^-6
    code = np.minimum(np.where(is_small, np.where(is_small, small, 0).astype(np.int64), normal), 0x7E)
    code = np.where(np.isfinite(rows), code, 0x7F).astype(np.uint8)
    sign = ((rows.view(np.uint32) >> 24) & 0x80).astype(np.uint8)
    return Quantised(code | sign, scales)


def _int8(rows: Rows) -> Quantised:
    scales = _scales(rows, np.float32(127))
    magnitude = np.where(np.isfinite(rows), np.abs(rows), np.float32(0)).max(axis=1, initial=0)
    inverse = np.where(
        scales > 0, np.float32(127) / np.where(scales > 0, magnitude, np.float32(1)), np.float32(0)
    )
    with np.errstate(invalid="ignore", over="ignore"):
        wanted = np.where(np.isnan(rows) | (scales == 0)[:, None], np.float32(0), rows * inverse[:, None])
    return Quantised(np.clip(np.rint(wanted), -127, 127).astype(np.int8), scales)


def _int8_by_channel(rows: Rows, table: Table) -> Quantised:
    finite = np.isfinite(rows)
    with np.errstate(invalid="ignore", over="ignore"):
        wanted = (rows - table[0]) / table[1]
    outside = finite & (np.abs(wanted) >= np.float32(127.5))
    inside = np.clip(np.rint(np.where(finite, wanted, np.float32(0))), -127, 127).astype(np.int8)
    payload = np.where(finite, inside, np.int8(NOT_FINITE))
    return Quantised(payload, table=table, saturated=outside.sum(axis=1))


class Calibration:
    """Measures the first `FREEZE_ROWS` rows of a hook point, whose ranges are then frozen.

    Rows with an element that is not finite are passed over and not counted.
    """

    def __init__(self) -> None:
        self.rows = 0
        """Rows measured."""
        self._sum = np.zeros(0)
        self._least = np.zeros(0, np.float32)
        self._most = np.zeros(0, np.float32)

    def add(self, rows: Rows) -> None:
        """Measure rows [n, width], all of one width, until there are enough."""
        rows = rows[np.isfinite(rows).all(axis=1)][: FREEZE_ROWS - self.rows]
        if not len(rows):
            return
        least, most, total = rows.min(axis=0), rows.max(axis=0), rows.sum(axis=0, dtype=np.float64)
        if self.rows:
            least, most = np.minimum(least, self._least), np.maximum(most, self._most)
            total = total + self._sum
        self._least, self._most, self._sum = least, most, total
        self.rows += len(rows)

    @property
    def width(self) -> int:
        """Channels, 0 before the first row."""
        return len(self._sum)

    def table(self) -> Table | None:
        """Return the frozen mean and scale of each channel; None before there are enough rows.

        The mean is that of the rows. The scale is a 127th of the range: the largest deviation from the mean
        times `HEADROOM`, and at least `LEAST_RANGE` of the median channel's, of those that vary. Where none
        varies there is no range: None.
        """
        if self.rows < FREEZE_ROWS:
            return None
        mean = (self._sum / self.rows).astype(np.float32)
        centre = mean.astype(np.float64)
        reach = HEADROOM * np.maximum(self._most - centre, centre - self._least)
        varies = self._most > self._least
        if not varies.any():
            return None
        reach = np.maximum(reach, LEAST_RANGE * np.median(reach[varies]))
        return np.stack([mean, np.maximum(reach / 127, _TINY).astype(np.float32)])
