"""Both ends of a stream whose packets lie with a server, whatever the server is.

The server keeps packets and counters; the ends turn packets into bytes and back. The queue server and Redis
stand behind the same few calls.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from asysi.bus.blocks import PacketChannel
from asysi.bus.packet import HEADER_DTYPE, ActivationPacket, Quantization, parse_packet
from asysi.bus.states import DropReason, ProducerState, ReaderState, StreamEnd
from asysi.bus.wire import converted, encode, saturated


class StreamStart(NamedTuple):
    """From where a producer continues."""

    generation: int
    head: int
    """Sequence of the newest packet."""
    names: list[str]
    """Hook points, by account."""
    published: list[int]
    """Rows published, by account."""
    settled: list[int]
    """Highest mark of a source, by account."""


class PulledEntries(NamedTuple):
    """What a consumer is handed out."""

    contents: list[bytes]
    """Packets in their wire form."""
    end: StreamEnd | None
    """How the stream ended, once nothing is left."""
    pressed: bool
    """Whether the producer may soon have no room for what this consumer has not acknowledged."""


@dataclass(frozen=True, slots=True)
class ReaderRecord:
    """Counters of a consumer."""

    state: ReaderState
    cursor: int
    """Sequence of the newest packet taken."""
    lag: float
    """Share of the stream's capacity that it occupies, 0..1."""
    consumed: list[dict[str, int]]
    """By account."""
    gauges: list[list[float]]
    """By account."""


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """All counters of a stream, of one moment."""

    state: ProducerState
    generation: int
    head: int
    depth: int
    names: list[str]
    produced: list[dict[str, object]]
    """By account."""
    readers: dict[str, ReaderRecord]


class ProducerSeat(Protocol):
    """The producer's place at a server; held until `leave`, or until the process ends."""

    @property
    def start(self) -> StreamStart: ...
    @property
    def depth(self) -> int: ...
    @property
    def packet_bytes(self) -> int: ...
    def register(self, point: str, /) -> int: ...
    def room(self) -> int: ...
    def push(self, account: int, rows: int, source: int, sequence: int, content: bytes, /) -> bool: ...
    def book(  # noqa: PLR0917 - one message
        self, account: int, seen: int, sampled_out: int, dropped: int, reason: int, source: int, /
    ) -> None: ...
    def end(self, end: StreamEnd, /) -> None: ...
    def leave(self) -> None: ...


class ConsumerSeat(Protocol):
    """A consumer's place at a server; held until `leave`, or until the process ends.

    `taken` is how many more packets were taken since the last call.
    """

    @property
    def depth(self) -> int: ...
    def pull(self, taken: int, limit: int, timeout: float, /) -> PulledEntries: ...
    def acknowledge(self, taken: int, /) -> None: ...
    def resume(self, durable: Mapping[str, int], /) -> None: ...
    def finish(self, taken: int, state: ReaderState, /) -> None: ...
    def unread(self, taken: int, /) -> int: ...
    def gauge(self, point: str, slot: int, value: float, /) -> None: ...
    def names(self) -> list[str]: ...
    def leave(self) -> None: ...


class Onlooker(Protocol):
    """Read-only access to a server's stream, and its mailbox."""

    def record(self) -> StreamRecord: ...
    def word(self, word: int, /) -> float: ...
    def set_word(self, word: int, value: float, /) -> None: ...
    def leave(self) -> None: ...


