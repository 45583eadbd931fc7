"""Writes results to disk in source order: written in batches, committed in groups."""

import time
from collections.abc import Callable
from typing import Any

from asysi.pipeline.ledger.ledger import Range, RowLedger
from asysi.pipeline.nodes.config import WriterConfig
from asysi.pipeline.rows.blocks import Result
from asysi.pipeline.streams.row_log import Log, MemoryLog, StreamBridge

_SHARE = 9
"""Delay of the next commit as a multiple of the last commit's duration, so that commits take at most a tenth
of the time.
"""


class Committer:
    """Writes one node's results in batches and commits them in groups.

    Rows are on disk (with `fsync`) before the ledger records them, and only rows recorded in the ledger are
    visible to the next node.

    Args:
        node: name of the node.
        log: the output, open at the end of the committed rows.
        ledger: the ledger.
        bridge: notifies the next node.
        config: how to write.
        at: number of committed source rows and output rows.
        source_digest: running digest of the source up to there, None if it has none.
        committed: called after each commit.
        has_parked: whether the ledger may hold parked results of this node.
    """

    def __init__(
        self,
        node: str,
        log: Log,
        ledger: RowLedger,
        bridge: StreamBridge,
        config: WriterConfig,
        *,
        at: tuple[int, int],
        source_digest: Any,
        committed: Callable[[Range], None],
        has_parked: Callable[[], bool],
    ) -> None:
        self._node, self._log, self._ledger, self._bridge, self._config = node, log, ledger, bridge, config
        self._row, self._rows = at
        self._source_digest, self._committed, self._has_parked = source_digest, committed, has_parked
        self._pending: list[tuple[Result, bytes]] = []
        self._pending_rows = 0
        self._written: list[Result] = []
        self._since = self._next_commit = time.monotonic()
        self.ending = False
        """Set when no more results will come, so that the committer does not wait for a reader."""

    def pause(self) -> float:
        """Return the seconds until something is due."""
        now = time.monotonic()
        if self._pending:
            return max(0.0, min(self._config.retry_interval, self._since + self._config.flush_interval - now))
        if self._written:
            return max(0.0, min(self._config.retry_interval, self._next_commit - now))
        return self._config.retry_interval

    def gather(self, taken: list[tuple[Result, bytes]]) -> None:
        """Add results, each with the source bytes that it covers."""
        if taken and not self._pending:
            self._since = time.monotonic()
        self._pending += taken
        self._pending_rows += sum(result.made for result, _ in taken)

    def step(self, *, ending: bool) -> None:
        """Write and commit what is due."""
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
        """Wait while a memory stream is full; its reader only sees committed rows."""
        if isinstance(self._log, MemoryLog) and self._log.full():
            if self._written:
                self._commit()
            while self._log.full() and not (ending or self.ending or self._bridge.stopped):
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
        self._ledger.commit(self._node, done, dead, parked=self._has_parked())
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
