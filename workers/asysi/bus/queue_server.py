"""The queue server, which keeps streams in its memory: `python -m asysi.bus.serve_queues FOLDER`.

It listens on a Unix socket in the folder; who can read the key beside it can use it. A place at a stream is
held by the connection that took it: with the process that dies the place is free.
"""

import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager, BaseProxy, Server
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from asysi.bus.queue_stream import QueueStream
from asysi.bus.served import PulledEntries, StreamRecord, StreamStart
from asysi.bus.states import ReaderState, StreamEnd
from asysi.bus.stream import StreamError
from asysi.contract.runtime import QUEUE_KEY

SOCKET, KEY = "queue.sock", QUEUE_KEY
_KEY_BYTES = 32


class _TakenPlace(NamedTuple):
    """A place at a stream, and the thread that serves its holder's connection."""

    stream: QueueStream
    role: str | None
    """Name of the consumer; None for the producer."""
    thread: int


class QueueHub:
    """The streams of a server, for one caller at a time. Its methods are the server's messages.

    A token names a place that `start` or `attach` gave.
    """

    def __init__(self) -> None:
        self._streams: dict[str, QueueStream] = {}
        self._places: dict[int, _TakenPlace] = {}
        self._tokens = 0
        self._changed = threading.Condition()

    def create(self, name: str, readers: Sequence[str], depth: int, packet_bytes: int, last: bool) -> None:
        """Create a stream, unless it exists; `last`: the stream ends with its first producer."""
        with self._changed:
            if name not in self._streams:
                self._streams[name] = QueueStream(
                    readers, depth=depth, packet_bytes=packet_bytes, restartable=not last
                )

    # -- the producer

    def start(self, name: str) -> tuple[int, StreamStart, int, int]:
        """Take the producer's place; return its token, where it continues, the depth and the packet size."""
        with self._changed:
            stream = self._stream(name)
            start = stream.start()
            return self._take(stream, None), start, stream.depth, stream.packet_bytes

    def register(self, token: int, point: str) -> int:
        """Return the account of a hook point."""
        with self._changed:
            return self._at(token).stream.register(point)

    def room(self, token: int) -> int:
        """Return how many packets have room."""
        with self._changed:
            return self._at(token).stream.room()

    def push(self, token: int, account: int, rows: int, source: int, sequence: int, content: bytes) -> bool:  # noqa: PLR0917 - one message
        """Put a packet into every queue; False where one is full."""
        with self._changed:
            accepted = self._at(token).stream.push(account, rows, source, sequence, content)
            self._changed.notify_all()
            return accepted

    def book(  # noqa: PLR0917 - one message
        self, token: int, account: int, seen: int, sampled_out: int, dropped: int, reason: int, source: int
    ) -> None:
        """Count rows that were not published."""
        with self._changed:
            self._at(token).stream.book(account, seen, sampled_out, dropped, reason, source)

    def end(self, token: int, end: StreamEnd) -> None:
        """End the stream."""
        with self._changed:
            self._at(token).stream.end(end)
            self._changed.notify_all()

    def set_note(self, token: int, note: bytes) -> None:
        """Replace the producer's note."""
        with self._changed:
            self._at(token).stream.note = note

    # -- the consumers

    def attach(self, name: str, role: str) -> tuple[int, int]:
        """Take a consumer's place; return its token and the depth."""
        with self._changed:
            stream = self._stream(name)
            stream.attach(role)
            return self._take(stream, role), stream.depth

    def pull(self, token: int, taken: int, limit: int, timeout: float) -> PulledEntries:
        """Hand out the next packets, after waiting for the first."""
        with self._changed:
            stream, role = self._consumer(token)
            found = stream.pull(role, taken, limit)
            if found.contents or found.end or timeout <= 0:
                return found
            self._changed.wait_for(
                lambda: token not in self._places or stream.unread(role, 0) or stream.state.end, timeout
            )
            self._at(token)
            return stream.pull(role, 0, limit)

    def acknowledge(self, token: int, taken: int) -> None:
        """Count everything taken as durable."""
        with self._changed:
            stream, role = self._consumer(token)
            stream.acknowledge(role, taken)

    def resume(self, token: int, durable: Mapping[str, int]) -> None:
        """Take over what a storage holds."""
        with self._changed:
            stream, role = self._consumer(token)
            stream.resume(role, durable)

    def finish(self, token: int, taken: int, state: ReaderState) -> None:
        """Count what is left as lapped."""
        with self._changed:
            stream, role = self._consumer(token)
            stream.finish(role, taken, state)

    def unread(self, token: int, taken: int) -> int:
        """Return how many packets are not taken."""
        with self._changed:
            stream, role = self._consumer(token)
            return stream.unread(role, taken)

    def gauge(self, token: int, point: str, slot: int, value: float) -> None:
        """Set a gauge."""
        with self._changed:
            stream, role = self._consumer(token)
            stream.gauge(role, point, slot, value)

    # -- for everybody

    def names(self, name: str) -> list[str]:
        """Return the hook points of a stream."""
        with self._changed:
            return self._stream(name).names()

    def record(self, name: str) -> StreamRecord:
        """Return the counters of a stream."""
        with self._changed:
            return self._stream(name).record()

    def note(self, name: str) -> tuple[bytes, StreamRecord]:
        """Return the producer's note, and the counters of the same moment."""
        with self._changed:
            stream = self._stream(name)
            return stream.note, stream.record()

    def word(self, name: str, word: int) -> float:
        """Return a word of a stream's mailbox."""
        with self._changed:
            return self._stream(name).word(word)

    def words(self, name: str) -> dict[int, float]:
        """Return all words of a stream's mailbox that were written."""
        with self._changed:
            return self._stream(name).words()

    def set_word(self, name: str, word: int, value: float) -> None:
        """Set a word of a stream's mailbox."""
        with self._changed:
            self._stream(name).set_word(word, value)

    def leave(self, token: int) -> None:
        """Free a place; one that is free already stays so."""
        with self._changed:
            self._free([token])

    def forget(self, thread: int) -> None:
        """Free the places of a connection that has ended."""
        with self._changed:
            self._free([token for token, place in self._places.items() if place.thread == thread])

    # -- places

    def _stream(self, name: str) -> QueueStream:
        if name not in self._streams:
            raise StreamError(f"there is no stream {name}")
        return self._streams[name]

    def _take(self, stream: QueueStream, role: str | None) -> int:
        self._tokens += 1
        self._places[self._tokens] = _TakenPlace(stream, role, threading.get_ident())
        return self._tokens

    def _at(self, token: int) -> _TakenPlace:
        if token not in self._places:
            raise StreamError("this place at the stream was given up, or its connection has ended")
        return self._places[token]

    def _consumer(self, token: int) -> tuple[QueueStream, str]:
        place = self._at(token)
        assert place.role is not None
        return place.stream, place.role

    def _free(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            place = self._places.pop(token, None)
            if place is None:
                continue
            if place.role is None:
                place.stream.lose_producer()
            else:
                place.stream.lose_consumer(place.role)
        self._changed.notify_all()


_HUB = QueueHub()
_MESSAGES = tuple(name for name in vars(QueueHub) if not name.startswith("_") and name != "forget")


class HubProxy(BaseProxy):
    """The hub, in another process."""

    _exposed_: ClassVar[tuple[str, ...]] = _MESSAGES

    def ask(self, message: str, *arguments: Any) -> Any:
        """Send a message and return its answer; raises what the server raised."""
        return self._callmethod(message, arguments)


class QueueManager(BaseManager):
    """Connects to a queue server, or is one."""

    hub: Callable[[], HubProxy]

    @classmethod
    def server(cls, address: str, key: bytes) -> "_QueueServer":
        """Return a server that listens."""
        return _QueueServer(cls._registry, address, key, "pickle")  # type: ignore[attr-defined]


QueueManager.register("hub", callable=lambda: _HUB, proxytype=HubProxy, exposed=_MESSAGES)


class _QueueServer(Server):
    """The manager's server, which frees the places of a connection when it ends."""

    def serve_client(self, conn: "Connection[Any, Any]") -> None:
        try:
            super().serve_client(conn)
        finally:
            _HUB.forget(threading.get_ident())


def serve(folder: Path) -> None:
    """Serve in a folder until the process is stopped. The key is written once the server listens."""
    key = secrets.token_bytes(_KEY_BYTES)
    server = QueueManager.server(str(folder / SOCKET), key)
    written = folder / f"{KEY}.{os.getpid()}"
    with os.fdopen(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key)
    written.rename(folder / KEY)
    server.serve_forever()