class _Closing:
    def close(self) -> None:
        """Detach."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ServedProducer(_Closing):
    """The producer's end: see `asysi.bus.stream.Producer`.

    Args:
        seat: its place at the server.
    """

    memory = None

    def __init__(self, seat: ProducerSeat) -> None:
        self._seat = seat
        self.depth, self.packet_bytes = seat.depth, seat.packet_bytes
        self._generation, self._head = seat.start.generation, seat.start.head
        self._accounts = {point: account for account, point in enumerate(seat.start.names)}
        self._published, self._settled = list(seat.start.published), list(seat.start.settled)
        self._saturated: Counter[str] = Counter()

    def push(
        self,
        packet: ActivationPacket,
        *,
        source: int = 0,
        quantization: Quantization = Quantization.NONE,
        table: NDArray[np.float32] | None = None,
    ) -> bool:
        """Publish the packet; False, its rows counted as dropped, where there is no room.

        Raises:
            ValueError: the packet is larger than `packet_bytes`.
            StreamError: the server is gone, or another producer has taken over.
        """
        account, rows = self._account(packet.point), len(packet.rows)
        content = encode(
            converted(packet, quantization, table), account=account, source=source, sequence=self._head + 1,
            rows_before=self._published[account], generation=self._generation, saturated=0,
        )  # fmt: skip
        if len(content) > self.packet_bytes:
            raise ValueError(f"a packet of {len(content)} bytes is larger than {self.packet_bytes}")
        accepted = self._seat.push(account, rows, source, self._head + 1, content)
        self._settled[account] = max(self._settled[account], source)
        if accepted:
            self._head += 1
            self._published[account] += rows
            self._saturated[packet.point] += saturated(packet, quantization, table)
        return accepted

    def channel(self, point: str, /) -> PacketChannel:
        """Return the way into the stream for a hook point."""
        return PacketChannel(self, point, self._account(point), self._book)

    def lane(self, device: int, slots: int, runtime: str, /) -> None:
        """Return None: packets do not lie in shared memory."""
        return

    def free(self) -> int:
        """Return how many packets are published before one is dropped."""
        return self._seat.room()

    def room(self, point: str) -> int:
        """Return how many packets can be pushed before one is dropped."""
        return self._seat.room()

    def saturated(self, point: str) -> int:
        """Return how many values were outside the ranges of their channels."""
        return self._saturated[point]

    def settled(self, point: str) -> int:
        """Return the mark up to which every source of the hook point is published or counted."""
        return self._settled[self._account(point)]

    def drop(self, point: str, rows: int, reason: DropReason, *, source: int = 0) -> None:
        """Count rows as seen and dropped; with `source`, at most once per mark."""
        account = self._account(point)
        self._seat.book(account, rows, 0, rows, reason, source)
        self._settled[account] = max(self._settled[account], source)

    def end(self, end: StreamEnd) -> None:
        """End the stream, and detach."""
        self._seat.end(end)
        self.close()

    def close(self) -> None:
        """Detach; the stream stays open unless it was ended."""
        self._seat.leave()

    def _book(self, point: str, seen: int, sampled_out: int, dropped: int, reason: int, /) -> None:
        self._seat.book(self._account(point), seen, sampled_out, dropped, reason, 0)

    def _account(self, point: str) -> int:
        account = self._accounts.get(point)
        if account is None:
            account = self._accounts[point] = self._seat.register(point)
            self._published.append(0)
            self._settled.append(0)
        return account


class ServedConsumer(_Closing):
    """A consumer's end: see `asysi.bus.stream.Consumer`.

    Args:
        seat: its place at the server.
    """

    def __init__(self, seat: ConsumerSeat) -> None:
        self._seat = seat
        self._names: list[str] = []
        self._handed_out: deque[int] = deque()
        self._taken = 0
        """Packets taken since the server was last told."""
        self._end: StreamEnd | None = None
        self._pressed = False

    def pull(self, limit: int = 64, timeout: float = 0.1) -> list[ActivationPacket]:
        """Return at most `limit` packets, waiting up to `timeout` seconds for the first.

        Raises:
            StreamError: the server is gone, or another consumer has taken over.
        """
        while self._handed_out:
            self.take()
        found, self._end, self._pressed = self._seat.pull(self._told(), limit, timeout)
        packets = [self._packet(content) for content in found]
        self._handed_out.extend(range(len(packets)))
        return packets

    def take(self) -> None:
        """Take the next packet that was handed out."""
        self._handed_out.popleft()
        self._taken += 1

    def acknowledge(self) -> None:
        """Mark everything taken as durable."""
        self._seat.acknowledge(self._told())
        self._pressed = False

    def pressed(self) -> bool:
        """Return whether the producer may soon have no room for what is taken and not acknowledged."""
        return self._pressed

    def resume(self, durable: Mapping[str, int]) -> None:
        """Declare what the storage holds, before the first pull.

        Raises:
            AheadError: the storage has more rows than were published.
        """
        self._seat.resume(dict(durable))

    def ended(self) -> StreamEnd | None:
        """Return how the producer ended the stream, once everything is taken."""
        return None if self._handed_out else self._end

    def finish(self, end: StreamEnd) -> None:
        """Mark everything taken as durable, count the rest as lapped, and record how this consumer ended."""
        self._seat.finish(self._told(), end.reader_state)
        self._handed_out.clear()

    def points(self) -> list[str]:
        """Return the hook points of the stream so far."""
        self._names = self._seat.names()
        return list(self._names)

    def gauge(self, point: str, slot: int, value: float) -> None:
        """Publish a number of a hook point."""
        self._seat.gauge(point, slot, float(value))

    def lag(self) -> float:
        """Return the share of the stream's capacity that is not taken yet."""
        return min(1.0, self._seat.unread(self._told()) / self._seat.depth)

    def close(self) -> None:
        """Detach; what was not acknowledged is handed out again to the successor."""
        self._seat.leave()

    def _told(self) -> int:
        taken, self._taken = self._taken, 0
        return taken

    def _packet(self, content: bytes) -> ActivationPacket:
        account = int(np.frombuffer(content, HEADER_DTYPE, 1)["account"][0])
        if account >= len(self._names):
            self._names = self._seat.names()
        return parse_packet(memoryview(content), self._names)


