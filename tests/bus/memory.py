"""A bus within one process, for tests of what stands on a stream. The newest packets displace the oldest."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from asysi.bus.blocks import PacketChannel
from asysi.bus.packet import ActivationPacket, Quantization, parse_packet
from asysi.bus.states import DropReason, ProducerState, ReaderState, StreamEnd
from asysi.bus.stream import AheadError, StreamError
from asysi.bus.wire import converted, encode, saturated

PACKET_BYTES = 1 << 20


@dataclass
class _Account:
    """One hook point."""

    seen: int = 0
    published: int = 0
    sampled_out: int = 0
    packets: int = 0
    settled: int = 0
    dropped: list[int] = field(default_factory=lambda: [0] * len(DropReason))


@dataclass
class _Reader:
    """One consumer's place in the stream, which outlives it."""

    state: ReaderState = ReaderState.ABSENT
    cursor: int = 0
    books: dict[int, dict[str, int]] = field(default_factory=dict)
    gauges: dict[int, list[float]] = field(default_factory=dict)

    def book(self, account: int) -> dict[str, int]:
        return self.books.setdefault(
            account, dict.fromkeys(("position", "durable", "lapped", "rolled_back"), 0)
        )


class MemoryBus:
    """A stream in this process's memory.

    Args:
        readers: names of its consumers.
        depth: packets that can be unread at once.
    """

    def __init__(self, readers: Sequence[str], depth: int = 64) -> None:
        self.depth = depth
        self.names: list[str] = []
        self.table: list[_Account] = []
        self.packets: dict[int, bytes] = {}
        """The newest `depth` packets, by sequence."""
        self.head = 0
        self.state = ProducerState.ABSENT
        self.generation = 0
        self.consumers = {name: _Reader() for name in readers}
        self.words: dict[int, float] = {}

    def producer(self) -> "MemoryProducer":
        """Attach as the producer."""
        if self.state is ProducerState.ATTACHED:
            raise StreamError("another producer is attached")
        self.state, self.generation = ProducerState.ATTACHED, self.generation + 1
        return MemoryProducer(self)

    def consumer(self, name: str) -> "MemoryConsumer":
        """Attach as the consumer `name`."""
        if name not in self.consumers:
            raise ValueError(f"there is no consumer {name}")
        if self.consumers[name].state is ReaderState.ATTACHED:
            raise StreamError(f"another {name} is attached")
        return MemoryConsumer(self, self.consumers[name])

    def control(self) -> "MemoryControl":
        """Look on."""
        return MemoryControl(self)

    def account(self, point: str) -> int:
        """Return the index of a hook point; registers it when new."""
        if point not in self.names:
            self.names.append(point)
            self.table.append(_Account())
        return self.names.index(point)


class _End:
    def close(self) -> None:
        """Leave."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryProducer(_End):
    """The producer's end."""

    packet_bytes = PACKET_BYTES
    memory = None

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self._saturated: Counter[str] = Counter()
        self.depth = bus.depth

    def channel(self, point: str, /) -> PacketChannel:
        return PacketChannel(self, point, self._bus.account(point), self._book)

    def lane(self, device: int, slots: int, runtime: str, /) -> None:
        return None

    def free(self) -> int:
        return self._bus.depth

    def _book(self, point: str, seen: int, sampled_out: int, dropped: int, reason: int, /) -> None:
        books = self._bus.table[self._bus.account(point)]
        books.seen += seen
        books.sampled_out += sampled_out
        books.dropped[reason] += dropped

    def saturated(self, point: str) -> int:
        return self._saturated[point]

    def push(
        self,
        packet: ActivationPacket,
        *,
        source: int = 0,
        quantization: Quantization = Quantization.NONE,
        table: NDArray[np.float32] | None = None,
    ) -> bool:
        bus = self._bus
        account = bus.account(packet.point)
        books, rows = bus.table[account], len(packet.rows)
        content = encode(
            converted(packet, quantization, table), account=account, source=source, sequence=bus.head + 1,
            rows_before=books.published, generation=bus.generation,
        )  # fmt: skip
        if len(content) > PACKET_BYTES:
            raise ValueError(f"a packet of {len(content)} bytes is larger than {PACKET_BYTES}")
        self._saturated[packet.point] += saturated(packet, quantization, table)
        bus.head += 1
        bus.packets[bus.head] = content
        bus.packets.pop(bus.head - bus.depth, None)
        books.seen, books.published, books.packets = (
            books.seen + rows,
            books.published + rows,
            books.packets + 1,
        )
        books.settled = max(books.settled, source)
        return True

    def room(self, point: str) -> int:
        return self._bus.depth

    def settled(self, point: str) -> int:
        return self._bus.table[self._bus.account(point)].settled

    def drop(self, point: str, rows: int, reason: DropReason, *, source: int = 0) -> None:
        books = self._bus.table[self._bus.account(point)]
        if source and source <= books.settled:
            return
        books.settled = max(books.settled, source)
        books.seen += rows
        books.dropped[reason] += rows

    def end(self, end: StreamEnd) -> None:
        self._bus.state = ProducerState(end.value)

    def close(self) -> None:
        if self._bus.state is ProducerState.ATTACHED:
            self._bus.state = ProducerState.GONE


