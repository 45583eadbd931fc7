"""The state of a stream of whole packets: one bounded queue a role, and every counter. Pure.

A packet goes into the queue of every role, or into none. It leaves a queue once its role has acknowledged it;
until then it is handed out again to whoever takes the role over. A packet that finds a full queue is dropped,
and counted.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from asysi.bus.served import PulledEntries, ReaderRecord, StreamRecord, StreamStart
from asysi.bus.states import DropReason, ProducerState, ReaderState, StreamEnd
from asysi.bus.stream import AheadError, StreamError

GAUGES = 8
"""Gauges of a hook point at a role."""


class _Entry(NamedTuple):
    """A packet in a queue; all queues share its content."""

    account: int
    rows: int
    end: int
    """Rows of the account up to and including this packet."""
    sequence: int
    content: bytes


@dataclass
class _Account:
    """Rows of one hook point at the producer."""

    seen: int = 0
    published: int = 0
    sampled_out: int = 0
    packets: int = 0
    settled: int = 0
    dropped: list[int] = field(default_factory=lambda: [0] * len(DropReason))


@dataclass
class _Rows:
    """Rows of one hook point at a role."""

    position: int = 0
    durable: int = 0
    lapped: int = 0
    rolled_back: int = 0


@dataclass
class _Role:
    """A role's queue and counters, which outlive the processes that fill the role."""

    state: ReaderState = ReaderState.ABSENT
    entries: deque[_Entry] = field(default_factory=deque)
    taken: int = 0
    """How many entries, from the oldest on, the attached consumer has taken and not acknowledged."""
    cursor: int = 0
    rows: list[_Rows] = field(default_factory=list)
    gauges: list[list[float]] = field(default_factory=list)

    def take(self, count: int) -> None:
        """Count the next `count` entries as taken."""
        for entry in islice(self.entries, self.taken, self.taken + count):
            rows = self.rows[entry.account]
            rows.position = max(rows.position, entry.end)
            self.cursor = max(self.cursor, entry.sequence)
        self.taken = min(len(self.entries), self.taken + count)

    def settle(self, count: int) -> None:
        """Remove the oldest `count` entries as durable."""
        for _ in range(count):
            entry = self.entries.popleft()
            self.rows[entry.account].durable += entry.rows
        self.taken = max(0, self.taken - count)

    def lose(self, entry: _Entry) -> None:
        """Count an entry as lapped: the role does not read it any more."""
        rows = self.rows[entry.account]
        rows.lapped += entry.rows
        rows.position = max(rows.position, entry.end)


