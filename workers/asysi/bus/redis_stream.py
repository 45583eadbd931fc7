"""The bus of CONSUMER mode in Redis: one stream a hook point, a consumer group a role.

A place has one owner, by a lease that a thread renews; whoever has lost it changes nothing. An entry is
acknowledged once the work is durable; until then it is handed out again to the owner's successor.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from redis.exceptions import RedisError, ResponseError

from asysi.bus import redis_scripts as scripts
from asysi.bus.packet import HEADER_DTYPE
from asysi.bus.plan import StreamPlan
from asysi.bus.queue_stream import GAUGES
from asysi.bus.redis_client import RedisClient, connect
from asysi.bus.served import (
    PulledEntries,
    ReaderRecord,
    ServedConsumer,
    ServedControl,
    ServedProducer,
    StreamRecord,
    StreamStart,
)
from asysi.bus.states import DropReason, ProducerState, ReaderState, StreamEnd
from asysi.bus.stream import AheadError, StreamError

LEASE_SECONDS = 10.0
"""How long a place stays taken without a sign of its owner."""
DELIVERIES = 5
"""How often an entry is handed out alone to a consumer that dies of it, before it is a dead letter."""
_CHUNK = 500
"""Entries acknowledged in one step."""


class RedisStreamBus:
    """A stream in Redis.

    Args:
        url: of Redis: see `asysi.bus.redis_client.connect`.
        name: of the stream; its keys begin with `asysi:{name}:`.
        last: whether the attempt is over when the producer is gone, so that nothing restarts it.
        lease: seconds after which the place of a process that died is free.
    """

    def __init__(self, url: str, name: str, *, last: bool = False, lease: float = LEASE_SECONDS) -> None:
        self._url, self._prefix, self._last, self._lease = url, f"asysi:{{{name}}}:", last, lease
        self._opened: _Store | None = None

    def create(self, plan: StreamPlan) -> None:
        """Create the stream, unless it exists: a packet takes a chunk.

        Raises:
            StreamError: Redis does not answer.
        """
        depth = plan.depth * plan.shards
        self._store().run(
            scripts.CREATE, depth, plan.chunk_bytes, int(self._last), ",".join(plan.readers)
        )  # fmt: skip

    def missing_bytes(self, plan: StreamPlan) -> int:
        """Return 0: the packets lie in Redis."""
        return 0

    def producer(self, threads: int = 1) -> "RedisProducer":
        """Attach as the producer, once the lease of a predecessor that died has run out.

        Raises:
            StreamError: there is no stream, or another producer is alive.
        """
        return RedisProducer(_RedisProducerSeat(self._store(), self._lease))

    def consumer(self, name: str) -> ServedConsumer:
        """Attach as the consumer `name`, once the lease of a predecessor that died has run out.

        Raises:
            StreamError: there is no stream, or another consumer with this name is alive.
            ValueError: the stream has no consumer with this name.
        """
        store = self._store()
        readers = store.record().readers
        if name not in readers:
            raise ValueError(f"there is no consumer {name}, only {', '.join(readers)}")
        return ServedConsumer(_RedisConsumerSeat(store, name, self._lease))

    def control(self) -> ServedControl:
        """Open the stream read-only.

        Raises:
            StreamError: there is no stream.
        """
        store = self._store()
        store.record()
        return ServedControl(store)

    def note(self) -> tuple[bytes, StreamRecord]:
        """Return what the producer says of itself, and the counters of the same moment."""
        return self._store().noted()

    def words(self) -> dict[int, float]:
        """Return the words of the mailbox that were written."""
        return self._store().words()

    def _store(self) -> "_Store":
        if self._opened is None:
            self._opened = _Store(connect(self._url), self._prefix, self._url)
        return self._opened


class _Store:
    """A stream's keys.

    Args:
        client: connection to Redis.
        prefix: of the keys.
        url: for messages.
    """

    def __init__(self, client: RedisClient, prefix: str, url: str) -> None:
        self.client, self.prefix, self._url = client, prefix, url.rpartition("@")[2]
        self._scripts: dict[str, Any] = {}

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script.

        Raises:
            StreamError: Redis does not answer, or the script refuses.
        """
        known = self._scripts.get(script)
        if known is None:
            known = self._scripts[script] = self.client.register_script(script)
        with self.translated():
            return known(keys=[self.prefix], args=list(arguments))

    def translated(self) -> "_Translated":
        """Return a context in which what Redis raises becomes a StreamError."""
        return _Translated(self._url)

    def key(self, name: str) -> str:
        """Return the full name of a key."""
        return self.prefix + name

    def names(self) -> list[str]:
        """Return the hook points, by account."""
        with self.translated():
            return [name.decode() for name in self.client.lrange(self.key("names"), 0, -1)]

    def record(self) -> StreamRecord:
        """Return every counter, of one moment."""
        return self.noted()[1]

    def noted(self) -> tuple[bytes, StreamRecord]:
        """Return the producer's note, and every counter of the same moment."""
        shape, state, seated, names, made, roles, note = self.run(scripts.RECORD)
        shape, state = _table(shape), _table(state)
        writer = ProducerState(state["state"])
        if writer is ProducerState.ATTACHED and not seated:
            writer = ProducerState.ATTEMPT_OVER if int(shape["last"]) else ProducerState.GONE
        produced = [_produced(_table(row)) for row in made]
        published = [int(str(row["published"])) for row in produced]
        depth, packets = int(shape["depth"]), int(state["packets"])
        return note, StreamRecord(
            state=writer,
            generation=int(state["generation"]),
            head=int(state["head"]),
            depth=depth,
            names=[name.decode() for name in names],
            produced=produced,
            readers={
                role.decode(): _reader(
                    _table(own), bool(held), [_table(row) for row in rows], published, packets, depth
                )
                for role, held, own, rows in roles
            },
        )  # fmt: skip

    def word(self, word: int, /) -> float:
        """Return a word of the mailbox, 0 before the first."""
        with self.translated():
            found = self.client.hget(self.key("words"), str(int(word)))
        return _number(found) if found is not None else 0

    def words(self) -> dict[int, float]:
        """Return the words that were written."""
        with self.translated():
            return {
                int(word): _number(value) for word, value in self.client.hgetall(self.key("words")).items()
            }

    def set_word(self, word: int, value: float, /) -> None:
        """Set a word of the mailbox."""
        with self.translated():
            self.client.hset(self.key("words"), str(int(word)), repr(value))

    def leave(self) -> None:
        """Nothing is held."""


