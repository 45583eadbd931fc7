"""Counts rows with NaN or infinite elements per hook point; the counts survive restarts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asysi.bus.mailbox import HookGauge
from asysi.bus.packet import ActivationPacket, Dtype
from asysi.bus.stream import Consumer


class _Bits(NamedTuple):
    """Bit layout of a floating-point type."""

    view: str
    """Unsigned integer type of the same size."""
    sign_off: int
    """Mask of all bits but the sign."""
    infinity: int
    """Bits of infinity; larger values are NaN."""


_BITS = {
    Dtype.FLOAT32: _Bits("<u4", 0x7FFFFFFF, 0x7F800000),
    Dtype.BFLOAT16: _Bits("<u2", 0x7FFF, 0x7F80),
    Dtype.FLOAT16: _Bits("<u2", 0x7FFF, 0x7C00),
}


def rows_not_finite(packet: ActivationPacket) -> int:
    """Return how many rows of a packet contain NaN or infinity; takes one pass if there are none."""
    bits = _BITS.get(Dtype(int(packet.header["dtype"])))
    if bits is None:
        return 0 if packet.scales is None else int((~np.isfinite(packet.scales)).sum())
    if not packet.payload.size:
        return 0
    magnitude: NDArray[Any] = packet.payload.view(bits.view) & bits.sign_off
    if int(magnitude.max()) < bits.infinity:
        return 0
    return int((magnitude >= bits.infinity).any(axis=1).sum())


class NotFinite:
    """Keeps the counts as gauges of the capture stream's consumer `hook`.

    If the worker is killed, at most one packet is not counted or counted twice.

    Args:
        captured: the capture stream.
        gauges: gauges left by a predecessor, by hook point.
    """

    def __init__(self, captured: Consumer, gauges: Mapping[str, Sequence[float]]) -> None:
        self._captured = captured
        self._counts = {point: int(row[HookGauge.NOT_FINITE]) for point, row in gauges.items()}

    def look(self, packet: ActivationPacket) -> None:
        """Count a captured packet's rows."""
        if found := rows_not_finite(packet):
            count = self._counts[packet.point] = self._counts.get(packet.point, 0) + found
            self._captured.gauge(packet.point, HookGauge.NOT_FINITE, float(count))