class MemoryConsumer(_End):
    """A consumer's end."""

    def __init__(self, bus: MemoryBus, reader: _Reader) -> None:
        self._bus, self._reader = bus, reader
        self._handed_out: list[ActivationPacket] = []
        reader.state = ReaderState.ATTACHED

    def pull(self, limit: int = 64, timeout: float = 0.1) -> list[ActivationPacket]:
        while self._handed_out:
            self.take()
        first = max(self._reader.cursor + 1, self._bus.head - self._bus.depth + 1)
        found = range(first, min(first + limit, self._bus.head + 1))
        packets = [parse_packet(memoryview(self._bus.packets[at]), self._bus.names) for at in found]
        self._handed_out = list(packets)
        return packets

    def take(self) -> None:
        packet = self._handed_out.pop(0)
        book = self._reader.book(int(packet.header["account"]))
        before = int(packet.header["rows_before"])
        book["lapped"] += before - book["position"]
        book["position"] = before + len(packet.rows)
        self._reader.cursor = int(packet.header["sequence"])

    def acknowledge(self) -> None:
        for book in self._reader.books.values():
            book["durable"] = book["position"] - book["lapped"] - book["rolled_back"]

    def pressed(self) -> bool:
        return False

    def resume(self, durable: Mapping[str, int]) -> None:
        for point, rows in durable.items():
            if rows and point not in self._bus.names:
                raise AheadError(point, rows, "the stream has never had the hook point")
        for account, point in enumerate(self._bus.names):
            book, rows = self._reader.book(account), durable.get(point, 0)
            taken = book["position"] - book["lapped"]
            if rows > taken:
                raise AheadError(point, rows, f"{rows} durable rows, {taken} taken")
            book["durable"], book["rolled_back"] = rows, taken - rows

    def ended(self) -> StreamEnd | None:
        return self._bus.state.end if self._reader.cursor == self._bus.head else None

    def finish(self, end: StreamEnd) -> None:
        for account, made in enumerate(self._bus.table):
            book = self._reader.book(account)
            book["lapped"] += made.published - book["position"]
            book["position"] = made.published
        self._reader.cursor = self._bus.head
        self.acknowledge()
        self._reader.state = end.reader_state

    def points(self) -> list[str]:
        return list(self._bus.names)

    def gauge(self, point: str, slot: int, value: float) -> None:
        self._reader.gauges.setdefault(self._bus.names.index(point), [0.0] * 8)[slot] = value

    def lag(self) -> float:
        return min(1.0, (self._bus.head - self._reader.cursor) / self._bus.depth)

    def close(self) -> None:
        if self._reader.state is ReaderState.ATTACHED:
            self._reader.state = ReaderState.GONE


class MemoryControl(_End):
    """Looks on."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus

    def accounts(self) -> list[str]:
        return list(self._bus.names)

    def readers(self) -> list[str]:
        return list(self._bus.consumers)

    def geometry(self) -> dict[str, int | str]:
        return {"depth": self._bus.depth, "generation": self._bus.generation, "shards": 1}

    def heads(self) -> list[int]:
        return [self._bus.head]

    def produced(self) -> list[dict[str, object]]:
        return [
            {"seen": one.seen, "published": one.published, "sampled_out": one.sampled_out,
             "dropped": list(one.dropped),
             "packets": one.packets}
            for one in self._bus.table
        ]  # fmt: skip

    def consumed(self, reader: str) -> list[dict[str, int]]:
        return [dict(self._bus.consumers[reader].book(account)) for account in range(len(self._bus.names))]

    def gauges(self, reader: str) -> list[list[float]]:
        gauges = self._bus.consumers[reader].gauges
        return [gauges.get(account, [0.0] * 8) for account in range(len(self._bus.names))]

    def cursors(self, reader: str) -> list[int]:
        return [self._bus.consumers[reader].cursor]

    def lag(self, reader: str) -> float:
        return min(1.0, (self._bus.head - self._bus.consumers[reader].cursor) / self._bus.depth)

    def reader_state(self, reader: str) -> str:
        return self._bus.consumers[reader].state

    def writer_state(self) -> str:
        return self._bus.state

    def get(self, word: int) -> int:
        return int(self.get_float(word))

    def set(self, word: int, value: int) -> None:
        self._bus.words[word] = value

    def get_float(self, word: int) -> float:
        return self._bus.words.get(word, 0.0)

    def set_float(self, word: int, value: float) -> None:
        self._bus.words[word] = value
