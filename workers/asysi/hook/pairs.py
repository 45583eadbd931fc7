"""Joins gradients to the activations of the same tokens, and scores each pair.

Activations of a step arrive before its gradients. They are kept in a bounded window; a gradient whose
activation is not in it (it was dropped, or the worker was restarted in between) is published without scores
and counted as a miss.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from asysi.bus.mailbox import HookGauge
from asysi.bus.packet import ActivationPacket, Kind, PacketFlag, split_account
from asysi.bus.stream import Consumer
from asysi.hook.means import ChannelMeans

STEPS = 1
"""Steps that the window holds: a step's gradients arrive before the activations of the next one."""
Key = tuple[str, int, int, int]
"""Hook point, attempt, step, call index."""


@dataclass(slots=True)
class _CallRows:
    """Activations of one call, in the order of their packets."""

    packets: list[ActivationPacket] = field(default_factory=list)
    """Copies."""
    size: int = 0
    """Bytes of rows and payloads."""
    index: "_TokenIndex | None" = None
    """Made by the first `find` after the last packet."""

    def add(self, packet: ActivationPacket) -> int:
        """Keep a packet; return its bytes."""
        size = packet.payload.nbytes + packet.rows.nbytes
        self.packets.append(packet)
        self.size, self.index = self.size + size, None
        return size

    def find(self, tokens: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Return which tokens are there [n], and the activations [found, width] of those.

        Only the rows found are converted: a call with as many packets of gradients as of activations would
        otherwise be converted once for each of them.
        """
        if self.index is None:
            self.index = _TokenIndex(self.packets)
        found, rows = self.index.find(tokens)
        owners = np.searchsorted(self.index.starts, rows, side="right") - 1
        values = np.empty((len(rows), self.packets[0].payload.shape[1]), np.float32)
        for number in np.unique(owners):
            mine = owners == number
            part = self.packets[number].select(rows[mine] - self.index.starts[number])
            values[mine] = part.to_float32()
        return found, values


class _TokenIndex:
    """Where the rows of a call's tokens are, over all of its packets."""

    def __init__(self, packets: Sequence[ActivationPacket]) -> None:
        tokens = np.concatenate([_tokens(packet) for packet in packets])
        self._order = np.argsort(tokens, kind="stable")
        self._sorted = tokens[self._order]
        self.starts = np.cumsum([0, *(len(packet.rows) for packet in packets)])
        """Number of the first row of each packet, and of all rows."""

    def find(self, tokens: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Return which tokens are there [n], and the row numbers [found] of those."""
        at = np.minimum(np.searchsorted(self._sorted, tokens), len(self._sorted) - 1)
        found = self._sorted[at] == tokens
        return found, self._order[at[found]]


class PairWindow:
    """The window of activations, and the scores of the gradients that are joined to them.

    Args:
        limit: maximum bytes of activations; above it those of the oldest calls are given up.
        means: of the activations.
        missed: is told the account and the number of its rows whose activation is missing.
    """

    def __init__(self, limit: int, means: ChannelMeans, missed: Callable[[str, int], None]) -> None:
        self._limit, self._means, self._missed = limit, means, missed
        self._kept: OrderedDict[Key, _CallRows] = OrderedDict()
        self.size = 0
        """Bytes of activations held."""

    def add(self, packet: ActivationPacket) -> None:
        """Keep a copy of a packet of activations; others, and recomputed ones, are ignored."""
        header = packet.header
        if int(header["kind"]) != Kind.ACTIVATION or int(header["flags"]) & PacketFlag.RECOMPUTED:
            return
        key = _key(packet)
        self._means.add((key[0], key[3]), packet.to_float32())
        self._forget(int(header["attempt"]), int(header["step"]))
        self.size += self._kept.setdefault(key, _CallRows()).add(_copy(packet))
        while self.size > self._limit and self._kept:
            self.size -= self._kept.popitem(last=False)[1].size

    def score(self, packet: ActivationPacket) -> NDArray[np.float32]:
        """Return ⟨a, g⟩ and ΔSC = −⟨a − ā, g⟩ of each row, [rows, 2]; NaN where the activation is missing.

        ā is the mean of all activations of this hook point and call so far, those of this step included.
        """
        scores = np.full((len(packet.rows), 2), np.nan, np.float32)
        self.miss(packet, len(packet.rows) - self._score(packet, scores))
        return scores

    def miss(self, packet: ActivationPacket, rows: int) -> None:
        """Count rows of a packet of gradients as published without scores."""
        if rows:
            self._missed(packet.point, rows)

    def _score(self, packet: ActivationPacket, scores: NDArray[np.float32]) -> int:
        """Fill in the scores of rows whose activation is there; return how many these are."""
        key = _key(packet)
        kept, mean = self._kept.get(key), self._means.of((key[0], key[3]))
        if kept is None or mean is None:
            return 0
        found, activations = kept.find(_tokens(packet))
        gradients = packet.to_float32()[found]
        if activations.shape != gradients.shape or len(mean) != gradients.shape[1]:
            return 0  # the module was called with another width
        with np.errstate(over="ignore", invalid="ignore"):
            product = np.einsum("ij,ij->i", activations, gradients, dtype=np.float64)
            scores[found, 0] = product
            scores[found, 1] = gradients @ mean - product
        return len(product)

    def _forget(self, attempt: int, step: int) -> None:
        """Give up activations of earlier attempts and steps, whose backward pass is over."""
        while self._kept:
            oldest = next(iter(self._kept))
            if oldest[1] == attempt and oldest[2] > step - STEPS:
                return
            self.size -= self._kept.pop(oldest).size


class Unpaired:
    """Keeps the number of gradient rows that missed their activation, as a gauge of the consumer `hook`.

    A kill can lose the count of one packet, or count it twice: the next worker has no activations for it.

    Args:
        captured: the capture stream.
        gauges: as a predecessor left them, by account.
    """

    def __init__(self, captured: Consumer, gauges: Mapping[str, Sequence[float]]) -> None:
        self._captured = captured
        self._counts = {point: int(row[HookGauge.UNPAIRED]) for point, row in gauges.items()}

    def count(self, point: str, rows: int) -> None:
        """Count rows of an account."""
        count = self._counts[point] = self._counts.get(point, 0) + rows
        self._captured.gauge(point, HookGauge.UNPAIRED, float(count))


def _key(packet: ActivationPacket) -> Key:
    header = packet.header
    point, _ = split_account(packet.point)
    return point, int(header["attempt"]), int(header["step"]), int(header["call_index"])


def _tokens(packet: ActivationPacket) -> NDArray[np.uint64]:
    """Return a number for the place of each row's token in its step."""
    rows = packet.rows
    return (rows["sequence"].astype(np.uint64) << np.uint64(32)) | rows["position"].astype(np.uint64)


def _copy(packet: ActivationPacket) -> ActivationPacket:
    """Return a packet whose memory is its own."""
    scales = None if packet.scales is None else packet.scales.copy()
    return ActivationPacket(
        packet.header.copy(), packet.point, packet.rows.copy(), scales, packet.payload.copy(), packet.shard,
        None if packet.table is None else packet.table.copy(),
    )  # fmt: skip