class QueueStream:
    """A stream's state.

    Args:
        readers: names of its roles.
        depth: packets that a role may leave unacknowledged.
        packet_bytes: maximum size of a packet.
        restartable: whether a producer that is gone may have a successor; else the attempt is over with it.
    """

    def __init__(
        self, readers: Sequence[str], *, depth: int, packet_bytes: int, restartable: bool = True
    ) -> None:
        self.depth, self.packet_bytes, self._restartable = depth, packet_bytes, restartable
        self.note = b""
        """Whatever the producer says of itself."""
        self._state, self._generation, self._head = ProducerState.ABSENT, 0, 0
        self._names: list[str] = []
        self._table: list[_Account] = []
        self._roles = {name: _Role() for name in readers}
        self._words: dict[int, float] = {}

    @property
    def state(self) -> ProducerState:
        """State of the producer."""
        gone = self._state is ProducerState.GONE and not self._restartable
        return ProducerState.ATTEMPT_OVER if gone else self._state

    # -- the producer

    def start(self) -> StreamStart:
        """Attach the producer; return from where it continues.

        Raises:
            StreamError: another producer is attached, or the stream has ended.
        """
        if self._state is ProducerState.ATTACHED:
            raise StreamError("another producer is attached")
        if self.state.end is not None:
            raise StreamError(f"the stream has ended: {self.state}")
        self._state, self._generation = ProducerState.ATTACHED, self._generation + 1
        return StreamStart(
            self._generation,
            self._head,
            list(self._names),
            [one.published for one in self._table],
            [one.settled for one in self._table],
        )

    def register(self, point: str) -> int:
        """Return the account of a hook point, which is added when it is new."""
        if point not in self._names:
            self._names.append(point)
            self._table.append(_Account())
            for role in self._roles.values():
                role.rows.append(_Rows())
                role.gauges.append([0.0] * GAUGES)
        return self._names.index(point)

    def room(self) -> int:
        """Return how many packets can be pushed before one is dropped."""
        used = (len(role.entries) for role in self._roles.values() if not role.state.final)
        return self.depth - max(used, default=0)

    def push(self, account: int, rows: int, source: int, sequence: int, content: bytes) -> bool:
        """Put a packet into every queue; False, its rows counted as dropped, where one of them is full.

        Raises:
            StreamError: the sequence is not the next: the caller is not this stream's producer.
        """
        if sequence != self._head + 1:
            raise StreamError(f"packet {sequence} follows {self._head}: another producer has taken over")
        made = self._table[account]
        made.seen += rows
        made.settled = max(made.settled, source)
        if self.room() < 1:
            made.dropped[DropReason.RING_FULL] += rows
            return False
        self._head = sequence
        made.published, made.packets = made.published + rows, made.packets + 1
        entry = _Entry(account, rows, made.published, sequence, content)
        for role in self._roles.values():
            if role.state.final:
                role.lose(entry)
            else:
                role.entries.append(entry)
        return True

    def book(  # noqa: PLR0917 - one message
        self, account: int, seen: int, sampled_out: int, dropped: int, reason: int, source: int
    ) -> None:
        """Count rows that were not published; with `source`, at most once per mark."""
        made = self._table[account]
        if source and source <= made.settled:
            return
        made.settled = max(made.settled, source)
        made.seen += seen
        made.sampled_out += sampled_out
        made.dropped[reason] += dropped

    def end(self, end: StreamEnd) -> None:
        """End the stream."""
        self._state = ProducerState(end.value)

    def lose_producer(self) -> None:
        """Detach the producer without an end."""
        if self._state is ProducerState.ATTACHED:
            self._state = ProducerState.GONE

    # -- the roles

    def attach(self, name: str) -> None:
        """Attach a consumer to a role; what its predecessor did not acknowledge is handed out again.

        Raises:
            StreamError: another consumer is attached.
            ValueError: there is no such role.
        """
        if name not in self._roles:
            raise ValueError(f"there is no consumer {name}, only {', '.join(self._roles)}")
        role = self._roles[name]
        if role.state is ReaderState.ATTACHED:
            raise StreamError(f"another consumer {name} is attached")
        role.state, role.taken = ReaderState.ATTACHED, 0

    def pull(self, name: str, taken: int, limit: int) -> PulledEntries:
        """Count `taken` more packets as taken, and return the next ones."""
        role = self._roles[name]
        role.take(taken)
        found = [entry.content for entry in islice(role.entries, role.taken, role.taken + limit)]
        end = None if found else self.state.end
        return PulledEntries(found, end, pressed=2 * role.taken >= self.depth)

    def acknowledge(self, name: str, taken: int) -> None:
        """Count `taken` more packets as taken, and all that are taken as durable."""
        role = self._roles[name]
        role.take(taken)
        role.settle(role.taken)

    def resume(self, name: str, durable: Mapping[str, int]) -> None:
        """Take over what a consumer's storage holds: see `asysi.bus.stream.Consumer.resume`.

        Raises:
            AheadError: the storage has more rows than were published.
        """
        role = self._roles[name]
        missed = [rows.lapped + rows.rolled_back for rows in role.rows]
        # ^ rows that the role never had, or has no more: they lie before all entries
        had = [made.published - lost for made, lost in zip(self._table, missed, strict=True)]
        most = dict(zip(self._names, had, strict=True))
        for point, rows in durable.items():
            if rows > most.get(point, 0):
                raise AheadError(point, rows, f"{rows} durable rows, {most.get(point, 0)} published")
        stored = [durable.get(point, 0) for point in self._names]
        left: deque[_Entry] = deque()
        for entry in role.entries:
            if entry.end - missed[entry.account] <= stored[entry.account]:
                role.rows[entry.account].durable += entry.rows
            else:
                left.append(entry)
        role.entries, role.taken = left, 0
        for counted, held in zip(role.rows, stored, strict=True):
            lost = max(0, counted.durable - held)
            counted.durable, counted.rolled_back = counted.durable - lost, counted.rolled_back + lost

    def finish(self, name: str, taken: int, state: ReaderState) -> None:
        """Count everything taken as durable, the rest as lapped, and record how the consumer ended."""
        role = self._roles[name]
        self.acknowledge(name, taken)
        for entry in role.entries:
            role.lose(entry)
        role.entries.clear()
        role.state = state

    def lose_consumer(self, name: str) -> None:
        """Detach a consumer; what it has not acknowledged is handed out again."""
        role = self._roles[name]
        role.taken = 0
        if role.state is ReaderState.ATTACHED:
            role.state = ReaderState.GONE

    def unread(self, name: str, taken: int) -> int:
        """Count `taken` more packets as taken; return how many are not."""
        role = self._roles[name]
        role.take(taken)
        return len(role.entries) - role.taken

    def gauge(self, name: str, point: str, slot: int, value: float) -> None:
        """Set a gauge of a hook point."""
        self._roles[name].gauges[self._names.index(point)][slot] = value

    # -- for everybody

    def names(self) -> list[str]:
        """Return the hook points, by account."""
        return list(self._names)

    def word(self, word: int) -> float:
        """Return a word of the mailbox, 0 before the first."""
        return self._words.get(word, 0)

    def words(self) -> dict[int, float]:
        """Return the words that were written."""
        return dict(self._words)

    def set_word(self, word: int, value: float) -> None:
        """Set a word of the mailbox."""
        self._words[word] = value

    def record(self) -> StreamRecord:
        """Return every counter."""
        return StreamRecord(
            state=self.state,
            generation=self._generation,
            head=self._head,
            depth=self.depth,
            names=list(self._names),
            produced=[
                {
                    "seen": one.seen,
                    "published": one.published,
                    "sampled_out": one.sampled_out,
                    "packets": one.packets,
                    "dropped": list(one.dropped),
                }
                for one in self._table
            ],
            readers={name: self._reader(role) for name, role in self._roles.items()},
        )

    def _reader(self, role: _Role) -> ReaderRecord:
        return ReaderRecord(
            state=role.state,
            cursor=role.cursor,
            lag=min(1.0, len(role.entries) / self.depth),
            consumed=[dict(_items(rows)) for rows in role.rows],
            gauges=[list(row) for row in role.gauges],
        )


def _items(rows: _Rows) -> Iterable[tuple[str, int]]:
    return (
        ("position", rows.position),
        ("durable", rows.durable),
        ("lapped", rows.lapped),
        ("rolled_back", rows.rolled_back),
    )