class _Translated:
    """A context in which what Redis raises becomes a StreamError."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ResponseError):
            raise StreamError(f"Redis at {self._where} refuses: {error}") from error
        if isinstance(error, RedisError):
            raise StreamError(f"Redis at {self._where} does not answer: {error}") from error


def _table(flat: list[bytes]) -> dict[str, str]:
    """Return a hash as the scripts return it."""
    return {key.decode(): value.decode() for key, value in zip(flat[::2], flat[1::2], strict=True)}


def _number(value: bytes) -> float:
    text = value.decode()
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _produced(row: Mapping[str, str]) -> dict[str, object]:
    counted: dict[str, object] = {
        name: int(row.get(name, 0)) for name in ("seen", "published", "sampled_out", "packets")
    }
    return {**counted, "dropped": [int(row.get(f"d{int(reason)}", 0)) for reason in DropReason]}


def _reader(  # noqa: PLR0917 - a row each
    own: Mapping[str, str],
    held: bool,
    rows: list[dict[str, str]],
    published: list[int],
    packets: int,
    depth: int,
) -> ReaderRecord:
    state = ReaderState(own["state"])
    if state is ReaderState.ATTACHED and not held:
        state = ReaderState.GONE
    return ReaderRecord(
        state=state,
        cursor=int(own["cursor"]),
        lag=0.0 if state.final else min(1.0, (packets - int(own["settled"])) / depth),
        consumed=[_consumed(row, made, final=state.final) for row, made in zip(rows, published, strict=True)],
        gauges=[[float(row.get(f"g{slot}", 0)) for slot in range(GAUGES)] for row in rows],
    )


def _consumed(row: Mapping[str, str], published: int, *, final: bool) -> dict[str, int]:
    """Return the rows of a role; once it has finished, everything else is lapped."""
    durable, rolled_back = (int(row.get(name, 0)) for name in ("durable", "rolled_back"))
    lapped = published - durable - rolled_back if final else int(row.get("lapped", 0))
    position = published if final else int(row.get("position", 0))
    return {"position": position, "durable": durable, "lapped": lapped, "rolled_back": rolled_back}


class _Lease:
    """A place of this process's, renewed by a thread until it is left.

    Args:
        store: the stream.
        seat: name of the place.
        seconds: how long it stays taken without a sign of this process.

    Raises:
        StreamError: another process holds it, longer than a dead one could.
    """

    def __init__(self, store: _Store, seat: str, seconds: float) -> None:
        self.token = secrets.token_hex(8)
        self._store, self._seat, self._milliseconds = store, seat, int(seconds * 1000)
        deadline = time.monotonic() + 1.2 * seconds
        while not store.run(scripts.ATTACH, seat, self.token, self._milliseconds):
            if time.monotonic() > deadline:
                raise StreamError(f"another process is attached as {seat.removeprefix('role:')}")
            time.sleep(seconds / 20)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(seconds / 3,), name="lease", daemon=True)
        self._thread.start()

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script; a lease that ran out while Redis was away is taken up again first, if it can be."""
        try:
            return self._store.run(script, *arguments)
        except StreamError as error:
            if "FENCED" not in str(error) or self._left.is_set() or not self.renew():
                raise
        return self._store.run(script, *arguments)

    def renew(self) -> bool:
        """Return whether the place is still this process's."""
        return bool(self._store.run(scripts.RENEW, self._seat, self.token, self._milliseconds))

    def leave(self) -> None:
        """Free the place."""
        if self._left.is_set():
            return
        self._left.set()
        with suppress(StreamError):  # it runs out
            self._store.run(scripts.LEAVE, self._seat, self.token)

    def _beat(self, seconds: float) -> None:
        while not self._left.wait(seconds):
            with suppress(StreamError):  # Redis is away; whoever uses the place is told
                self.renew()


