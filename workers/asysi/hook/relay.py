"""Relays captured packets to the bus, quantised while copying, each row exactly once across restarts."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from asysi.bus.packet import ActivationPacket, Dtype, Kind, Quantization
from asysi.bus.states import DropReason
from asysi.bus.stream import Producer
from asysi.hook.blocks import PART_BITS, RowTooLargeError, conversion, row_bytes, split_rows
from asysi.hook.pairs import PairWindow
from asysi.hook.ranges import Ranges

_LAST_PART = (1 << PART_BITS) - 1
log = logging.getLogger("asysi")


class _BlockRefusedError(ValueError):
    """The bus refuses a block of a packet; `start` rows of the packet before it are on the bus or counted."""

    def __init__(self, start: int, why: str) -> None:
        super().__init__(why)
        self.start = start


class Relay:
    """Publishes captured packets on the bus.

    Args:
        bus: the producer of the bus.
        wanted: how payloads travel from here on.
        observers: each is shown every packet that was published (statistics, counts).
        latency: is told the seconds from capture to publication.
        ranges: of the channels; needed for INT8_CHANNEL.
        pairs: joins gradients to activations; None where only one of them is captured.
    """

    def __init__(
        self,
        bus: Producer,
        wanted: Quantization,
        observers: Sequence[Callable[[ActivationPacket], None]],
        latency: Callable[[float], None],
        ranges: Ranges | None = None,
        *,
        pairs: PairWindow | None = None,
    ) -> None:
        self._bus, self._wanted, self._ranges, self._pairs = bus, wanted, ranges, pairs
        self._observers, self._latency = observers, latency
        self._told: set[str] = set()

    def forward(self, packet: ActivationPacket) -> None:
        """Publish the packet's rows, in blocks.

        Blocks up to the bus's published mark are skipped: a killed predecessor already published them.
        Rows that cannot be published are counted as dropped. What fails after they are published is logged:
        they are on the bus, and counting them as dropped too would be wrong.
        """
        if self._pairs is not None:
            packet = self._joined(packet, self._pairs)
        try:
            self._publish(packet)
        except RowTooLargeError as error:
            self._drop(packet, DropReason.TOO_LARGE, str(error))
            return
        except _BlockRefusedError as error:
            self._drop(packet, DropReason.ERROR, str(error), error.start)
            if error.start == 0:
                return
            packet = packet.select(slice(0, error.start))  # these are on the bus: observers are shown them
        except ValueError as error:
            self._drop(packet, DropReason.ERROR, str(error))
            return
        self._latency((time.monotonic_ns() - int(packet.header["captured_ns"])) * 1e-9)
        for observe in self._observers:
            self._show(packet, observe)

    def _joined(self, packet: ActivationPacket, pairs: PairWindow) -> ActivationPacket:
        """Keep an activation for its gradient; return a gradient with its scores."""
        try:
            if int(packet.header["kind"]) == Kind.GRADIENT:
                return replace(packet, scales=pairs.score(packet))
            pairs.add(packet)
        except Exception as error:  # whatever it is, it must not stop the stream
            if int(packet.header["kind"]) == Kind.GRADIENT:
                pairs.miss(packet, len(packet.rows))
            if self._is_new(repr(error)):
                log.exception("rows of %s are published without scores", packet.point)
        return packet

    def _show(self, packet: ActivationPacket, observe: Callable[[ActivationPacket], None]) -> None:
        try:
            observe(packet)
        except Exception as error:  # whatever it is, it must not stop the stream
            if self._is_new(repr(error)):
                log.exception("rows of %s are published, but not in every count", packet.point)

    def _publish(self, packet: ActivationPacket) -> None:
        dtype, width = Dtype(int(packet.header["dtype"])), packet.payload.shape[1]
        already, kind = Quantization(int(packet.header["quantization"])), Kind(int(packet.header["kind"]))
        done, table = conversion(dtype, self._wanted, already, kind), None
        if done.by_channel and (self._ranges is None or (table := self._ranges.of(packet)) is None):
            done = conversion(dtype, Quantization.BF16, already, kind)
        size = row_bytes(
            width, dtype, done, by_channel=packet.table is not None, scored=packet.scores is not None
        )
        settled, rows = self._bus.settled(packet.point), len(packet.rows)
        for block in split_rows(int(packet.header["sequence"]), rows, size, self._bus.packet_bytes):
            if block.source > settled:
                whole = block.stop - block.start == rows
                part = packet if whole else packet.select(slice(block.start, block.stop))
                try:
                    self._bus.push(part, source=block.source, quantization=done, table=table)
                except ValueError as error:
                    raise _BlockRefusedError(block.start, str(error)) from error

    def _drop(self, packet: ActivationPacket, reason: DropReason, why: str, first: int = 0) -> None:
        """Count the rows from `first` on as dropped."""
        sequence = int(packet.header["sequence"])
        mark = (sequence << PART_BITS) | _LAST_PART  # after all blocks: a successor does not count it again
        self._bus.drop(packet.point, len(packet.rows) - first, reason, source=mark)
        if self._is_new(why):
            log.warning("packet %d of %s is dropped: %s", sequence, packet.point, why)

    def _is_new(self, why: str) -> bool:
        """Return whether a cause is to be logged: once, and no more than 100 of them."""
        new = why not in self._told and len(self._told) < 100
        if new:
            self._told.add(why)
        return new
