"""A bus in files: the producer appends to a log, each consumer keeps a place in it.

It shows that a stream need not be a ring: packets lie on disk until somebody has room for more, what was not
acknowledged is handed out again, and a full spool drops what is new.
"""

import fcntl
import json
import os
import struct
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from asysi.bus.blocks import PacketChannel
from asysi.bus.packet import HEADER_DTYPE, ActivationPacket, Quantization, parse_packet
from asysi.bus.states import DropReason, ProducerState, ReaderState, StreamEnd
from asysi.bus.stream import AheadError, StreamError
from asysi.bus.wire import converted, encode, saturated
from asysi.files import write_atomic

PACKET_BYTES = 1 << 20
_FRAME = struct.Struct("<4sII")
"""Kind, bytes and CRC-32 of what follows."""
PACKET, NAME, DROP, BOOK, END, PRODUCER = b"pack", b"name", b"drop", b"book", b"end ", b"prod"


class SpoolBus:
    """A stream in a folder.

    Args:
        folder: made by `create`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, readers: Sequence[str], depth: int = 64) -> Self:
        """Make an empty stream; `depth` packets can be unread by the slowest of `readers`."""
        folder.mkdir(parents=True)
        (folder / "log").touch()
        write_atomic(folder / "shape.json", json.dumps({"readers": list(readers), "depth": depth}))
        return cls(folder)

    @property
    def shape(self) -> dict[str, Any]:
        """Names of the consumers, and the depth.

        Raises:
            StreamError: there is no stream.
        """
        try:
            found: dict[str, Any] = json.loads((self.folder / "shape.json").read_text())
        except OSError as error:
            raise StreamError(f"{self.folder} holds no spool: {error}") from error
        return found

    def producer(self) -> "SpoolProducer":
        """Attach as the producer."""
        return SpoolProducer(self.folder, self.shape)

    def consumer(self, name: str) -> "SpoolConsumer":
        """Attach as the consumer `name`."""
        if name not in self.shape["readers"]:
            raise ValueError(f"there is no consumer {name}")
        return SpoolConsumer(self.folder, self.shape, name)

    def control(self) -> "SpoolControl":
        """Look on."""
        return SpoolControl(self.folder, self.shape)


class _Log:
    """Reads the log from its beginning, as far as it is whole."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "log", os.O_RDONLY)
        self.offset = self.packets = self.generation = 0
        self.names: list[str] = []
        self.produced: dict[int, dict[str, Any]] = {}
        self.settled: dict[int, int] = defaultdict(int)
        self.end: StreamEnd | None = None

    def frames(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield what was appended since the last call, and keep the ledger of it."""
        while True:
            head = os.pread(self._file, _FRAME.size, self.offset)
            if len(head) < _FRAME.size:
                return
            kind, size, check = _FRAME.unpack(head)
            content = os.pread(self._file, size, self.offset + _FRAME.size)
            if len(content) < size or zlib.crc32(content) != check:
                return
            self.offset += _FRAME.size + size
            self._book(kind, content)
            yield kind, content

    def read(self) -> Self:
        """Read on to the end."""
        for _ in self.frames():
            pass
        return self

    def close(self) -> None:
        os.close(self._file)

    def _book(self, kind: bytes, content: bytes) -> None:
        if kind == NAME:
            account = len(self.names)
            self.names.append(content.decode())
            self.produced[account] = {
                "seen": 0, "published": 0, "sampled_out": 0, "packets": 0, "dropped": [0] * len(DropReason)
            }  # fmt: skip
        elif kind == PACKET:
            header = np.frombuffer(content, HEADER_DTYPE, 1)[0]
            account, rows = int(header["account"]), int(header["rows"])
            books = self.produced[account]
            books["seen"] += rows
            books["published"] += rows
            books["packets"] += 1
            self.packets += 1
            self.settled[account] = max(self.settled[account], int(header["source"]))
        elif kind == DROP:
            account, rows, reason, source = json.loads(content)
            self.produced[account]["seen"] += rows
            self.produced[account]["dropped"][reason] += rows
            self.settled[account] = max(self.settled[account], source)
        elif kind == BOOK:
            account, seen, sampled_out, dropped, reason = json.loads(content)
            self.produced[account]["seen"] += seen
            self.produced[account]["sampled_out"] += sampled_out
            self.produced[account]["dropped"][reason] += dropped
        elif kind == END:
            self.end = StreamEnd(content.decode())
        elif kind == PRODUCER:
            self.generation += 1


def _lock(file: Path) -> int | None:
    """Return a descriptor that holds the lock until this process ends; None when somebody else holds it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _held(file: Path) -> bool:
    descriptor = _lock(file)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


class _End:
    _lock: int | None

    def close(self) -> None:
        """Leave."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SpoolProducer(_End):
    """The producer's end; what a killed one left half written is cut off."""

    packet_bytes = PACKET_BYTES
    memory = None

    def __init__(self, folder: Path, shape: dict[str, Any]) -> None:
        self._folder, self._shape = folder, shape
        self.depth = int(shape["depth"])
        self._lock = _lock(folder / "producer.lock")
        if self._lock is None:
            raise StreamError("another producer is attached")
        self._log = _Log(folder).read()
        os.truncate(folder / "log", self._log.offset)
        self._file = os.open(folder / "log", os.O_WRONLY | os.O_APPEND)
        self._slowest = 0
        self._saturated: Counter[str] = Counter()
        self._append(PRODUCER, b"")

    def push(
        self,
        packet: ActivationPacket,
        *,
        source: int = 0,
        quantization: Quantization = Quantization.NONE,
        table: NDArray[np.float32] | None = None,
    ) -> bool:
        account, log = self._account(packet.point), self._log
        if not self._room():
            self.drop(packet.point, len(packet.rows), DropReason.RING_FULL, source=source)
            return False
        content = encode(
            converted(packet, quantization, table), account=account, source=source, sequence=log.packets + 1,
            rows_before=log.produced[account]["published"], generation=log.generation,
        )  # fmt: skip
        if len(content) > PACKET_BYTES:
            raise ValueError(f"a packet of {len(content)} bytes is larger than {PACKET_BYTES}")
        self._append(PACKET, content)
        self._saturated[packet.point] += saturated(packet, quantization, table)
        return True

    def channel(self, point: str, /) -> PacketChannel:
        return PacketChannel(self, point, self._account(point), self._book)

    def lane(self, device: int, slots: int, runtime: str, /) -> None:
        return None

    def free(self) -> int:
        return self._room()

    def saturated(self, point: str) -> int:
        return self._saturated[point]

    def room(self, point: str) -> int:
        return self._room()

    def settled(self, point: str) -> int:
        return self._log.settled[self._account(point)]

    def drop(self, point: str, rows: int, reason: DropReason, *, source: int = 0) -> None:
        account = self._account(point)
        if not source or source > self._log.settled[account]:
            self._append(DROP, json.dumps([account, rows, reason, source]).encode())

    def end(self, end: StreamEnd) -> None:
        self._append(END, end.encode())
        self.close()

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._file)
            self._log.close()
        super().close()

    def _book(self, point: str, seen: int, sampled_out: int, dropped: int, reason: int, /) -> None:
        self._append(BOOK, json.dumps([self._account(point), seen, sampled_out, dropped, reason]).encode())

    def _room(self) -> int:
        depth = self._shape["depth"]
        if self._log.packets - self._slowest >= depth:
            self._slowest = min(
                _place(self._folder, name)["durable_packets"] for name in self._shape["readers"]
            )
        return int(depth - (self._log.packets - self._slowest))

    def _account(self, point: str) -> int:
        if point not in self._log.names:
            self._append(NAME, point.encode())
        return self._log.names.index(point)

    def _append(self, kind: bytes, content: bytes) -> None:
        os.write(self._file, _FRAME.pack(kind, len(content), zlib.crc32(content)) + content)
        self._log.read()


