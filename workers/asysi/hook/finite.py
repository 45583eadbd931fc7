"""Rows with NaN or infinite elements, and values cut off, counted where no restart loses the count."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asysi.bus.mailbox import HookGauge
from asysi.bus.packet import E4M3, NOT_FINITE, PARAMETER_STATISTICS, ActivationPacket, Dtype, Kind
from asysi.bus.stream import Consumer, Producer


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
    """Return how many rows of a packet hold NaN or infinity. A packet without any costs one pass."""
    dtype = Dtype(int(packet.header["dtype"]))
    if int(packet.header["kind"]) == Kind.PARAMETER_GRADIENT:
        counts = packet.to_float32()[
            :, [PARAMETER_STATISTICS.index(one) for one in ("nan_count", "inf_count")]
        ]
        return int((counts > 0).any(axis=1).sum())
    bits = _BITS.get(dtype)
    if bits is None:
        return _quantised_not_finite(packet, dtype)
    if not packet.payload.size:
        return 0
    magnitude: NDArray[Any] = packet.payload.view(bits.view) & bits.sign_off
    if int(magnitude.max()) < bits.infinity:
        return 0
    return int((magnitude >= bits.infinity).any(axis=1).sum())


def _quantised_not_finite(packet: ActivationPacket, dtype: Dtype) -> int:
    if packet.table is not None:
        return int((packet.payload == NOT_FINITE).any(axis=1).sum())
    bad = np.zeros(len(packet.rows), np.bool_)
    if packet.scales is not None:
        bad |= ~np.isfinite(packet.scales)
    if dtype is Dtype.FP8_E4M3:
        bad |= np.isnan(E4M3)[packet.payload].any(axis=1)
    return int(bad.sum())


class Saturated:
    """Keeps, as gauges of the capture stream's consumer `hook`, how many values int8 by channel cut off.

    What the host's device has converted says it in its captured packets, what this worker converts is counted
    by the producer. A kill between a packet and its gauge loses the count of that packet, or counts it twice,
    no more.

    Args:
        captured: the capture stream.
        published: the producer that converts.
        gauges: as a predecessor left them, by hook point.
    """

    def __init__(
        self, captured: Consumer, published: Producer, gauges: Mapping[str, Sequence[float]]
    ) -> None:
        self._captured, self._published = captured, published
        self._before = {point: int(row[HookGauge.SATURATED]) for point, row in gauges.items()}
        self._on_device: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    def observe(self, packet: ActivationPacket) -> None:
        """Take over the packet's count, and the producer's for its hook point."""
        if on_device := int(packet.header["saturated"]):
            self._on_device[packet.point] = self._on_device.get(packet.point, 0) + on_device
        count = self._published.saturated(packet.point) + self._on_device.get(packet.point, 0)
        if count != self._seen.get(packet.point, 0):
            self._seen[packet.point] = count
            whole = self._before.get(packet.point, 0) + count
            self._captured.gauge(packet.point, HookGauge.SATURATED, float(whole))


class NonFiniteCounter:
    """Keeps the counts as gauges of the capture stream's consumer `hook`.

    If the worker is killed, at most one packet is not counted or counted twice.

    Args:
        captured: the capture stream.
        gauges: gauges left by a predecessor, by hook point.
    """

    def __init__(self, captured: Consumer, gauges: Mapping[str, Sequence[float]]) -> None:
        self._captured = captured
        self._counts = {point: int(row[HookGauge.NOT_FINITE]) for point, row in gauges.items()}

    def observe(self, packet: ActivationPacket) -> None:
        """Count a captured packet's rows."""
        if found := rows_not_finite(packet):
            count = self._counts[packet.point] = self._counts.get(packet.point, 0) + found
            self._captured.gauge(packet.point, HookGauge.NOT_FINITE, float(count))
