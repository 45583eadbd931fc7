"""The bus of CONSUMER mode on one machine: a queue a role, in a server, which keeps what is not durable."""

from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any, Protocol

from asysi.bus.plan import StreamPlan
from asysi.bus.queue_server import KEY, SOCKET, HubProxy, QueueHub, QueueManager
from asysi.bus.served import (
    PulledEntries,
    ServedConsumer,
    ServedControl,
    ServedProducer,
    StreamRecord,
    StreamStart,
)
from asysi.bus.states import ReaderState, StreamEnd
from asysi.bus.stream import StreamError


class PythonQueueBus:
    """A stream in a queue server.

    Args:
        server: folder of the server: see `asysi.bus.queue_server`; or a hub in this process.
        stream: name of the stream.
        last: whether the attempt is over when the producer is gone, so that nothing restarts it.
    """

    def __init__(self, server: str | Path | QueueHub, stream: str = "bus", *, last: bool = False) -> None:
        self._server: _Server
        self._server = _InProcess(server) if isinstance(server, QueueHub) else _Connected(Path(server))
        self._stream, self._last = stream, last

    def create(self, plan: StreamPlan) -> None:
        """Create the stream, unless it exists: a packet takes a chunk, all shards make one queue a reader.

        Raises:
            StreamError: there is no server.
        """
        depth = plan.depth * plan.shards
        self._server.ask("create", self._stream, list(plan.readers), depth, plan.chunk_bytes, self._last)

    def missing_bytes(self, plan: StreamPlan) -> int:
        """Return 0: the packets lie in the server's memory."""
        return 0

    def producer(self, threads: int = 1) -> "QueueProducer":
        """Attach as the producer; keep the calling thread alive as long.

        Raises:
            StreamError: there is no stream, or another producer is alive.
        """
        return QueueProducer(_ProducerSeat(self._server, self._stream))

    def consumer(self, name: str) -> ServedConsumer:
        """Attach as the consumer `name`; keep the calling thread alive as long.

        Raises:
            StreamError: there is no stream, or another consumer with this name is alive.
            ValueError: the stream has no consumer with this name.
        """
        return ServedConsumer(_ConsumerSeat(self._server, self._stream, name))

    def control(self) -> ServedControl:
        """Open the stream read-only.

        Raises:
            StreamError: there is no stream.
        """
        onlooker = _Onlooker(self._server, self._stream)
        onlooker.record()
        return ServedControl(onlooker)

    def note(self) -> tuple[bytes, StreamRecord]:
        """Return what the producer says of itself, and the counters of the same moment."""
        found: tuple[bytes, StreamRecord] = self._server.ask("note", self._stream)
        return found

    def words(self) -> dict[int, float]:
        """Return the words of the mailbox that were written."""
        found: dict[int, float] = self._server.ask("words", self._stream)
        return found


class _Server(Protocol):
    def ask(self, message: str, *arguments: Any) -> Any: ...


class _InProcess:
    """A hub in this process."""

    def __init__(self, hub: QueueHub) -> None:
        self._hub = hub

    def ask(self, message: str, *arguments: Any) -> Any:
        """Call the hub."""
        return getattr(self._hub, message)(*arguments)


class _Connected:
    """A connection to the server in a folder.

    A process has one proxy for each server: the last of several would close the connection of the others.
    """

    _proxies: dict[Path, HubProxy] = {}  # noqa: RUF012 - shared on purpose

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(self, message: str, *arguments: Any) -> Any:
        """Send a message and return the answer.

        Raises:
            StreamError: there is no server, or it refuses.
        """
        try:
            return self._proxy().ask(message, *arguments)
        except (EOFError, OSError, AuthenticationError) as error:
            raise StreamError(f"the queue server in {self._folder} does not answer: {error!r}") from error

    def _proxy(self) -> HubProxy:
        proxy = self._proxies.get(self._folder)
        if proxy is None:
            manager = QueueManager(str(self._folder / SOCKET), (self._folder / KEY).read_bytes())
            manager.connect()
            proxy = self._proxies[self._folder] = manager.hub()
        return proxy


class _ProducerSeat:
    """The producer's place."""

    def __init__(self, server: _Server, stream: str) -> None:
        self._server = server
        self.start: StreamStart
        self._token, self.start, self.depth, self.packet_bytes = server.ask("start", stream)

    def register(self, point: str, /) -> int:
        return int(self._server.ask("register", self._token, point))

    def room(self) -> int:
        return int(self._server.ask("room", self._token))

    def push(self, account: int, rows: int, source: int, sequence: int, content: bytes, /) -> bool:
        return bool(self._server.ask("push", self._token, account, rows, source, sequence, content))

    def book(  # noqa: PLR0917 - one message
        self, account: int, seen: int, sampled_out: int, dropped: int, reason: int, source: int, /
    ) -> None:
        self._server.ask("book", self._token, account, seen, sampled_out, dropped, int(reason), source)

    def end(self, end: StreamEnd, /) -> None:
        self._server.ask("end", self._token, end)

    def set_note(self, note: bytes, /) -> None:
        self._server.ask("set_note", self._token, note)

    def leave(self) -> None:
        with suppress(StreamError):  # with the server the place is gone
            self._server.ask("leave", self._token)


class QueueProducer(ServedProducer):
    """The producer's end, which can leave a note for others."""

    def __init__(self, seat: _ProducerSeat) -> None:
        super().__init__(seat)
        self.set_note = seat.set_note


class _ConsumerSeat:
    """A consumer's place."""

    def __init__(self, server: _Server, stream: str, name: str) -> None:
        self._server, self._stream = server, stream
        self._token, self.depth = server.ask("attach", stream, name)

    def pull(self, taken: int, limit: int, timeout: float, /) -> PulledEntries:
        found: PulledEntries = self._server.ask("pull", self._token, taken, limit, timeout)
        return found

    def acknowledge(self, taken: int, /) -> None:
        self._server.ask("acknowledge", self._token, taken)

    def resume(self, durable: Mapping[str, int], /) -> None:
        self._server.ask("resume", self._token, durable)

    def finish(self, taken: int, state: ReaderState, /) -> None:
        self._server.ask("finish", self._token, taken, state)

    def unread(self, taken: int, /) -> int:
        return int(self._server.ask("unread", self._token, taken))

    def gauge(self, point: str, slot: int, value: float, /) -> None:
        self._server.ask("gauge", self._token, point, int(slot), value)

    def names(self) -> list[str]:
        return list(self._server.ask("names", self._stream))

    def leave(self) -> None:
        with suppress(StreamError):  # with the server the place is gone
            self._server.ask("leave", self._token)


class _Onlooker:
    """Reads a stream."""

    def __init__(self, server: _Server, stream: str) -> None:
        self._server, self._stream = server, stream

    def record(self) -> StreamRecord:
        found: StreamRecord = self._server.ask("record", self._stream)
        return found

    def word(self, word: int, /) -> float:
        found: float = self._server.ask("word", self._stream, int(word))
        return found

    def set_word(self, word: int, value: float, /) -> None:
        self._server.ask("set_word", self._stream, int(word), value)

    def leave(self) -> None:
        """Nothing is held."""
