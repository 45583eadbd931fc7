"""The capture stream of CONSUMER mode: a bounded queue between the model and a thread beside it.

Packets never leave the host's process. What others want to know of the stream (the host's progress, rows seen
and kept) is a note that the thread leaves with the bus; how many rows went on is what the bus has counted.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol

from asysi.bus.plan import StreamPlan
from asysi.bus.queue import PythonQueueBus, QueueProducer
from asysi.bus.queue_server import QueueHub
from asysi.bus.queue_stream import GAUGES
from asysi.bus.served import ReaderRecord, ServedConsumer, ServedControl, StreamRecord
from asysi.bus.states import DropReason, ProducerState, ReaderState
from asysi.bus.stream import Producer, StreamControl, StreamError

HOOK = "hook"
"""Name of the capture stream's only consumer."""
_STREAM = "capture"


class NotedProducer(Producer, Protocol):
    """A producer that can leave a note for others."""

    def set_note(self, note: bytes, /) -> None:
        """Replace the note."""
        ...


class NotedBus(Protocol):
    """The bus, which keeps a note of its producer's."""

    def producer(self, threads: int = 1) -> NotedProducer: ...
    def control(self) -> StreamControl: ...
    def note(self) -> tuple[bytes, StreamRecord]:
        """Return the note, b"" before the first, and the bus's counters of the same moment."""
        ...


class CaptureQueueBus:
    """The capture stream, in the host's process and as others see it.

    Args:
        bus: to which the thread beside the host publishes.
        plan: size of the queue.
    """

    def __init__(self, bus: NotedBus, plan: StreamPlan) -> None:
        self.bus = bus
        self._plan = plan
        self._local: PythonQueueBus | None = None

    def create(self, plan: StreamPlan) -> None:
        """Do nothing: the host creates its queue when it attaches."""

    def missing_bytes(self, plan: StreamPlan) -> int:
        """Return 0: the packets lie in the host's memory."""
        return 0

    def producer(self, threads: int = 1) -> QueueProducer:
        """Attach the host of this process."""
        if self._local is None:
            self._local = PythonQueueBus(QueueHub(), _STREAM, last=True)
            self._local.create(self._plan)
        return self._local.producer()

    def consumer(self, name: str) -> ServedConsumer:
        """Attach the thread beside the host.

        Raises:
            StreamError: the host is another process.
        """
        return self._mine().consumer(name)

    def control(self) -> ServedControl:
        """Open the stream read-only; in another process it is what the bus knows of it.

        Raises:
            StreamError: there is no bus.
        """
        if self._local is not None:
            return self._local.control()
        mirror = _Mirror(self.bus, self._plan)
        mirror.record()
        return ServedControl(mirror)

    def note(self) -> bytes:
        """Return what others are to know of this process's stream."""
        local = self._mine()
        return json.dumps({**asdict(local.note()[1]), "words": local.words()}).encode()

    def _mine(self) -> PythonQueueBus:
        if self._local is None:
            raise StreamError("packets of a capture queue do not leave the host's process")
        return self._local


class _Mirror:
    """The capture stream as another process knows it."""

    def __init__(self, bus: NotedBus, plan: StreamPlan) -> None:
        self._bus, self._plan = bus, plan

    def record(self) -> StreamRecord:
        """Return the counters: of the note, and of the rows that have arrived at the bus."""
        note, bus = self._bus.note()
        return mirrored(json.loads(note), bus) if note else self._before()

    def word(self, word: int, /) -> float:
        """Return a word of the mailbox, as of the last note."""
        note, _ = self._bus.note()
        words: Mapping[str, float] = json.loads(note)["words"] if note else {}
        return words.get(str(int(word)), 0)

    def set_word(self, word: int, value: float, /) -> None:
        """Refuse: the words have one writer, the host's process."""
        raise StreamError("words of a capture queue are written in the host's process")

    def leave(self) -> None:
        """Nothing is held."""

    def _before(self) -> StreamRecord:
        hook = ReaderRecord(ReaderState.ABSENT, 0, 0.0, [], [])
        return StreamRecord(ProducerState.ABSENT, 0, 0, max(1, self._plan.depth), [], [], {HOOK: hook})


def mirrored(note: Mapping[str, Any], bus: StreamRecord) -> StreamRecord:
    """Return the counters of a capture queue from its last note and the bus's counters. Pure.

    A captured row counts as durable once the bus has published or dropped it. When the host has died, rows
    that were in its queue are dropped (`crash`), not published.
    """
    hook = note["readers"][HOOK]
    names = list(note["names"])
    table: list[dict[str, Any]] = [dict(row) for row in note["produced"]]
    gauges = [list(row) for row in hook["gauges"]]
    for point in bus.names:
        if point not in names:  # its first packet is on the bus before the next note
            names.append(point)
            table.append(_nothing())
            gauges.append([0.0] * GAUGES)
    record = StreamRecord(
        state=ProducerState(note["state"]),
        generation=int(note["generation"]),
        head=int(note["head"]),
        depth=int(note["depth"]),
        names=names,
        produced=list(table),
        readers={},
    )
    arrived = dict(zip(bus.names, map(_arrived, bus.produced), strict=True))
    died = bus.state.end is not None and record.state.end is None
    consumed = []
    for point, made in zip(record.names, table, strict=True):
        durable = arrived.get(point, 0)
        if died:
            _settle(made, durable)
        durable = min(durable, made["published"])
        consumed.append({"position": durable, "durable": durable, "lapped": 0, "rolled_back": 0})
    reader = ReaderRecord(
        state=bus.state.end.reader_state if bus.state.end else ReaderState(hook["state"]),
        cursor=int(hook["cursor"]),
        lag=0.0 if bus.state.end else float(hook["lag"]),
        consumed=consumed,
        gauges=gauges,
    )
    return replace(record, state=bus.state if died else record.state, readers={HOOK: reader})


def _nothing() -> dict[str, Any]:
    lost = [0] * len(DropReason)
    return {"seen": 0, "published": 0, "sampled_out": 0, "packets": 0, "dropped": lost}


def _arrived(made: Mapping[str, Any]) -> int:
    return int(made["published"]) + int(sum(made["dropped"]))


def _settle(made: dict[str, Any], durable: int) -> None:
    """Count the rows that died with the host; the note may also be older than the last rows on the bus."""
    late = max(0, durable - made["published"])
    lost = max(0, made["published"] - durable)
    dropped = list(made["dropped"])
    dropped[DropReason.CRASH] += lost
    made["dropped"], made["published"], made["seen"] = dropped, durable, made["seen"] + late