class ServedControl(_Closing):
    """Read-only access to counters and mailbox: see `asysi.bus.stream.StreamControl`.

    Args:
        onlooker: access to the server.
    """

    def __init__(self, onlooker: Onlooker) -> None:
        self._server = onlooker

    def accounts(self) -> list[str]:
        """Return the hook points, by account."""
        return self._server.record().names

    def readers(self) -> list[str]:
        """Return the names of the consumers."""
        return list(self._server.record().readers)

    def geometry(self) -> dict[str, int | str]:
        """Return depth, generation and number of shards."""
        record = self._server.record()
        return {"depth": record.depth, "generation": record.generation, "shards": 1}

    def heads(self) -> list[int]:
        """Return the newest sequence."""
        return [self._server.record().head]

    def produced(self) -> list[dict[str, object]]:
        """Return the rows at the producer, by account."""
        return self._server.record().produced

    def consumed(self, reader: str, /) -> list[dict[str, int]]:
        """Return the rows at a consumer, by account."""
        return self._server.record().readers[reader].consumed

    def gauges(self, reader: str, /) -> list[list[float]]:
        """Return the gauges of a consumer, by account."""
        return self._server.record().readers[reader].gauges

    def cursors(self, reader: str, /) -> list[int]:
        """Return the sequence of the newest packet that a consumer has taken."""
        return [self._server.record().readers[reader].cursor]

    def lag(self, reader: str, /) -> float:
        """Return the share of the stream's capacity that a consumer has not acknowledged."""
        return self._server.record().readers[reader].lag

    def reader_state(self, reader: str, /) -> str:
        """Return the state of a consumer.

        Raises:
            ValueError: there is no such consumer.
        """
        readers = self._server.record().readers
        if reader not in readers:
            raise ValueError(f"there is no consumer {reader}")
        return readers[reader].state

    def writer_state(self) -> str:
        """Return the state of the producer."""
        return self._server.record().state

    def get(self, word: int, /) -> int:
        """Return a word of the mailbox as an integer."""
        return int(self._server.word(word))

    def set(self, word: int, value: int, /) -> None:
        """Set a word of the mailbox."""
        self._server.set_word(word, value)

    def get_float(self, word: int, /) -> float:
        """Return a word of the mailbox."""
        return float(self._server.word(word))

    def set_float(self, word: int, value: float, /) -> None:
        """Set a word of the mailbox."""
        self._server.set_word(word, value)

    def close(self) -> None:
        """Close the control."""
        self._server.leave()