class _RedisProducerSeat:
    """The producer's place. Its operations are numbered, so that one whose answer was lost is done once."""

    def __init__(self, store: _Store, lease: float) -> None:
        self._store, self._lease = store, _Lease(store, "producer", lease)
        generation, head, self._operation, names, published, settled, self.depth, self.packet_bytes = (
            self._lease.run(scripts.START, self._lease.token)
        )
        self.start = StreamStart(generation, head, [name.decode() for name in names], published, settled)

    def register(self, point: str, /) -> int:
        return int(self._lease.run(scripts.REGISTER, self._lease.token, point))

    def room(self) -> int:
        return int(self._store.run(scripts.ROOM))

    def push(self, account: int, rows: int, source: int, sequence: int, content: bytes, /) -> bool:
        return bool(self._numbered(scripts.PUSH, account, rows, source, sequence, content))

    def book(  # noqa: PLR0917 - one message
        self, account: int, seen: int, sampled_out: int, dropped: int, reason: int, source: int, /
    ) -> None:
        self._numbered(scripts.BOOK, account, seen, sampled_out, dropped, int(reason), source)

    def end(self, end: StreamEnd, /) -> None:
        self._lease.run(scripts.END, self._lease.token, str(end))

    def set_note(self, note: bytes, /) -> None:
        self._lease.run(scripts.NOTE, self._lease.token, note)

    def leave(self) -> None:
        self._lease.leave()

    def _numbered(self, script: str, *arguments: Any) -> int:
        answer = int(self._lease.run(script, self._lease.token, self._operation + 1, *arguments))
        self._operation += 1
        return answer


class RedisProducer(ServedProducer):
    """The producer's end, which can leave a note for others."""

    def __init__(self, seat: _RedisProducerSeat) -> None:
        super().__init__(seat)
        self.set_note = seat.set_note


class _OwnedEntry(NamedTuple):
    """An entry that this consumer owns."""

    sequence: int
    end: int
    """Rows of the account up to and including it."""
    account: int
    rows: int
    content: bytes
    """b"" where it was not fetched yet."""

    @property
    def name(self) -> str:
        """Its ID in the stream."""
        return f"{self.sequence}-{self.end}"


