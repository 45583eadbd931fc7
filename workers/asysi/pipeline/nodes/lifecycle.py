"""Lifecycle of a node, from opening after the committed rows to sealing its output."""

import itertools
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from asysi.pipeline.ledger.ledger import Range
from asysi.pipeline.ledger.settled_rows import IDS_ARE_ROW_NUMBERS
from asysi.pipeline.nodes.block_executor import BlockExecutor
from asysi.pipeline.nodes.committer import Committer
from asysi.pipeline.nodes.config import NodeSettings
from asysi.pipeline.nodes.counters import NodeCounters
from asysi.pipeline.nodes.flight_window import FlightWindow
from asysi.pipeline.nodes.run_context import RunContext
from asysi.pipeline.nodes.verify import (
    check_log,
    check_written,
    committed_rows,
    first_and_last_id,
    verify_seal,
    written_digest,
)
from asysi.pipeline.nodes.writer import Writer
from asysi.pipeline.rows.blocks import Result, RowBlock
from asysi.pipeline.streams.completeness import is_complete
from asysi.pipeline.streams.data_streams import IDataStream, ParquetStream
from asysi.pipeline.streams.row_log import FileLog, Log
from asysi.pipeline.streams.seal import START_OVER, Seal, SealError, seal_path
from asysi.pipeline.streams.source import LineSource, LogFeed

if TYPE_CHECKING:
    from asysi.pipeline.formats.parquet_columns import ParquetColumns

_log = logging.getLogger("asysi.pipeline")


class TooManyDeadLettersError(Exception):
    """More rows failed than `max_dead_letters` allows."""


