"""The stream interface: packets from one producer to every consumer, independent of the transport.

A packet is *published* by the producer, *handed out* by `pull`, *taken* (the consumer has received it), and
*durable* once the consumer has acknowledged it. Packets of one hook point keep their order; those of
different hook points may not. Lost rows are counted by hook point and reason.
"""

import zlib
from collections.abc import Mapping
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from asysi.bus.accounts import StreamCounters
from asysi.bus.lane import DeviceLane
from asysi.bus.mailbox import Mailbox
from asysi.bus.packet import ActivationPacket, Quantization
from asysi.bus.pinning import Participant
from asysi.bus.plan import StreamPlan
from asysi.bus.states import DropReason, StreamEnd


class StreamError(Exception):
    """A stream is missing, cannot be read, or the requested role is taken; the message names it."""


class AheadError(ValueError):
    """A consumer's storage has more rows of a hook point than the stream has handed out."""

    def __init__(self, point: str, rows: int, why: str) -> None:
        super().__init__(why)
        self.point, self.rows = point, rows

    def __reduce__(self) -> tuple[type[Self], tuple[str, int, str]]:
        return type(self), (self.point, self.rows, str(self))


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
        """Maximum packet size in bytes."""
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
    """Publishes packets. Never waits for a consumer."""

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
        self,
        packet: ActivationPacket,
        *,
        source: int = 0,
        quantization: Quantization = Quantization.NONE,
        table: NDArray[np.float32] | None = None,
    ) -> bool:
        """Publish a copy of the packet; return False if there was no room and its rows were dropped.

        Args:
            packet: its header is read, not changed; account, sequence and rows_before are the stream's.
            source: grows from push to push within a hook point, so that a producer that was killed continues
                behind `settled`; 0 where it cannot.
            quantization: of the copy; NONE keeps the payload as it is, with its scales or table.
            table: [2, width] mean and scale of each channel, for INT8_CHANNEL.

        Raises:
            ValueError: the packet is larger than `packet_bytes`, or the conversion is not supported.
        """
        ...

    def room(self, point: str) -> int:
        """Return how many packets of a hook point can be pushed before one is dropped."""
        ...

    def saturated(self, point: str) -> int:
        """Return how many values of a hook point this producer found outside the ranges of their channels."""
        ...

    def settled(self, point: str) -> int:
        """Return the mark up to which every `source` of the hook point is published or counted, or 0."""
        ...

    def drop(self, point: str, rows: int, reason: DropReason, *, source: int = 0) -> None:
        """Count rows that were seen but not published. With `source`, at most once per mark."""
        ...

    def end(self, end: StreamEnd) -> None:
        """Signal the end of the stream to the consumers, and detach."""
        ...

    def close(self) -> None:
        """Detach. The stream stays open for a successor unless it was ended."""
        ...


class Consumer(Protocol):
    """One of the stream's named readers; each receives every packet."""

    def pull(self, limit: int = 64, timeout: float = 0.1) -> list[ActivationPacket]:
        """Return at most `limit` packets, waiting up to `timeout` seconds for the first.

        They are views, valid until the next `pull` or `close`; copy what must be kept longer. All packets
        handed out before become taken. An inconsistent packet is not handed out; its rows count as lapped.
        """
        ...

    def take(self) -> None:
        """Take the first packet that was handed out and is not taken yet, before the next `pull`."""
        ...

    def acknowledge(self) -> None:
        """Mark everything taken as durable.

        The memory of taken packets is released unless the caller still holds arrays that view it.
        """
        ...

    def pressed(self) -> bool:
        """Return whether the producer may soon have no room for what is taken and not acknowledged.

        A consumer that is pressed acknowledges at its next opportunity, whatever its own schedule. Where what
        is taken takes no room of the producer's, it never is.
        """
        ...

    def resume(self, durable: Mapping[str, int]) -> None:
        """Declare, before the first pull, exactly which rows of each hook point the consumer has stored.

        Stored rows are not handed out again. Other rows that a predecessor took are handed out again if the
        stream still has them, and counted as rolled back otherwise.

        Raises:
            AheadError: more rows than the stream has handed out; the storage belongs to another run.
        """
        ...

    def ended(self) -> StreamEnd | None:
        """Return how the producer ended the stream, once everything is taken; None before."""
        ...

    def finish(self, end: StreamEnd) -> None:
        """Mark everything taken as durable and stop reading; the rest counts as lapped."""
        ...

    def points(self) -> list[str]:
        """Return the hook points of the stream so far, in order of registration."""
        ...

    def gauge(self, point: str, slot: int, value: float) -> None:
        """Publish a number of a hook point for monitoring; it outlives this consumer."""
        ...

    def lag(self) -> float:
        """Return the largest share of the stream's capacity that is not taken yet, 0..1."""
        ...

    def close(self) -> None:
        """Detach. Packets that were handed out but not taken are handed out again to the successor."""
        ...


class StreamControl(StreamCounters, Mailbox, Protocol):
    """Read-only access to a stream's counters and mailbox."""

    def close(self) -> None:
        """Close the control."""
        ...


class DataBus(Protocol):
    """A stream to which producers and consumers attach."""

    def producer(self) -> Producer:
        """Attach as the producer.

        Raises:
            StreamError: there is no stream, or another producer is alive.
        """
        ...

    def consumer(self, name: str) -> Consumer:
        """Attach as the consumer `name`; a predecessor's progress is kept.

        Raises:
            StreamError: there is no stream, or another consumer with this name is alive.
            ValueError: the stream has no consumer with this name.
        """
        ...

    def control(self) -> StreamControl:
        """Open the stream read-only.

        Raises:
            StreamError: there is no stream.
        """
        ...


class ExperimentBus(DataBus, Protocol):
    """A stream of an experiment, which `prepare` creates."""

    def create(self, plan: StreamPlan, /) -> None:
        """Create the stream, unless it exists.

        Raises:
            StreamError: it cannot be created.
        """
        ...

    def missing_bytes(self, plan: StreamPlan, /) -> int:
        """Return the shared memory that `create` will take, in bytes.

        Raises:
            ImportError: this installation cannot create the stream.
        """
        ...

    def producer(self, threads: int = 1) -> Producer:
        """Attach as the producer.

        Args:
            threads: that may convert a packet together, the caller's among them.

        Raises:
            StreamError: there is no stream, or another producer is alive.
        """
        ...


def shard_of(point: str, shards: int) -> int:
    """Return the shard of a hook point; the same in every process and on every machine."""
    return zlib.crc32(point.encode()) % shards
