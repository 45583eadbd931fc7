"""The stream: packets from one producer to every consumer, whatever carries them.

A packet is *published* by the producer, *handed out* by `pull`, *taken* (the consumer has received it), and
*durable* once the consumer has acknowledged it. Packets of one hook point keep their order; those of
different hook points may not. What is lost on the way is counted, by hook point and reason.
"""

import zlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from asysi.bus.accounts import StreamCounters
from asysi.bus.lane import DeviceLane
from asysi.bus.mailbox import Mailbox
from asysi.bus.packet import ActivationPacket, Quantization
from asysi.bus.pinning import Participant
from asysi.bus.states import DropReason, StreamEnd


class StreamError(Exception):
    """A stream is missing, cannot be read, or has the asked-for place taken; the message names it."""


class AheadError(ValueError):
    """A consumer's storage holds more rows of a hook point than the stream has handed out."""

    def __init__(self, point: str, rows: int, why: str) -> None:
        super().__init__(why)
        self.point, self.rows = point, rows


class BlockChannel(Protocol):
    """One account's way into a stream, for rows that lie in this process's memory.

    `put` and `book` are called between two layers of a model: they neither wait nor, where the stream is a
    ring, allocate. An implementation may make them attributes rather than methods, so that none costs a
    frame.
    """

    @property
    def account(self) -> int:
        """Number of the account, as the header of a packet names it."""
        ...

    def put(  # noqa: PLR0917 - the ring's producer takes them by position, which is the fastest
        self,
        header: NDArray[np.void],
        rows: NDArray[np.void],
        address: int,
        row_stride: int,
        index: NDArray[np.int64] | None,
        count: int,
        source_dtype: int,
        quantization: int,
        /,
    ) -> bool:
        """Copy rows out of memory and publish them as one packet; False when there was no room: they are then
        counted as dropped.

        Args:
            header: one record of HEADER_DTYPE with account, width and what describes the rows; it is read,
                not changed.
            rows: [count] of ROW_DTYPE.
            address: of the first row of the source.
            row_stride: bytes from row to row of the source.
            index: [count] rows of the source to take; None takes the first `count`.
            count: rows of the packet.
            source_dtype: Dtype of the source's elements.
            quantization: of the copy; 0 keeps the elements as they are.

        Raises:
            ValueError: the packet is larger than `packet_bytes`, or there is no such conversion.
        """
        ...

    def book(self, *, seen: int = 0, sampled_out: int = 0, dropped: int = 0, reason: int = 0) -> None:
        """Count rows that were seen and not published."""
        ...


class BlockProducer(Protocol):
    """What capture needs of a stream: it publishes rows of tensors, hook point by hook point."""

    @property
    def packet_bytes(self) -> int:
        """Bytes of the largest packet."""
        ...

    @property
    def depth(self) -> int:
        """Packets of a hook point that can be unread at once."""
        ...

    def free(self) -> int:
        """Return how many packets, of whatever hook points, are published before one is dropped."""
        ...

    def channel(self, point: str, /) -> BlockChannel:
        """Return the way into the stream for a hook point; its account is registered when it is new."""
        ...


