"""Nodes: one operator between two buses, with everything that makes it fast and safe."""

import contextlib
import inspect
import io
import itertools
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asysi.contract.errors import ConfigError
from asysi.pipeline.ledger.ledger import Ledger, Range, Totals
from asysi.pipeline.ledger.settled_rows import OWN_IDS
from asysi.pipeline.nodes import event_loop
from asysi.pipeline.nodes.config import WriterConfig
from asysi.pipeline.nodes.dispatch_log import DispatchLog
from asysi.pipeline.nodes.worker import Worker
from asysi.pipeline.nodes.writer import Writer
from asysi.pipeline.operators.operator import NodeContext, as_operator, is_coroutine, name_of
from asysi.pipeline.rows import values
from asysi.pipeline.rows.blocks import Block, Result
from asysi.pipeline.rows.ids import FIELD
from asysi.pipeline.streams.completeness import is_complete
from asysi.pipeline.streams.data_streams import IDataStream, ParquetStream
from asysi.pipeline.streams.row_log import FileLog, Log
from asysi.pipeline.streams.seal import START_OVER, ChangedError, Seal, SealError, prefix_digest, seal_path
from asysi.pipeline.streams.source import CHUNK, LineSource, LogFeed, Window

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from asysi.pipeline.formats.parquet_columns import ParquetColumns

MAX_THREADS = 1024
_QUICK, _SLOW = 0.02, 0.2
"""Blocks grow while they take less than the one, and shrink when they take more than the other (seconds)."""
_AHEAD = 64
"""Blocks that may be done behind a slow one, for each one computed at once."""
_log = logging.getLogger("asysi.pipeline")


class TooManyDeadLettersError(Exception):
    """More rows failed than `max_dead_letters` allows."""