class _RedisConsumerSeat:
    """A consumer's place.

    What a predecessor did not acknowledge comes first, one entry at a time: so it is known which of them a
    consumer dies of.
    """

    def __init__(self, store: _Store, role: str, lease: float) -> None:
        self._store, self._role = store, role
        self._lease = _Lease(store, f"role:{role}", lease)
        self.depth = int(self._lease.run(scripts.OPEN, role, self._lease.token))
        self._accounts = 0
        """Hook points that are read so far."""
        self._again: deque[_OwnedEntry] = deque()
        self._ready: deque[_OwnedEntry] = deque()
        self._handed: deque[_OwnedEntry] = deque()
        self._taken: list[_OwnedEntry] = []
        self._tried: int | None = None
        """Sequence of the entry that was handed out alone."""
        self._unsure = False
        """Whether Redis may have given entries in an answer that was lost."""
        self._claim()

    # -- messages

    def pull(self, taken: int, limit: int, timeout: float, /) -> PulledEntries:
        self._take(taken)
        found = self._next(limit, timeout)
        self._handed.extend(found)
        end = None if found else self._end()
        pressed = 2 * len(self._taken) >= self.depth
        return PulledEntries([entry.content for entry in found], end, pressed)

    def acknowledge(self, taken: int, /) -> None:
        self._take(taken)
        self._settle("durable", self._taken)
        self._taken = []

    def resume(self, durable: Mapping[str, int], /) -> None:
        record = self._store.record()
        rows = record.readers[self._role].consumed
        missed = [one["lapped"] + one["rolled_back"] for one in rows]
        had = {
            point: int(str(made["published"])) - lost
            for point, made, lost in zip(record.names, record.produced, missed, strict=True)
        }
        for point, stored in durable.items():
            if stored > had.get(point, 0):
                raise AheadError(point, stored, f"{stored} durable rows, {had.get(point, 0)} published")
        held = [durable.get(point, 0) for point in record.names]
        stored_entries = [e for e in self._again if e.end - missed[e.account] <= held[e.account]]
        self._settle("durable", stored_entries)
        self._again = deque(e for e in self._again if e not in set(stored_entries))
        lost = [
            (account, one["durable"] - held[account])
            for account, one in enumerate(rows)
            if one["durable"] > held[account]
        ]
        if lost:
            self._run(scripts.ROLL_BACK, *(number for pair in lost for number in pair))

    def finish(self, taken: int, state: ReaderState, /) -> None:
        self.acknowledge(taken)
        self._run(scripts.FINISH, str(state))

    def unread(self, taken: int, /) -> int:
        self._take(taken)
        with self._store.translated():
            packets = self._store.client.hget(self._store.key("state"), "packets")
            settled = self._store.client.hget(self._store.key(f"role:{self._role}"), "settled")
        return int(packets) - int(settled) - len(self._taken)

    def gauge(self, point: str, slot: int, value: float, /) -> None:
        self._run(scripts.GAUGE, self.names().index(point), int(slot), repr(value))

    def names(self) -> list[str]:
        return self._store.names()

    def leave(self) -> None:
        self._lease.leave()

    def _run(self, script: str, *arguments: Any) -> Any:
        return self._lease.run(script, self._role, self._lease.token, *arguments)

    # -- entries

    def _take(self, taken: int) -> None:
        if not taken:
            return
        newest: dict[int, _OwnedEntry] = {}
        for _ in range(taken):
            entry = self._handed.popleft()
            newest[entry.account] = entry
            self._taken.append(entry._replace(content=b""))
        self._run(
            scripts.TAKE, *(number for e in newest.values() for number in (e.account, e.sequence, e.end))
        )

    def _settle(self, fate: str, entries: list[_OwnedEntry]) -> None:
        for start in range(0, len(entries), _CHUNK):
            listed = entries[start : start + _CHUNK]
            numbers = (number for e in listed for number in (e.account, e.sequence, e.end, e.rows))
            self._run(scripts.ACKNOWLEDGE, fate, *numbers)

    def _next(self, limit: int, timeout: float) -> list[_OwnedEntry]:
        self._survived()
        if self._unsure:
            self._recover()
        while self._again:
            if (entry := self._alone(self._again.popleft())) is not None:
                return [entry]
        if not self._ready:
            self._ready.extend(self._read(limit, timeout))
        return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]

    def _survived(self) -> None:
        """Note that this consumer did not die of the entry that it had alone."""
        if self._tried is not None:
            with self._store.translated():
                self._store.client.hdel(self._store.key(f"tries:{self._role}"), str(self._tried))
            self._tried = None

    def _alone(self, entry: _OwnedEntry) -> _OwnedEntry | None:
        """Fetch an entry that a predecessor had; None for one that too many have died of: a dead letter."""
        client, stream = self._store.client, self._store.key(f"s:{entry.account}")
        with self._store.translated():
            tries = client.hincrby(self._store.key(f"tries:{self._role}"), str(entry.sequence), 1)
            [(_, fields)] = client.xrange(stream, entry.name, entry.name)
        if tries > DELIVERIES:
            self._run(scripts.BURY, entry.account, entry.name, fields[b"p"])
            self._settle("lapped", [entry])
            return None
        self._tried = entry.sequence
        return entry._replace(content=fields[b"p"])

    def _read(self, limit: int, timeout: float) -> list[_OwnedEntry]:
        """Read new entries, waiting for the first; the streams' in the order of publication."""
        found = self._fetch(limit, None)
        if found or timeout <= 0 or self._unsure or self._producer_ended():
            return found
        return self._fetch(limit, max(1, int(timeout * 1000)))

    def _fetch(self, limit: int, block: int | None) -> list[_OwnedEntry]:
        self._accounts = len(self.names())
        if not self._accounts:
            time.sleep((block or 0) / 1000)
            return []
        keys = {self._store.key(f"s:{account}"): ">" for account in range(self._accounts)}
        try:
            answer = self._store.client.reading.xreadgroup(
                self._role, self._lease.token, keys, count=limit, block=block
            )
        except ResponseError as error:
            raise StreamError(f"Redis refuses: {error}") from error
        except RedisError:
            self._unsure = True
            return []
        return sorted(self._entries(answer))

    def _entries(self, answer: Any) -> Iterator[_OwnedEntry]:
        for key, entries in answer or ():
            account = int(key.rpartition(b":")[2])
            for name, fields in entries:
                sequence, end = map(int, name.split(b"-"))
                rows = int(np.frombuffer(fields[b"p"], HEADER_DTYPE, 1)["rows"][0])
                yield _OwnedEntry(sequence, end, account, rows, fields[b"p"])

    def _end(self) -> StreamEnd | None:
        """Return how the stream ended, once there is nothing left."""
        end = self._store.record().state.end
        if end is None:
            return None
        if self.unread(0) > 0:  # published since, or lost with an answer
            self._unsure = True
            return None
        return end

    def _producer_ended(self) -> bool:
        with self._store.translated():
            state = self._store.client.hget(self._store.key("state"), "state")
        return state is not None and ProducerState(state.decode()).end is not None

    # -- entries of the dead, and of lost answers

    def _claim(self) -> None:
        """Take over what is pending in the role's groups."""
        for account in range(len(self.names())):
            key, start = self._store.key(f"s:{account}"), "0-0"
            while True:
                with self._store.translated():  # without contents: none of them counts as delivered
                    names = self._store.client.xautoclaim(
                        key, self._role, self._lease.token, 0, start, _CHUNK, justid=True
                    )
                if len(names) < _CHUNK:
                    break
                sequence, end = map(int, names[-1].split(b"-"))
                start = f"{sequence}-{end + 1}"
        self._again = deque(sorted(self._pending()))

    def _recover(self) -> None:
        """Find entries that Redis has given to this consumer in an answer that was lost."""
        known = {e.sequence for some in (self._again, self._ready, self._handed, self._taken) for e in some}
        lost = [entry for entry in self._pending() if entry.sequence not in known]
        self._again.extend(sorted(lost))
        self._unsure = False

    def _pending(self) -> Iterator[_OwnedEntry]:
        """Yield the entries that this consumer owns, without their content."""
        settled = [
            one["durable"] + one["lapped"] + one["rolled_back"]
            for one in self._store.record().readers[self._role].consumed
        ]
        for account in range(len(self.names())):
            before, start = settled[account], "-"
            while True:
                with self._store.translated():
                    found = self._store.client.xpending_range(
                        self._store.key(f"s:{account}"), self._role, start, "+", _CHUNK, self._lease.token
                    )
                for one in found:
                    sequence, end = map(int, one["message_id"].split(b"-"))
                    yield _OwnedEntry(sequence, end, account, end - before, b"")
                    before = end
                if len(found) < _CHUNK:
                    break
                start = f"({found[-1]['message_id'].decode()}"
