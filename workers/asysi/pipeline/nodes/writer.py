"""Results onto the disk, in the order of their source: written in batches, committed in groups."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from asysi.pipeline.ledger.ledger import Ledger, Range
from asysi.pipeline.nodes.config import WriterConfig
from asysi.pipeline.rows.blocks import Result
from asysi.pipeline.streams.row_log import Log, MemoryLog, StreamBridge

QUEUED_BYTES = 64 << 20
"""Bytes that may wait for the disk, whatever `queue_size` says."""

_SHARE = 9
"""Commits take at most one part in ten of the time: the next one waits so many times as long as the last one
took.
"""

_WORTH_SAYING = 0.001
"""Seconds of waiting that are worth a line."""
_log = logging.getLogger("asysi.pipeline")


class Writer:
    """Writes one node's results and commits them to the ledger.

    With `async_mode` a thread does it. What is committed is on the disk (with `fsync`) before the ledger says
    so, and only what the ledger has is shown to the next node.

    Args:
        node: name of the node.
        log: where its rows go, open behind what is committed.
        ledger: what is done.
        bridge: tells the next node.
        config: how to write.
        at: source rows and output rows that are committed.
        source_digest: running digest of the source up to there, None where it has none.
        committed: called after each commit.
    """

    def __init__(
        self,
        node: str,
        log: Log,
        ledger: Ledger,
        bridge: StreamBridge,
        config: WriterConfig,
        *,
        at: tuple[int, int],
        source_digest: Any,
        committed: Callable[[Range], None],
    ) -> None:
        self._node, self._log, self._ledger, self._bridge, self._config = node, log, ledger, bridge, config
        self._row, self._rows = at
        self._source_digest, self._committed = source_digest, committed
        self._queue: deque[tuple[Result, bytes]] = deque()
        self._queued_rows = self._queued_bytes = 0
        self._ending = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._pending: list[tuple[Result, bytes]] = []
        self._pending_rows = 0
        self._written: list[Result] = []
        self._since = self._next_commit = time.monotonic()
        self.parked = False
        """Whether the ledger may hold parked results of this node."""
        self.waited = 0.0
        """Seconds that computing has waited for the disk."""
        self._thread: threading.Thread | None = None
        if config.async_mode:
            self._thread = threading.Thread(target=self._run, name=f"{node}-writer", daemon=True)
            self._thread.start()

    def put(self, result: Result, source: bytes) -> None:
        """Take the next result in the order of the source, and the source bytes that it covers.

        Waits while the queue is full.

        Raises:
            BaseException: what stopped the writing.
        """
        if self._thread is None:
            self._gather([(result, source)])
            self._step(ending=False)
            return
        with self._changed:
            if self._is_full(result):
                self._wait_for_room(result)
            self._raise()
            self._queue.append((result, source))
            self._queued_rows += max(result.made, 1)
            self._queued_bytes += len(result.data)
            self._changed.notify_all()

    def close(self) -> None:
        """Write and commit everything.

        Raises:
            BaseException: what stopped the writing.
        """
        if self._thread is None:
            self._step(ending=True)
        else:
            with self._changed:
                self._ending = True
                self._changed.notify_all()
            self._thread.join()
            self._raise()

    def _is_full(self, result: Result) -> bool:
        if self._error is not None or not self._queue:
            return False
        return (
            self._queued_rows + result.made > self._config.queue_size
            or self._queued_bytes + len(result.data) > QUEUED_BYTES
        )

    def _wait_for_room(self, result: Result) -> None:
        began, rows = time.monotonic(), self._queued_rows
        while self._is_full(result):
            self._changed.wait(self._config.retry_interval)
        took = time.monotonic() - began
        self.waited += took
        if took >= _WORTH_SAYING:
            _log.info("[Backpressure] %s waited %.3f s for the disk: %d rows queued", self._node, took, rows)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            ending = False
            while not ending:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue or self._ending, self._pause())
                    taken, ending = list(self._queue), self._ending
                    self._queue.clear()
                rows, size = sum(max(r.made, 1) for r, _ in taken), sum(len(r.data) for r, _ in taken)
                self._gather(taken)
                self._step(ending=ending)
                with self._changed:
                    self._queued_rows -= rows
                    self._queued_bytes -= size
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - the thread that computes raises it
            with self._changed:
                self._error = error
                self._queue.clear()
                self._changed.notify_all()

    def _pause(self) -> float:
        """Return how long the thread may sleep, seconds."""
        now = time.monotonic()
        if self._pending:
            return max(0.0, min(self._config.retry_interval, self._since + self._config.flush_interval - now))
        if self._written:
            return max(0.0, min(self._config.retry_interval, self._next_commit - now))
        return self._config.retry_interval

    def _gather(self, taken: list[tuple[Result, bytes]]) -> None:
        if taken and not self._pending:
            self._since = time.monotonic()
        self._pending += taken
        self._pending_rows += sum(result.made for result, _ in taken)

    def _step(self, *, ending: bool) -> None:
        """Write what is due, then commit what is due."""
        now = time.monotonic()
        late = now - self._since >= self._config.flush_interval
        if self._pending and (ending or late or self._pending_rows >= self._config.flush_batch_size):
            self._write(ending)
        if self._written and (ending or time.monotonic() >= self._next_commit):
            self._commit()

    def _write(self, ending: bool) -> None:
        data = b"".join([result.data for result, _ in self._pending])
        self._wait_for_reader(ending)
        if data:
            self._log.append(data)
        if self._source_digest is not None:
            for _, source in self._pending:
                self._source_digest.update(source)
        for result, _ in self._pending:
            result.data = b""
            self._written.append(result)
        self._pending, self._pending_rows = [], 0

    def _wait_for_reader(self, ending: bool) -> None:
        """Wait while a memory bus is full; its reader only sees what is committed."""
        if isinstance(self._log, MemoryLog) and self._log.full():
            if self._written:
                self._commit()
            while self._log.full() and not (ending or self._ending or self._bridge.stopped):
                time.sleep(0.01)

    def _commit(self) -> None:
        began = time.monotonic()
        results, self._written = self._written, []
        if self._config.fsync:
            self._log.sync()
        self._rows += sum(result.made for result in results)
        dead = [letter for result in results for letter in result.dead]
        done = Range(
            self._row,
            results[-1].last,
            results[-1].end,
            self._source_digest.hexdigest() if self._source_digest is not None else None,
            self._rows,
            self._log.size,
            self._log.digest.hexdigest() if self._log.digest is not None else None,
            sum(result.made for result in results),
            sum(result.dropped for result in results),
            sum(result.blank for result in results),
            len(dead),
            _added(results),
        )
        self._ledger.commit(self._node, done, dead, parked=self.parked)
        self._row = done.last
        self._bridge.advance(done.out_end, done.out_rows)
        self._committed(done)
        ended = time.monotonic()
        self._next_commit = ended + min(self._config.flush_interval, _SHARE * (ended - began))


def _added(results: list[Result]) -> dict[str, float]:
    usage: dict[str, float] = {}
    for result in results:
        for name, value in result.usage.items():
            usage[name] = usage.get(name, 0) + value
    return usage