class Producer(BlockProducer, Protocol):
    """The one that publishes. It never waits for a consumer."""

    @property
    def memory(self) -> Participant | None:
        """What an accelerator's driver can register; None where packets do not lie in shared memory."""
        ...

    def lane(self, device: int, slots: int, runtime: str, /) -> DeviceLane | None:
        """Return a lane from an accelerator straight into the stream's memory; None where it has none.

        Args:
            device: number of the device.
            slots: contents that can be on their way at once.
            runtime: path of the device's runtime library, which this process has loaded.

        Raises:
            LaneError: the runtime refuses.
        """
        ...

    def push(
        self, packet: ActivationPacket, *, source: int = 0, quantization: Quantization = Quantization.NONE
    ) -> bool:
        """Publish a copy of the packet; False when there was no room: its rows are then booked as dropped.

        Args:
            packet: its header is read, not changed; account, sequence and rows_before are the stream's.
            source: grows from push to push within a hook point, so that a producer that was killed continues
                behind `settled`; 0 where it cannot.
            quantization: of the copy; NONE keeps the payload as it is.

        Raises:
            ValueError: the packet is larger than `packet_bytes`, or there is no such conversion.
        """
        ...

    def room(self, point: str) -> int:
        """Return how many packets of a hook point can be pushed before one is dropped."""
        ...

    def settled(self, point: str) -> int:
        """Return a mark up to which every `source` of the hook point is published or booked; 0 at first."""
        ...

    def drop(self, point: str, rows: int, reason: DropReason, *, source: int = 0) -> None:
        """Book rows that were seen and are not published. With `source`, at most once for each mark."""
        ...

    def end(self, end: StreamEnd) -> None:
        """Tell the consumers that nothing more comes, and leave."""
        ...

    def close(self) -> None:
        """Leave. The stream stays open for a successor, unless it was ended."""
        ...


class Consumer(Protocol):
    """One of the stream's named readers; each of them sees every packet."""

    def pull(self, limit: int = 64, timeout: float = 0.1) -> list[ActivationPacket]:
        """Return at most `limit` packets, waiting up to `timeout` seconds for the first.

        They are views, valid until the next `pull` or `close`: copy what is kept longer. What was handed out
        before is taken. A packet whose bytes contradict each other is not handed out, its rows are lapped.
        """
        ...

    def take(self) -> None:
        """Take the first packet handed out that is not taken yet, ahead of the next `pull`."""
        ...

    def acknowledge(self) -> None:
        """Declare everything taken durable.

        The memory of what is taken is given back, where the caller holds no array of it any more.
        """
        ...

    def resume(self, durable: Mapping[str, int]) -> None:
        """Before the first pull: these rows of each hook point, and no others, are in the consumer's storage.

        They are not handed out again. Others that a predecessor took are handed out again where the stream
        still has them, and booked as rolled back where it has not.

        Raises:
            AheadError: more rows than the stream has handed out: the storage is of another run.
        """
        ...

    def ended(self) -> StreamEnd | None:
        """Return how the producer ended, once everything is taken; None before."""
        ...

    def finish(self, end: StreamEnd) -> None:
        """Declare everything taken durable and say that nothing more is read; the rest counts as lapped."""
        ...

    def points(self) -> list[str]:
        """Return the hook points of the stream so far, in the order in which they joined it."""
        ...

    def gauge(self, point: str, slot: int, value: float) -> None:
        """Show a number of a hook point to those who look on; it outlives this consumer."""
        ...

    def lag(self) -> float:
        """Return the largest share of what the stream can hold that is not taken, 0..1."""
        ...

    def close(self) -> None:
        """Leave. What was handed out and not taken is handed out again to the successor."""
        ...


class StreamControl(StreamCounters, Mailbox, Protocol):
    """Looks at a stream without taking part: its counters, and its mailbox."""

    def close(self) -> None:
        """Look no more."""
        ...


class DataBus(Protocol):
    """A stream, as its two ends find it."""

    def producer(self) -> Producer:
        """Attach as the producer.

        Raises:
            StreamError: there is no stream, or another producer is alive.
        """
        ...

    def consumer(self, name: str) -> Consumer:
        """Attach as the consumer `name`; a predecessor's progress is kept.

        Raises:
            StreamError: there is no stream, or another consumer of this name is alive.
            ValueError: the stream has no consumer of this name.
        """
        ...

    def control(self) -> StreamControl:
        """Look on.

        Raises:
            StreamError: there is no stream.
        """
        ...


def shard_of(point: str, shards: int) -> int:
    """Return the shard that carries a hook point: the same in every process and on every machine."""
    return zlib.crc32(point.encode()) % shards