@dataclass(slots=True)
class Surroundings:
    """What a node needs of the run that it belongs to.

    Attributes:
        pipeline_id: name of the pipeline.
        folder: where ledger and operators keep what they know.
        ledger: what is done.
        stop: set when the run is ending.
        spent: called with (node, result) as soon as a block is computed.
        window: the part of the source that this run reads, for the first node of a shard.
        is_first: whether the node reads the pipeline's input.
        resume: whether ranges of an earlier run are gone on from.
        round: the redrive that this is part of, empty in a run of its own.
    """

    pipeline_id: str
    folder: Path
    ledger: Ledger
    stop: threading.Event = field(default_factory=threading.Event)
    spent: Callable[[str, Result], None] = lambda node, result: None
    window: Window | None = None
    resume: bool = False
    is_first: bool = False
    round: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a node is.

    Attributes:
        status: pending, running, completed, canceled or failed.
        computed: source rows computed.
        durable: source rows committed, and with `fsync` on the disk.
        total: source rows there are, estimated while `exact` is False; None while nothing is known.
        exact: whether `total` is counted.
        made, dropped, blank, dead: rows made; source rows that became none, were empty, failed.
        seconds: since it began.
        waited: seconds that computing waited for the disk.
    """

    status: str
    computed: int
    durable: int
    total: int | None
    exact: bool
    made: int
    dropped: int
    blank: int
    dead: int
    seconds: float
    waited: float


@dataclass(slots=True)
class _Flight:
    """A block that is being computed."""

    block: Block
    future: "Future[Result]"
    since: float
    parked: bool = False


class UnifiedNode:
    """An operator between two buses.

    Args:
        node_id: its name, in files, logs and the ledger.
        parallel_size: batches computed at once, on threads, >= 1.
        batch_size: source rows in a batch, >= 1.
        processes: processes that compute, >= 1; 1 computes in this one.
        writer_config: how it writes.
        on_error: `fail` ends the run at the first row that cannot be processed; `dead_letter` sets such rows
        aside.
        max_dead_letters: rows that may be set aside, >= 0.

    Raises:
        ConfigError: a number is out of its range, or `on_error` is none of the two.
    """

    def __init__(
        self,
        node_id: str,
        parallel_size: int = 1,
        batch_size: int = 1,
        *,
        processes: int = 1,
        writer_config: WriterConfig | None = None,
        on_error: str = "fail",
        max_dead_letters: int = 1000,
    ) -> None:
        for name, value in (
            ("parallel_size", parallel_size),
            ("batch_size", batch_size),
            ("processes", processes),
        ):
            if value < 1:
                raise ConfigError(f"node {node_id}: {name} is {value}: give at least 1")
        if on_error not in {"fail", "dead_letter"}:
            raise ConfigError(f"node {node_id}: on_error is {on_error!r}: give fail or dead_letter")
        self.node_id, self.parallel_size, self.batch_size, self.processes = (
            node_id,
            parallel_size,
            batch_size,
            processes,
        )
        self.writer_config = WriterConfig.of(writer_config)
        self.on_error, self.max_dead_letters = on_error, max_dead_letters
        self.operator: Any = None
        self.input_bus: IDataStream | None = None
        self.output_bus: IDataStream | None = None
        self.status = "pending"
        self.failure: BaseException | None = None
        self._totals = Totals()
        self._computed = self._base = 0
        self._durable = self._made = self._dropped = self._blank = self._dead = 0
        self._began = self._ended = 0.0
        self._around: Surroundings | None = None
        self._source: LineSource | None = None
        self._writer: Writer | None = None
        self._log: Log | None = None
        self._finished = False
        self._limit = batch_size
        self._letters = 0
        self._columns: ParquetColumns | None = None
        self._dispatches = DispatchLog(node_id)
        self.remembered: Callable[[], Iterable[dict[str, Any]]] = tuple
        """Rows that an ordered operator has made in another run and must know of."""
        self._cut = False
        """Whether a block ended early, as the run was ending."""
        self._flights: deque[_Flight] = deque()
        self._pool: Executor | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._worker: Worker | None = None
        self._parked: dict[int, Result] = {}

    def bind_io(self, input_bus: IDataStream, output_bus: IDataStream) -> None:
        """Say where rows come from and where they go."""
        self.input_bus, self.output_bus = input_bus, output_bus

    def set_processor(self, processor: Any, *, single: bool | None = None) -> None:
        """Say what to do.

        Args:
            processor: an operator; a function of (items, ctx) that returns a list with a result for each
                item; or a function of (item, ctx) that returns what becomes of it. `ctx` may be left out.
            single: whether a function takes one row; None: see `FunctionOperator`.

        Raises:
            TypeError: it is neither.
        """
        self.operator = as_operator(processor, single=single)

    def attach(self, around: Surroundings) -> None:
        """Make it part of a run; what it knew of an earlier one is forgotten."""
        self._around = around
        self.status, self.failure = "pending", None
        self._finished = self._cut = False
        self._computed, self._began, self._ended = 0, 0.0, 0.0

    def open(self) -> None:
        """Open source and output, behind what is committed already.

        Raises:
            ConfigError: it has no operator or no buses, or cannot read or write.
            SealError: source or output differ from what the ledger or a seal says of them.
        """
        around, source_bus, out = self._parts()
        seal = around.ledger.finished(self.node_id)
        last = around.ledger.last(self.node_id) if around.resume else None
        self._totals = around.ledger.totals(self.node_id) if around.resume else Totals()
        self._take_totals()
        if seal is not None and around.resume:
            self._open_finished(out, last)
            return
        self._log = out.log()
        out.unseal()
        self._open_log(self._log, last)
        out.bridge.advance(last.out_end if last else 0, last.out_rows if last else 0)
        digest = self._open_source(source_bus, last)
        self._columns = _columns_of(out)
        if self._columns is not None and last is not None:
            self._columns.add(committed_rows(self._log, last.out_end))
        self._parked = around.ledger.parked(self.node_id) if around.resume else {}
        self._make_workers(around)
        if last is not None:
            _log.info(
                "[Resume] %s goes on at source row %d, output row %d", self.node_id, last.last, last.out_rows
            )
        if getattr(self.operator, "ordered", False):
            made = committed_rows(self._log, last.out_end if last else 0)
            self.operator.restore(itertools.chain(self.remembered(), made))
        assert self._source is not None
        self._writer = Writer(
            self.node_id,
            self._log,
            around.ledger,
            out.bridge,
            self.writer_config,
            at=(self._source.row, last.out_rows if last else 0),
            source_digest=digest,
            committed=self._on_commit,
        )
        self._writer.parked = bool(self._parked)

    def run(self) -> None:
        """Compute every row. A node that belongs to no pipeline is opened and closed too.

        Raises:
            RowError: a row cannot be processed, and `on_error` is `fail`.
            TooManyDeadLettersError: more rows failed than allowed.
        """
        if self._around is None:
            from asysi.pipeline.run.pipeline import UnifiedNodePipeline  # noqa: PLC0415 - it knows its nodes

            try:
                UnifiedNodePipeline([self]).run()
            finally:
                self._around = None
            return
        if self._finished:
            return
        self.status, self._began = "running", time.monotonic()
        self._tell_start()
        try:
            self._loop()
        except BaseException as error:
            self.failure = error
            raise

    def _tell_start(self) -> None:
        source, out = (bus.uri if bus else "?" for bus in (self.input_bus, self.output_bus))
        _log.info(
            "[Node] %s starts at source row %d: %s -> %s, parallel_size %d, batch_size %d, processes %d",
            *(self.node_id, self._source.row if self._source else 0, source, out),
            *(self.parallel_size, self.batch_size, self.processes),
        )
        self._dispatches = DispatchLog(self.node_id)

    def close(self) -> None:
        """Commit what was computed, and seal the output if that is everything."""
        try:
            if self._writer is not None:
                self._writer.close()
        except BaseException as error:
            self.failure = self.failure or error
            raise
        finally:
            self._let_go()
        if self.status == "running":
            self.status = "completed" if self._finished else "failed" if self.failure else "canceled"
            self._dispatches.end()
            _log.info(
                "[Node] %s is %s: %d source rows committed, %d rows made", self.node_id, self.status,
                self._durable, self._made,
            )  # fmt: skip

    def recall(self, totals: Totals) -> None:
        """Take up what an earlier run has completed, without opening anything."""
        self._totals = totals
        self._take_totals()
        self.status, self._finished = "completed", True

    def progress(self) -> Progress:
        """Return how far it is."""
        total, exact = self._total()
        end = self._ended or time.monotonic()
        return Progress(
            self.status,
            max(self._base + self._computed, self._durable),
            self._durable,
            total,
            exact,
            self._made,
            self._dropped,
            self._blank,
            self._dead,
            end - self._began if self._began else 0.0,
            self._writer.waited if self._writer else 0.0,
        )

    @property
    def resumed_at(self) -> int:
        """Source rows that were committed before this run began."""
        return self._base

    @property
    def name(self) -> str:
        """What displays call it: its operator's name."""
        return name_of(self.operator)

    # Opening
    # -----------------------------------------------------------------------------------------------------

    def _parts(self) -> tuple[Surroundings, IDataStream, IDataStream]:
        if self.operator is None:
            raise ConfigError(f"node {self.node_id} has nothing to do: call set_processor")
        if self.input_bus is None or self.output_bus is None:
            raise ConfigError(f"node {self.node_id} has no buses: call bind_io")
        assert self._around is not None
        return self._around, self.input_bus, self.output_bus

    def _take_totals(self) -> None:
        totals = self._totals
        self._durable = self._base = totals.rows
        self._made, self._dropped, self._blank, self._dead = (
            totals.made,
            totals.dropped,
            totals.blank,
            totals.dead,
        )
        self._letters = totals.dead

    def _open_finished(self, out: IDataStream, last: Range | None) -> None:
        if out.read_seal() is None:
            raise SealError(
                f"{out.uri} has lost its seal or was removed: node {self.node_id} had finished it. Restore it"
                f" with its {seal_path('')}, or {START_OVER}"
            )
        _verify(out, f"Restore it, or {START_OVER}")
        if last is not None:
            log = out.log()
            if isinstance(log, FileLog) and self._around is not None:
                log.digest = check_log(self.node_id, log, last, self._around.ledger.ranges(self.node_id))
            out.bridge.advance(last.out_end, last.out_rows)
        out.bridge.end()
        self.status, self._finished = "completed", True

    def _open_log(self, log: Log, last: Range | None) -> None:
        if last is not None and isinstance(log, FileLog):
            assert self._around is not None
            log.digest = check_log(self.node_id, log, last, self._around.ledger.ranges(self.node_id))
        log.open(last.out_end if last else 0)

    def _open_source(self, bus: IDataStream, last: Range | None) -> Any:
        assert self._around is not None
        if not bus.bound:
            bus.static = bus.static or is_complete(bus)
            _verify(bus, f"Restore it, or {START_OVER}" if last else None)
        elif bus.bridge.ended:
            _check_written(bus)
        self._source = source = bus.source(self._around.window)
        if self._around.is_first:
            self._around.ledger.note(OWN_IDS, str(int(not source.stored)))
        first = last.last if last else source.first_row
        digest = source.open(first, last.source_end if last else source.begin)
        if last is not None and digest is not None and digest.hexdigest() != last.source_digest:
            raise SealError(
                f"{bus.uri} was changed: node {self.node_id} has committed its rows up to {last.last}, and"
                f" they are not what they were. Restore it, or {START_OVER}"
            )
        return digest

    def _make_workers(self, around: Surroundings) -> None:
        operator = self.operator
        if getattr(operator, "ordered", False) and (self.parallel_size > 1 or self.processes > 1):
            _log.info("%s sees rows in their order: it computes one block at a time", self.node_id)
            self.parallel_size = self.processes = 1
        if self.processes > 1 and _is_async(operator):
            _log.info("%s waits on one thread for many calls: one process is enough", self.node_id)
            self.processes = 1
        letters = self.on_error == "dead_letter"
        if self.processes > 1:
            self._pool = _process_pool(operator, self, around, letters=letters)
            self._worker = Worker(operator, self.batch_size, letters=letters)
            return
        if self.batch_size > 1 and not _is_async(operator):
            threads = min(self.parallel_size * self.batch_size, MAX_THREADS)
            self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"{self.node_id}-rows")
        self._worker = Worker(operator, self.batch_size, letters=letters, threads=self._threads)
        if self.parallel_size > 1:
            self._pool = ThreadPoolExecutor(self.parallel_size, thread_name_prefix=self.node_id)
        _call(operator, "open", self._context())

    def _context(self) -> NodeContext:
        assert self._around is not None
        return NodeContext(
            self.node_id,
            self._around.pipeline_id,
            self._around.folder,
            self._around.stop.is_set,
            self.processes,
            self._around.round,
        )

    # Running
    # -----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        assert self._source is not None
        assert self._around is not None
        assert self._worker is not None
        align = self.batch_size if self._worker.batches else 1
        while not self._around.stop.is_set():
            block = self._source.take(self._rows_to_take(), align)
            if block is not None:
                self._dispatch(block)
            elif self._source.ended:
                self._drain()
                if not self._cut:
                    self._end_of_source()
                return
            elif isinstance(self._source.feed, LogFeed) and self._source.feed.stopped:
                break
            else:
                self._deliver_ready()
                self._source.wait(0.05 if self._flights else 0.5)
        self._drain()

    def _rows_to_take(self) -> int:
        assert self._source is not None
        following = [first for first in self._parked if first >= self._source.row]
        if not following:
            return self._limit
        first = min(following)
        if first == self._source.row:
            return self._parked[first].last - first
        return min(self._limit, first - self._source.row)

    def _dispatch(self, block: Block) -> None:
        assert self._worker is not None
        self._dispatches.tell(block.first, block.last, len(self._flights))
        parked = self._parked.pop(block.first, None)
        if parked is not None:
            self._spent(parked)
            ready: Future[Result] = Future()
            ready.set_result(parked)
            self._flights.append(_Flight(block, ready, time.monotonic(), parked=True))
            self._deliver_ready()
        elif self._pool is None:
            self._drain()  # parked results in front of it
            result = self._worker.run(block, self._context())
            self._spent(result)
            self._adapt(result)
            self._deliver(block, result)
        else:
            self._submit(block)

    def _submit(self, block: Block) -> None:
        assert self._pool is not None
        assert self._worker is not None
        block.lines = None  # what waits for its turn, or goes to a process, is held once
        if self.processes > 1:
            future = self._pool.submit(_run_in_child, block)
        else:
            future = self._pool.submit(self._worker.run, block, self._context())
        future.add_done_callback(self._on_done)
        self._flights.append(_Flight(block, future, time.monotonic()))
        self._deliver_ready()
        slots = max(self.parallel_size, self.processes)
        while self._flights and self._crowded(slots):
            running = [flight.future for flight in self._flights if not flight.future.done()]
            if running:
                wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            self._deliver_ready()
            self._park_late()

    def _crowded(self, slots: int) -> bool:
        """Return whether enough is in flight: being computed, or done behind a slow block."""
        running = sum(not flight.future.done() for flight in self._flights)
        rows = sum(flight.block.rows for flight in self._flights)
        return (
            running >= 2 * slots
            or len(self._flights) >= _AHEAD * slots
            or (rows >= self.writer_config.queue_size and len(self._flights) >= 2 * slots)
        )

    def _deliver_ready(self) -> None:
        while self._flights and self._flights[0].future.done():
            self._land()

    def _drain(self) -> None:
        """Wait for everything in flight: what was begun is finished."""
        while self._flights:
            if not self._flights[0].future.done():
                wait([self._flights[0].future], timeout=0.5)
                self._park_late()
            self._deliver_ready()

    def _land(self) -> None:
        flight = self._flights.popleft()
        result = flight.future.result()
        if not flight.parked:
            self._adapt(result)
        self._deliver(flight.block, result)

    def _deliver(self, block: Block, result: Result) -> None:
        """Give a result to the writer; a failure keeps what was finished behind it, and is raised."""
        assert self._writer is not None
        if self._columns is not None:
            self._columns.add_lines(result.data)
        self._computed += result.last - result.first
        if result.last > result.first:
            self._writer.put(result, block.data[: result.size])
        failure: Exception | None = result.failure
        self._letters += len(result.dead)
        if failure is None and result.dead and self._letters > self.max_dead_letters:
            failure = TooManyDeadLettersError(
                f"node {self.node_id}: {self._letters} rows failed, more than max_dead_letters="
                f"{self.max_dead_letters}; the last one: {result.dead[-1].reason}: {result.dead[-1].error}"
            )
        for letter in result.dead:
            _log.warning(
                "[Dead Letter] %s row %s: %s: %s", self.node_id, letter.identity, letter.reason, letter.error
            )
        self._cut = self._cut or result.last < block.last
        if failure is not None or self._cut:
            self._around.stop.set() if self._around else None
            wait([flight.future for flight in self._flights])
            self._park([flight for flight in self._flights if not flight.parked])
            self._flights.clear()
        if failure is not None:
            raise failure

    def _park_late(self) -> None:
        """Put results on the disk that have waited long for a slow block in front of them."""
        now = time.monotonic()
        late = [
            flight
            for flight in self._flights
            if flight.future.done()
            and not flight.parked
            and now - flight.since > self.writer_config.flush_interval
        ]
        if self._flights and not self._flights[0].future.done():
            self._park(late)

    def _park(self, flights: list[_Flight]) -> None:
        done = [flight for flight in flights if flight.future.done() and not flight.future.exception()]
        whole = [
            flight.future.result() for flight in done if flight.future.result().last == flight.block.last
        ]
        if whole and self._around is not None and self._writer is not None:
            self._around.ledger.park(self.node_id, whole)
            self._writer.parked = True
        for flight in done:
            flight.parked = True

    def _adapt(self, result: Result) -> None:
        """Let blocks grow until they are worth their handling; a block of an operator that waits is one
        batch.
        """
        assert self._worker is not None
        if self._worker.waits or result.failure is not None:
            self._limit = self.batch_size
        elif result.seconds < _QUICK and result.last - result.first >= self._limit:
            most = max(self.batch_size, self.writer_config.queue_size // self.batch_size * self.batch_size)
            self._limit = min(2 * self._limit, most)
        elif result.seconds > _SLOW:
            self._limit = max(self.batch_size, self._limit // 2 // self.batch_size * self.batch_size)

    def _end_of_source(self) -> None:
        assert self._source is not None
        assert self._writer is not None
        assert self._log is not None
        around, source_bus, out = self._parts()
        self._writer.close()
        last = around.ledger.last(self.node_id)
        parent = last.source_digest if last else None
        expected = _written_digest(source_bus)
        if last is not None and expected is not None and parent != expected:
            raise SealError(
                f"{source_bus.uri} was changed while node {self.node_id} read it: it no longer fits its seal"
            )
        first, final = _ends(self._log)
        digest = self._log.digest.hexdigest() if self._log.digest is not None else ""
        seal = Seal(
            last.out_rows if last else 0,
            self._log.size,
            digest,
            first,
            final,
            self.node_id,
            around.pipeline_id,
            parent,
        )
        if self.writer_config.fsync:
            self._log.sync()
        out.finish(seal)
        around.ledger.finish(self.node_id, seal.text())
        _log.info("[Seal] %s: %d rows, digest %s", out.uri, seal.rows, seal.digest)
        out.bridge.end()
        self._finished = True

    # Afterwards
    # --------------------------------------------------------------------------------------------------

    def _spent(self, result: Result) -> None:
        assert self._around is not None
        if result.usage:
            self._around.spent(self.node_id, result)

    def _on_done(self, future: "Future[Result]") -> None:
        if not future.cancelled() and future.exception() is None:
            self._spent(future.result())

    def _on_commit(self, done: Range) -> None:
        self._durable += done.last - done.first
        self._made += done.made
        self._dropped += done.dropped
        self._blank += done.blank
        self._dead += done.dead

    def _total(self) -> tuple[int | None, bool]:
        if self._finished:
            return self._durable, True
        if self._source is None:
            return None, False
        feed = self._source.feed
        if isinstance(feed, LogFeed) and self.input_bus is not None:
            return self.input_bus.bridge.rows, self.input_bus.bridge.ended
        first = self._source.first_row
        rows, read = self._source.row - first, self._source.offset
        begin = self._source.begin
        if feed.size is None or read <= begin:
            return None, False
        return round(rows * (feed.size - begin) / (read - begin)), self._source.ended

    def _let_go(self) -> None:
        self._ended = time.monotonic()
        for pool in (self._pool, self._threads):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._threads = None
        if self._source is not None:
            self._source.close()
        if self._log is not None:
            self._log.close()
        if self._worker is not None and self.processes == 1:
            _call(self.operator, "close")
        if self.output_bus is not None and not self._finished:
            self.output_bus.bridge.stop()


class OperatorNode(UnifiedNode):
    """A node that is made with its operator.

    Args:
        node_id: its name.
        operator: what it does, or a function of (items, ctx).
        settings: see `UnifiedNode`.

    Raises:
        ConfigError: see `UnifiedNode`.
        TypeError: the operator is none.
    """

    def __init__(self, node_id: str, operator: Any, **settings: Any) -> None:
        super().__init__(node_id, **settings)
        self.set_processor(operator)


ParallelBatchNode = UnifiedNode
"""Every node computes batches in parallel: `parallel_size` says how many."""


def check_log(node: str, log: FileLog, last: Range, ranges: Iterator[Range]) -> Any:
    """Return the running digest of the committed part of an output.

    Raises:
        SealError: it is not what was committed; it says which rows differ.
    """
    size = log.path.stat().st_size if log.path.exists() else 0
    if size < last.out_end:
        raise SealError(
            f"{log.path} was cut: node {node} has committed {last.out_rows} rows in {last.out_end} bytes, "
            f"and {size} bytes"
            f" are left. Restore it, or {START_OVER}"
        )
    with log.path.open("rb", buffering=CHUNK) as stream:
        digest = prefix_digest(stream, last.out_end)
    if last.out_digest is not None and digest.hexdigest() != last.out_digest:
        raise SealError(
            f"{log.path} was changed after node {node} had committed it{_where(log.path, ranges)}. Restore"
            f" it, or {START_OVER}"
        )
    return digest


def _where(path: Path, ranges: Iterator[Range]) -> str:
    """Return the first committed range whose rows are not what they were."""
    with path.open("rb", buffering=CHUNK) as stream:
        digest, at, rows = prefix_digest(io.BytesIO(), 0), 0, 0
        for done in ranges:
            digest.update(stream.read(done.out_end - at))
            if digest.hexdigest() != done.out_digest:
                within = f"its rows {rows} to {done.out_rows} (bytes {at} to {done.out_end})"
                return f": the first change lies in {within}"
            at, rows = done.out_end, done.out_rows
    return ""


def _verify(bus: IDataStream, advice: str | None) -> None:
    """Compare a bus with its seal.

    Raises:
        SealError: they differ; it ends with the advice.
    """
    try:
        bus.verify()
    except ChangedError as error:
        raise SealError(f"{error.facts}. {advice or error.advice}") from None
    except FileNotFoundError:
        raise SealError(f"{bus.uri} is gone, and its seal is still there. {advice or 'Restore it'}") from None


def _check_written(bus: IDataStream) -> None:
    """Compare a bus with what the node before wrote to it.

    Raises:
        SealError: they differ.
    """
    expected, log = _written_digest(bus), bus.log()
    if expected is None or not isinstance(log, FileLog):
        return
    size = log.path.stat().st_size if log.path.exists() else 0
    with log.path.open("rb", buffering=0) as stream:
        found = prefix_digest(stream, size).hexdigest()
    if found != expected:
        raise SealError(
            f"{bus.uri} was changed after it had been sealed: its digest is {found}, not {expected}. Restore"
            f" it, or {START_OVER}"
        )


def _written_digest(bus: IDataStream) -> str | None:
    """Return the digest of what a node of this run wrote to a bus, None where that is not known."""
    log = bus.log() if bus.bound else None
    return log.digest.hexdigest() if isinstance(log, FileLog) and log.digest is not None else None


def _ends(log: Log) -> tuple[str | None, str | None]:
    """Return the ids of the first and last row."""
    if not log.size or log.volatile:
        return None, None
    head = b""
    while b"\n" not in head and len(head) < log.size:
        head += log.read(len(head), CHUNK)
    step = CHUNK
    tail = log.read(max(0, log.size - step), step)
    while tail.count(b"\n") < 2 and step < log.size:
        step *= 2
        tail = log.read(max(0, log.size - step), step)
    first, last = head.partition(b"\n")[0], tail.rstrip(b"\n").rpartition(b"\n")[2]
    return str(values.loads(first)[FIELD]), str(values.loads(last)[FIELD])


def committed_rows(log: Log, size: int) -> Iterator[dict[str, Any]]:
    """Yield the rows in the first `size` bytes of a log."""
    at, rest = 0, b""
    while at < size:
        data = log.read(at, min(CHUNK, size - at))
        at += len(data)
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        yield from map(values.loads, lines)


def _columns_of(bus: IDataStream) -> "ParquetColumns | None":
    """Return what looks at the rows for a bus, None where its format holds every row.

    Raises:
        ConfigError: Parquet cannot be written here.
    """
    if not isinstance(bus, ParquetStream):
        return None
    from asysi.pipeline.formats.parquet_columns import ParquetColumns  # noqa: PLC0415 - not for other formats

    return ParquetColumns(bus.uri, bus.log().path)


def _call(operator: Any, method: str, *arguments: Any) -> None:
    found = getattr(operator, method, None)
    if inspect.iscoroutinefunction(found):
        event_loop.submit(found, *arguments).result()
    elif found is not None:
        found(*arguments)


def _is_async(operator: Any) -> bool:
    return is_coroutine(operator, "process_item") or is_coroutine(operator, "process_batch")


# In the processes that compute
# -----------------------------------------------------------------------------------

_child: tuple[Worker, Callable[[], NodeContext]] | None = None


def _process_pool(
    operator: Any, node: UnifiedNode, around: Surroundings, *, letters: bool
) -> "ProcessPoolExecutor":
    """Return processes that are ready to compute. They are forked: operators need not be picklable."""
    import multiprocessing  # noqa: PLC0415 - a run in one process does without
    from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415

    context = multiprocessing.get_context("fork")
    stop = context.Event()
    task = _Task(
        operator,
        node.node_id,
        node.batch_size,
        letters,
        around.pipeline_id,
        around.folder,
        node.processes,
        os.getpid(),
    )
    pool = ProcessPoolExecutor(
        node.processes, context, initializer=_begin_child, initargs=(task, stop.is_set)
    )
    pool.submit(os.getpid).result(timeout=60)
    threading.Thread(target=_pass_on, args=(around.stop, stop, pool), daemon=True).start()
    return pool


def _pass_on(stop: threading.Event, child_stop: Any, pool: "ProcessPoolExecutor") -> None:
    while not stop.wait(0.5):
        if getattr(pool, "_shutdown_thread", False):
            return
    child_stop.set()


@dataclass(frozen=True, slots=True)
class _Task:
    """What a process that computes must know."""

    operator: Any
    node_id: str
    batch_size: int
    letters: bool
    pipeline_id: str
    folder: Path
    processes: int
    parent: int


def _begin_child(task: _Task, stopped: Callable[[], bool]) -> None:
    global _child  # noqa: PLW0603 - a process of its own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with, args=(task.parent,), daemon=True).start()

    def context() -> NodeContext:
        return NodeContext(task.node_id, task.pipeline_id, task.folder, stopped, task.processes)

    threads = ThreadPoolExecutor(min(task.batch_size, MAX_THREADS)) if task.batch_size > 1 else None
    _call(task.operator, "open", context())
    _child = (Worker(task.operator, task.batch_size, letters=task.letters, threads=threads), context)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    with contextlib.suppress(Exception):
        os._exit(1)


def _run_in_child(block: Block) -> Result:
    assert _child is not None
    worker, context = _child
    return worker.run(block, context())