class OpenNode:
    """An open node: its source, executor and output.

    Args:
        settings: effective settings.
        context: the run.
        source: the input stream.
        out: the output stream.
        counters: row counters.
    """

    def __init__(
        self,
        settings: NodeSettings,
        context: RunContext,
        source: IDataStream,
        out: IDataStream,
        counters: NodeCounters,
    ) -> None:
        self._settings, self._context, self._counters = settings, context, counters
        self._bus, self._out = source, out
        self._failed_rows = counters.dead
        self._executor = BlockExecutor(settings, context)
        self._window = FlightWindow(settings, context, self._executor, self._deliver)
        self._columns: ParquetColumns | None = None
        self._source: LineSource | None = None
        self._log: Log | None = None
        self._writer: Writer | None = None
        self._cut = False
        """Whether a block was cut short because the run was ending."""
        self.finished = False
        """Whether all rows are committed and the output is sealed."""

    def open(self, remembered: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """Open source and output after the committed rows.

        Args:
            remembered: rows of another run that an ordered operator needs to restore its state.

        Raises:
            ConfigError: source or output cannot be opened.
            SealError: source or output differ from the ledger or a seal.
        """
        given, context, out = self._settings, self._context, self._out
        last = context.ledger.last(given.node_id) if context.resume else None
        end, rows = (last.out_end, last.out_rows) if last else (0, 0)
        self._log = log = out.log()
        out.unseal()
        if last is not None and isinstance(log, FileLog):
            log.digest = check_log(given.node_id, log, last, context.ledger.ranges(given.node_id))
        log.open(end)
        out.bridge.advance(end, rows)
        self._source = source = self._make_source()
        digest = self._go_behind(source, last)
        self._columns = _columns_of(out)
        if self._columns is not None and last is not None:
            self._columns.add(committed_rows(log, end))
        self._executor.open()
        if last is not None:
            _log.info("[Resume] %s goes on at source row %d, output row %d", given.node_id, last.last, rows)
        if getattr(given.operator, "ordered", False):
            given.operator.restore(itertools.chain(remembered(), committed_rows(log, end)))
        committer = Committer(
            given.node_id,
            log,
            context.ledger,
            out.bridge,
            given.writer_config,
            at=(source.row, rows),
            source_digest=digest,
            committed=self._counters.commit,
            has_parked=lambda: self._window.has_parked,
        )
        self._writer = Writer(given.node_id, given.writer_config, committer)

    def compute(self) -> None:
        """Compute rows until the source or the run ends.

        Raises:
            RowError: a row cannot be processed, and `on_error` is `fail`.
            TooManyDeadLettersError: more rows failed than allowed.
        """
        source, window = self._source, self._window
        assert source is not None
        align = self._settings.batch_size if self._executor.batches else 1
        while not self._context.stop.is_set():
            block = source.take(window.rows_to_take(source.row), align)
            if block is not None:
                window.dispatch(block)
            elif source.ended:
                window.drain()
                if not self._cut:
                    self._seal()
                return
            elif isinstance(source.feed, LogFeed) and source.feed.stopped:
                break
            else:
                window.deliver_ready()
                source.wait(0.05 if window.busy else 0.5)
        window.drain()

    def commit(self) -> None:
        """Write and commit all computed rows.

        Raises:
            BaseException: the error that stopped the writer.
        """
        if self._writer is not None:
            self._writer.close()

    def release(self) -> None:
        """Close source, output and operator; end threads and processes."""
        self._executor.shutdown()
        if self._source is not None:
            self._source.close()
        if self._log is not None:
            self._log.close()
        self._executor.close_operator()

    def end_dispatch_log(self) -> None:
        """Log the remaining dispatched rows."""
        self._window.dispatches.end()

    @property
    def row(self) -> int:
        """Next source row to read."""
        return self._source.row if self._source is not None else 0

    @property
    def waited(self) -> float:
        """Seconds that computing waited for the writer."""
        return self._writer.waited if self._writer is not None else 0.0

    def total(self) -> tuple[int | None, bool]:
        """Return the number of source rows (None: unknown), and whether it is exact."""
        if self._source is None:
            return None, False
        feed = self._source.feed
        if isinstance(feed, LogFeed):
            return self._bus.bridge.rows, self._bus.bridge.ended
        rows, read = self._source.row - self._source.first_row, self._source.offset
        begin = self._source.begin
        if feed.size is None or read <= begin:
            return None, False
        return round(rows * (feed.size - begin) / (read - begin)), self._source.ended

    def _make_source(self) -> LineSource:
        bus, context = self._bus, self._context
        if not bus.bound:
            bus.static = bus.static or is_complete(bus)
            resumed = context.resume and context.ledger.last(self._settings.node_id) is not None
            verify_seal(bus, f"Restore it, or {START_OVER}" if resumed else None)
        elif bus.bridge.ended:
            check_written(bus)
        return bus.source(context.window)

    def _go_behind(self, source: LineSource, last: Range | None) -> Any:
        """Seek past the last committed row and return the running digest of the source up to there."""
        if self._context.is_first:
            self._context.ledger.note(IDS_ARE_ROW_NUMBERS, str(int(not source.stored)))
        first = last.last if last else source.first_row
        digest = source.open(first, last.source_end if last else source.begin)
        if last is not None and digest is not None and digest.hexdigest() != last.source_digest:
            raise SealError(
                f"{self._bus.uri} was changed: node {self._settings.node_id} has committed its rows up to"
                f" {last.last}, and these rows now differ. Restore it, or {START_OVER}"
            )
        return digest

    def _deliver(self, block: RowBlock, result: Result) -> None:
        """Pass a result to the writer; on failure, park the later results and raise."""
        assert self._writer is not None
        if self._columns is not None:
            self._columns.add_lines(result.data)
        self._counters.computed += result.last - result.first
        if result.last > result.first:
            self._writer.put(result, block.data[: result.size])
        failure = result.failure or self._too_many(result)
        for letter in result.dead:
            _log.warning(
                "[Dead Letter] %s row %s: %s: %s",
                self._settings.node_id, letter.identity, letter.reason, letter.error,
            )  # fmt: skip
        self._cut = self._cut or result.last < block.last
        if failure is not None or self._cut:
            self._context.stop.set()
            self._window.abandon()
        if failure is not None:
            raise failure

    def _too_many(self, result: Result) -> TooManyDeadLettersError | None:
        """Count a result's dead letters, and return an error if the limit is exceeded."""
        self._failed_rows += len(result.dead)
        if not result.dead or self._failed_rows <= self._settings.max_dead_letters:
            return None
        return TooManyDeadLettersError(
            f"node {self._settings.node_id}: {self._failed_rows} rows failed, more than max_dead_letters="
            f"{self._settings.max_dead_letters}; the last one: {result.dead[-1].reason}:"
            f" {result.dead[-1].error}"
        )

    def _seal(self) -> None:
        """Commit everything and seal the output at the end of the source."""
        assert self._writer is not None
        assert self._log is not None
        given, context, out = self._settings, self._context, self._out
        self._writer.close()
        last = context.ledger.last(given.node_id)
        parent, expected = last.source_digest if last else None, written_digest(self._bus)
        if last is not None and expected is not None and parent != expected:
            raise SealError(
                f"{self._bus.uri} was changed while node {given.node_id} read it: it does not match its seal"
            )
        digest = self._log.digest.hexdigest() if self._log.digest is not None else ""
        seal = Seal(
            last.out_rows if last else 0,
            self._log.size,
            digest,
            *first_and_last_id(self._log),
            given.node_id,
            context.pipeline_id,
            parent,
        )
        if given.writer_config.fsync:
            self._log.sync()
        out.finish(seal)
        context.ledger.finish(given.node_id, seal.text())
        _log.info("[Seal] %s: %d rows, digest %s", out.uri, seal.rows, seal.digest)
        out.bridge.end()
        self.finished = True


def reopen_finished(node_id: str, context: RunContext, out: IDataStream) -> None:
    """Reopen the sealed output of a finished node for the node that reads it.

    Raises:
        SealError: the output differs from its seal, or was removed.
    """
    if out.read_seal() is None:
        raise SealError(
            f"{out.uri} has lost its seal or was removed: node {node_id} had finished it. Restore it"
            f" with its {seal_path('')}, or {START_OVER}"
        )
    verify_seal(out, f"Restore it, or {START_OVER}")
    last = context.ledger.last(node_id)
    if last is not None:
        log = out.log()
        if isinstance(log, FileLog):
            log.digest = check_log(node_id, log, last, context.ledger.ranges(node_id))
        out.bridge.advance(last.out_end, last.out_rows)
    out.bridge.end()


def _columns_of(bus: IDataStream) -> "ParquetColumns | None":
    """Return the column tracker for a Parquet output, None for formats without a schema.

    Raises:
        ConfigError: Parquet support is not installed.
    """
    if not isinstance(bus, ParquetStream):
        return None
    from asysi.pipeline.formats.parquet_columns import ParquetColumns  # noqa: PLC0415 - not for other formats

    return ParquetColumns(bus.uri, bus.log().path)