def _place(folder: Path, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    except OSError:
        return {"state": None, "durable_packets": 0, "durable": {}, "lapped": {}, "gauges": {}}
    return found


class SpoolConsumer(_End):
    """A consumer's end: it begins behind what is durable."""

    def __init__(self, folder: Path, shape: dict[str, Any], name: str) -> None:
        self._folder, self._shape, self._name = folder, shape, name
        self._lock = _lock(folder / f"{name}.lock")
        if self._lock is None:
            raise StreamError(f"another {name} is attached")
        self._place = _place(folder, name)
        self._place["state"] = ReaderState.ATTACHED
        self._write()
        self._log = _Log(folder)
        self._passed = dict(self._place["durable"])
        self._handed_out: list[ActivationPacket] = []
        self._taken_rows: dict[str, int] = dict(self._passed)
        self._taken_packets = int(self._place["durable_packets"])

    def pull(self, limit: int = 64, timeout: float = 0.1) -> list[ActivationPacket]:
        while self._handed_out:
            self.take()
        until = time.monotonic() + timeout
        packets: list[ActivationPacket] = []
        while len(packets) < limit:
            for kind, content in self._log.frames():
                if kind == PACKET and (packet := self._new(content)) is not None:
                    packets.append(packet)
                    break
            else:
                if packets or self._log.end or time.monotonic() >= until:
                    break
                time.sleep(0.001)
        self._handed_out = list(packets)
        return packets

    def _new(self, content: bytes) -> ActivationPacket | None:
        packet = parse_packet(memoryview(content), self._log.names)
        end = int(packet.header["rows_before"]) + len(packet.rows)
        return packet if end > self._passed.get(packet.point, 0) else None

    def take(self) -> None:
        packet = self._handed_out.pop(0)
        self._taken_rows[packet.point] = int(packet.header["rows_before"]) + len(packet.rows)
        self._taken_packets = int(packet.header["sequence"])

    def acknowledge(self) -> None:
        self._place["durable"], self._place["durable_packets"] = dict(self._taken_rows), self._taken_packets
        self._write()

    def pressed(self) -> bool:
        return False

    def resume(self, durable: Mapping[str, int]) -> None:
        log = _Log(self._folder).read()
        published = {point: log.produced[account]["published"] for account, point in enumerate(log.names)}
        log.close()
        for point, rows in durable.items():
            if rows > published.get(point, 0):
                raise AheadError(point, rows, f"{rows} durable rows, {published.get(point, 0)} published")
        self._passed = {point: durable.get(point, 0) for point in published}
        self._taken_rows = dict(self._passed)
        self._place["durable"] = dict(self._passed)
        self._write()

    def ended(self) -> StreamEnd | None:
        return self._log.end if self._log.end and not self._handed_out else None

    def finish(self, end: StreamEnd) -> None:
        while self._handed_out:
            self.take()
        self._log.read()
        self.acknowledge()
        self._place["lapped"] = {
            point: self._log.produced[account]["published"] - self._taken_rows.get(point, 0)
            for account, point in enumerate(self._log.names)
        }
        self._place["state"] = end.reader_state
        self._write()

    def points(self) -> list[str]:
        log = _Log(self._folder).read()
        log.close()
        return log.names

    def gauge(self, point: str, slot: int, value: float) -> None:
        self._place["gauges"].setdefault(point, [0.0] * 8)[slot] = value
        self._write()

    def lag(self) -> float:
        log = _Log(self._folder).read()
        log.close()
        return float(min(1.0, (log.packets - self._taken_packets) / self._shape["depth"]))

    def close(self) -> None:
        if self._lock is not None:
            self._log.close()
        super().close()

    def _write(self) -> None:
        write_atomic(self._folder / f"{self._name}.json", json.dumps(self._place))


class SpoolControl(_End):
    """Looks on."""

    _lock = None

    def __init__(self, folder: Path, shape: dict[str, Any]) -> None:
        self._folder, self._shape = folder, shape
        self._log = _Log(folder)

    def accounts(self) -> list[str]:
        return list(self._log.read().names)

    def readers(self) -> list[str]:
        return list(self._shape["readers"])

    def geometry(self) -> dict[str, int | str]:
        return {"depth": self._shape["depth"], "generation": self._log.read().generation, "shards": 1}

    def heads(self) -> list[int]:
        return [self._log.read().packets]

    def produced(self) -> list[dict[str, object]]:
        return [dict(books) for books in self._log.read().produced.values()]

    def consumed(self, reader: str) -> list[dict[str, int]]:
        place = _place(self._folder, reader)
        return [
            {
                "position": place["durable"].get(point, 0) + place["lapped"].get(point, 0),
                "durable": place["durable"].get(point, 0),
                "lapped": place["lapped"].get(point, 0),
                "rolled_back": 0,
            }
            for point in self.accounts()
        ]

    def gauges(self, reader: str) -> list[list[float]]:
        gauges = _place(self._folder, reader)["gauges"]
        return [gauges.get(point, [0.0] * 8) for point in self.accounts()]

    def cursors(self, reader: str) -> list[int]:
        return [_place(self._folder, reader)["durable_packets"]]

    def lag(self, reader: str) -> float:
        unread = self._log.read().packets - _place(self._folder, reader)["durable_packets"]
        return float(min(1.0, unread / self._shape["depth"]))

    def reader_state(self, reader: str) -> str:
        state = _place(self._folder, reader)["state"]
        if state == ReaderState.ATTACHED and not _held(self._folder / f"{reader}.lock"):
            return ReaderState.GONE
        return state or ReaderState.ABSENT

    def writer_state(self) -> str:
        log = self._log.read()
        if log.end:
            return ProducerState(log.end.value)
        if _held(self._folder / "producer.lock"):
            return ProducerState.ATTACHED
        return ProducerState.GONE if log.generation else ProducerState.ABSENT

    def get(self, word: int) -> int:
        return int(self.get_float(word))

    def set(self, word: int, value: int) -> None:
        self.set_float(word, value)

    def get_float(self, word: int) -> float:
        file = self._folder / f"word-{word}"
        return float(file.read_text()) if file.exists() else 0.0

    def set_float(self, word: int, value: float) -> None:
        write_atomic(self._folder / f"word-{word}", str(value))

    def close(self) -> None:
        self._log.close()
