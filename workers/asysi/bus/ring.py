"""The bus of HPC mode: a sharded ring in shared memory. Packets are views into it."""

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

import asysi_ring
from asysi.bus.lane import LaneError
from asysi.bus.packet import HEADER_DTYPE, ActivationPacket, Quantization, parse_packet
from asysi.bus.plan import StreamPlan
from asysi.bus.states import DropReason, StreamEnd
from asysi.bus.stream import AheadError, StreamError, shard_of


class CppShardedSPMCBus:
    """A ring as a bus.

    Args:
        folder: folder of the ring.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = str(folder)

    def create(self, plan: StreamPlan) -> None:
        """Create the ring, unless it exists.

        Raises:
            StreamError: it cannot be created, or a ring of another size exists.
        """
        Path(self._folder).parent.mkdir(parents=True, exist_ok=True)
        try:
            asysi_ring.create(
                self._folder, shards=plan.shards, chunks=plan.chunks, chunk_bytes=plan.chunk_bytes,
                readers=list(plan.readers), accounts=plan.accounts, policy=plan.policy,
            )  # fmt: skip
        except asysi_ring.RingError as error:
            raise StreamError(str(error)) from error

    def missing_bytes(self, plan: StreamPlan) -> int:
        """Return the shared memory that the ring still needs, 0 if it exists."""
        if (Path(self._folder) / "data").exists():
            return 0
        return asysi_ring.required_bytes(
            shards=plan.shards, chunks=plan.chunks, chunk_bytes=plan.chunk_bytes, accounts=plan.accounts
        )

    def producer(self, threads: int = 1) -> "RingProducer":
        """Attach as the producer.

        Args:
            threads: that convert a packet together, the caller's among them.

        Raises:
            StreamError: the folder has no ring of this version, or another producer is alive.
        """
        try:
            writer = asysi_ring.Writer(self._folder)
            writer.convert_with(threads)
            return RingProducer(writer)
        except (asysi_ring.RingError, OSError) as error:
            raise StreamError(str(error)) from error

    def consumer(self, name: str) -> "RingConsumer":
        """Attach as the reader `name`.

        Raises:
            StreamError: the folder has no ring of this version, or a reader with this name is alive.
            ValueError: the ring was created without a reader with this name.
        """
        control = self.control()
        try:
            return RingConsumer(asysi_ring.Reader(self._folder, name), control)
        except (asysi_ring.RingError, OSError) as error:
            control.close()
            raise StreamError(str(error)) from error

    def control(self) -> asysi_ring.Control:
        """Open the ring read-only.

        Raises:
            StreamError: the folder has no ring of this version.
        """
        try:
            return asysi_ring.Control(self._folder)
        except (asysi_ring.RingError, OSError) as error:
            raise StreamError(str(error)) from error


class _Route(NamedTuple):
    """Destination of a hook point's packets."""

    account: int
    shard: int


class RingChannel(NamedTuple):
    """The way of one account into its shard: the writer's own functions, bound once."""

    account: int
    put: Callable[..., bool]
    book: Callable[..., None]


