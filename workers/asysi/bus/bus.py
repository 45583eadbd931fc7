"""What every bus can do, and the bus of HPC mode: the sharded ring in shared memory."""

import zlib
from types import TracebackType
from typing import Protocol, Self

import asysi_ring
from asysi.bus.packet import ActivationPacket, Dtype, Quantization, parse_packet


class DataBus(Protocol):
    """Carries packets from one producer to every consumer."""

    def push(self, packet: ActivationPacket) -> bool:
        """Offer a packet, without waiting; False when it was dropped, which is then counted."""
        ...

    def pull_batch(self, limit: int, timeout: float) -> list[ActivationPacket]:
        """Return at most `limit` packets, waiting up to `timeout` seconds for the first.

        They are valid until the next `pull_batch` or `close`: copy what is kept longer.
        """
        ...

    def commit(self, position: int | None = None) -> None:
        """Declare durable the first `position` packets handed out; without a number, all of them."""
        ...

    def lag(self) -> float:
        """Share of the bus that is unread, 0..1."""
        ...

    def close(self) -> None:
        """Give back what is held. Nothing may be asked of the bus afterwards."""
        ...


def shard_of(point: str, shards: int) -> int:
    """Return the shard that carries a hook point: the same in every process and on every machine."""
    return zlib.crc32(point.encode()) % shards


class CppShardedSPMCBus:
    """The ring as a bus: a producer without `reader`, one of the ring's named consumers with it.

    Packets of one hook point keep their order; those of different shards do not.
    """

    def __init__(self, folder: str, reader: str | None = None) -> None:
        """Attach to the ring in `folder`.

        Raises:
            FileNotFoundError: no ring stands there.
            BusyError: the producer's or the reader's place is taken.
            ValueError: the ring was created without a reader of this name.
        """
        self._control = asysi_ring.Control(folder)
        self._reader = asysi_ring.Reader(folder, reader) if reader is not None else None
        self._writer = asysi_ring.Writer(folder) if reader is None else None
        self._points: list[str] = []
        self._held: list[asysi_ring.View] = []
        self._handed_out = 0
        self._booked = 0
        # A caller's variable still holds the last batch while it asks for the next: both must fit the pins.
        self._batch = max(1, int(self._control.geometry()["pins"]) // 2)

    @property
    def reader(self) -> asysi_ring.Reader:
        """The consumer's end: its books, gauges and end of stream."""
        assert self._reader is not None, "this bus was attached as the producer"
        return self._reader

    @property
    def writer(self) -> asysi_ring.Writer:
        """The producer's end."""
        assert self._writer is not None, "this bus was attached as a consumer"
        return self._writer

    def push(self, packet: ActivationPacket) -> bool:
        """Copy `packet` into the ring; False when no chunk was to be had: its rows are booked as dropped.

        Raises:
            ValueError: the packet is larger than a chunk.
        """
        header = packet.header.copy()
        header["account"] = self.writer.account(packet.point)
        return self.writer.publish_block(
            shard_of(packet.point, self.writer.shards),
            header,
            packet.rows,
            packet.payload.ctypes.data,
            packet.payload.strides[0],
            None,
            len(packet.rows),
            Dtype(int(header["dtype"])),
            Quantization.NONE,
            scales=packet.scales,
        )

    def pull_batch(self, limit: int = 64, timeout: float = 0.1) -> list[ActivationPacket]:
        """Return views into the ring, valid until the next `pull_batch` or `close`, which consumes them.

        At most half of the ring's pins at once, however large `limit` is.

        Raises:
            RevokedError: the ring had taken back what this bus still held: its bytes may have been wrong.
        """
        self._let_go()
        self._held = self.reader.pull(min(limit, self._batch), timeout)
        self._handed_out += len(self._held)
        return [self._packet(view) for view in self._held]

    def commit(self, position: int | None = None) -> None:
        """Declare durable the first `position` packets handed out; without a number, all of them.

        What was consumed beyond `position` cannot be told apart: then a later commit declares it.
        """
        reached = self._handed_out if position is None else position
        self._book(reached)
        if reached >= self._booked:
            self.reader.mark_durable()

    def lag(self) -> float:
        """Return the largest share of a shard's depth that is unread: here, or by the slowest consumer."""
        if self._reader is not None:
            return self._reader.lag()
        return max(self._control.lag(name) for name in self._control.readers())

    def close(self) -> None:
        """Consume what was handed out and leave the ring."""
        if self._reader is not None:
            self._let_go()
            self._reader.close()
        if self._writer is not None:
            self._writer.close()
        self._control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _packet(self, view: asysi_ring.View) -> ActivationPacket:
        if view.account >= len(self._points):
            self._points = self._control.accounts()
        return parse_packet(memoryview(view), self._points)

    def _book(self, reached: int) -> None:
        """Book as consumed what was handed out up to packet number `reached`, in order."""
        first = self._handed_out - len(self._held)
        for view in self._held[max(0, self._booked - first) : max(0, reached - first)]:
            self.reader.consumed(view)
            self._booked += 1

    def _let_go(self) -> None:
        """Consume and unpin the last batch; an array that the caller still holds keeps its pin."""
        self._book(self._handed_out)
        held, self._held = self._held, []
        for view in held:
            try:
                view.release()
            except BufferError:
                continue