class RingProducer:
    """The ring's producer. The name of a hook point determines its shard.

    Args:
        writer: a newly attached writer.
    """

    def __init__(self, writer: asysi_ring.Writer) -> None:
        self._writer = writer
        self._routes: dict[str, _Route] = {}
        self._header = np.zeros(1, HEADER_DTYPE)
        # Views of fields: assigning through them is much faster than by field name.
        names = ("account", "source", "quantization", "dtype", "saturated")
        fields = (self._header[name] for name in names)
        self._account, self._source, self._quantization, self._dtype, self._saturated = fields
        self.packet_bytes = writer.chunk_bytes
        """Maximum packet size: one chunk."""
        self.depth = writer.depth
        """Chunks of a shard that can be unread at once."""
        self.memory = writer
        """Its pool can be registered with an accelerator's driver."""
        self.free: Callable[[], int] = partial(writer.free, 0) if writer.shards == 1 else self._least_free
        """Return the free chunks of the shard that has the fewest."""

    def push(
        self,
        packet: ActivationPacket,
        *,
        source: int = 0,
        quantization: Quantization = Quantization.NONE,
        table: NDArray[np.float32] | None = None,
    ) -> bool:
        """Copy the packet into a chunk, converting it; return False if no chunk was available.

        Raises:
            ValueError: the packet is larger than a chunk, or the conversion is not supported.
        """
        account, shard = self._route(packet.point)
        header, payload = self._header, packet.payload
        header[0] = packet.header
        self._account[0], self._source[0] = account, source
        self._saturated[0] = 0  # of a captured packet, which may be split here: see `Saturated`
        if quantization is not Quantization.NONE:
            self._quantization[0] = quantization
        return self._writer.publish_block(
            shard,
            header,
            packet.rows,
            payload.__array_interface__["data"][0],
            payload.strides[0],
            None,
            len(packet.rows),
            int(self._dtype[0]),
            quantization,
            scales=packet.scales,
            table=packet.table if table is None else table,
        )

    def channel(self, point: str, /) -> RingChannel:
        """Return the functions that copy rows of a hook point into chunks of its shard."""
        account, shard = self._route(point)
        writer = self._writer
        return RingChannel(account, partial(writer.publish_block, shard), partial(writer.book, account))

    def lane(self, device: int, slots: int, runtime: str, /) -> asysi_ring.Lane | None:
        """Return a lane from a device into the ring's one shard; None where the ring has several.

        Raises:
            LaneError: the device's runtime refuses.
        """
        if self._writer.shards != 1:
            return None
        try:
            return asysi_ring.Lane(self._writer, device, slots, runtime)
        except asysi_ring.DeviceError as error:
            raise LaneError(str(error)) from error

    def saturated(self, point: str) -> int:
        """Return how many values of a hook point were outside the ranges of their channels."""
        return self._writer.saturated(self._route(point).account)

    def room(self, point: str) -> int:
        """Return the free chunks of the point's shard; all of them if the oldest is overwritten."""
        return self._writer.free(self._route(point).shard)

    def settled(self, point: str) -> int:
        """Return the highest mark of the point's shard; exact even after kill -9."""
        return self._writer.source(self._route(point).shard)

    def drop(self, point: str, rows: int, reason: DropReason, *, source: int = 0) -> None:
        """Count rows as seen and dropped; with `source`, only if it is above the shard's mark."""
        account, shard = self._route(point)
        self._writer.book(account, seen=rows, dropped=rows, reason=reason, shard=shard, source=source)

    def end(self, end: StreamEnd) -> None:
        """Tell the readers how the stream ended, and release the producer's lock."""
        self._writer.close(end)

    def close(self) -> None:
        """Release the producer's lock."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _least_free(self) -> int:
        return min(self._writer.free(shard) for shard in range(self._writer.shards))

    def _route(self, point: str) -> _Route:
        route = self._routes.get(point)
        if route is None:
            route = _Route(self._writer.account(point), shard_of(point, self._writer.shards))
            self._routes[point] = route
        return route


class RingConsumer:
    """One of the ring's readers.

    Args:
        reader: a newly attached reader.
        control: control of the same ring.
    """

    def __init__(self, reader: asysi_ring.Reader, control: asysi_ring.Control) -> None:
        self._reader, self._control = reader, control
        self._points: list[str] = []
        self._accounts: dict[str, int] = {}
        self._held: deque[asysi_ring.View] = deque()
        self._taken = 0
        """How many packets in `_held` are taken."""
        # The caller may still hold the last batch while pulling the next: both must fit the pins.
        self._batch = max(1, int(control.geometry()["pins"]) // 2)

    def pull(self, limit: int = 64, timeout: float = 0.1) -> list[ActivationPacket]:
        """Return views into the ring, at most half of its pins at once, however large `limit` is.

        Raises:
            RevokedError: the ring reclaimed a chunk that this reader still held; its data may be corrupt.
        """
        self._take_all()
        self._release()
        views = self._reader.pull(min(limit, self._batch), timeout)
        packets = [self._packet(view) for view in views]
        self._held.extend(views)
        return packets

    def take(self) -> None:
        """Count the rows of the next packet as consumed, and the rows lost before it as lapped."""
        self._reader.consumed(self._held[self._taken])
        self._taken += 1

    def acknowledge(self) -> None:
        """Mark everything taken as durable, and unpin packets with no live arrays."""
        self._reader.mark_durable()
        self._release()

    def pressed(self) -> bool:
        """Return False: what is taken is overwritten like everything else."""
        return False

    def resume(self, durable: Mapping[str, int]) -> None:
        """Count the rows in the storage as durable, and the other consumed rows as rolled back.

        Raises:
            AheadError: the storage has more rows than were consumed.
        """
        points = self._control.accounts()
        for point, rows in durable.items():
            if rows and point not in points:
                raise AheadError(point, rows, "this ring has never seen the hook point")
        for account, point in enumerate(points):
            rows = durable.get(point, 0)
            try:
                self._reader.restore_durable(account, rows)
            except ValueError as error:
                raise AheadError(point, rows, str(error)) from error

    def ended(self) -> StreamEnd | None:
        """Return how the producer closed the stream, once everything is consumed."""
        end = self._reader.ended()
        return StreamEnd(end) if end else None

    def finish(self, end: StreamEnd) -> None:
        """Count unconsumed rows as lapped, the others as durable, and record how this reader ended."""
        self._reader.settle()
        self.acknowledge()
        self._reader.finalise(end.reader_state)

    def points(self) -> list[str]:
        """Return the ring's hook points, by account."""
        return self._control.accounts()

    def gauge(self, point: str, slot: int, value: float) -> None:
        """Set one of the eight gauges of a hook point in the control file."""
        if point not in self._accounts:
            self._accounts = {name: account for account, name in enumerate(self._control.accounts())}
        self._reader.gauge(self._accounts[point], slot, value)

    def lag(self) -> float:
        """Return the largest unread share of a shard's depth."""
        return self._reader.lag()

    def close(self) -> None:
        """Detach from the ring; the lock is released with the last array that views it."""
        self._taken = len(self._held)
        self._release()
        self._reader.close()
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
        return parse_packet(memoryview(view), self._points, view.shard)

    def _take_all(self) -> None:
        while self._taken < len(self._held):
            self.take()

    def _release(self) -> None:
        """Unpin taken packets; arrays that the caller still holds keep their pins."""
        taken, self._taken = self._taken, 0
        for _ in range(taken):
            try:
                self._held.popleft().release()
            except BufferError:
                continue
