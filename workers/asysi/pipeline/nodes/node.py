"""Nodes: one operator between two streams."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.pipeline.ledger.ledger import LedgerTotals
from asysi.pipeline.nodes.config import NodeSettings, WriterConfig
from asysi.pipeline.nodes.counters import NodeCounters, Progress
from asysi.pipeline.nodes.lifecycle import OpenNode, reopen_finished
from asysi.pipeline.nodes.run_context import RunContext
from asysi.pipeline.operators.operator import as_operator, is_async, name_of
from asysi.pipeline.streams.data_streams import IDataStream

_log = logging.getLogger("asysi.pipeline")


class Node:
    """An operator between two streams, as part of a run.

    Args:
        node_id: its name in files, logs and the ledger.
        parallel_size: batches computed concurrently on threads, >= 1.
        batch_size: source rows per batch, >= 1.
        processes: worker processes, >= 1; 1 computes in the main process.
        writer_config: how it writes.
        on_error: `fail` ends the run at the first failed row; `dead_letter` sets such rows aside.
        max_dead_letters: maximum number of dead letters, >= 0.

    Raises:
        ConfigError: a number is out of range, or `on_error` is invalid.
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
        self._counters = NodeCounters()
        self._context: RunContext | None = None
        self._opened: OpenNode | None = None
        self._finished = False
        self.remembered: Callable[[], Iterable[dict[str, Any]]] = tuple
        """Rows of another run that an ordered operator needs to restore its state."""

    def bind_io(self, input_bus: IDataStream, output_bus: IDataStream) -> None:
        """Set the input and output streams."""
        self.input_bus, self.output_bus = input_bus, output_bus

    def set_processor(self, processor: Any, *, single: bool | None = None) -> None:
        """Set the operator.

        Args:
            processor: an operator; a function of (items, ctx) that returns a list with one result per item;
                or a function of (item, ctx) that returns the result. `ctx` may be omitted.
            single: whether a function takes one row; None: see `FunctionOperator`.

        Raises:
            TypeError: it is neither an operator nor a function.
        """
        self.operator = as_operator(processor, single=single)

    def attach(self, context: RunContext) -> None:
        """Attach the node to a run; state of an earlier run is reset."""
        self._context, self._opened = context, None
        self.status, self.failure = "pending", None
        self._finished = False
        self._counters.restart()

    def open(self) -> None:
        """Open source and output after the committed rows.

        Raises:
            ConfigError: the operator or a stream is missing or cannot be opened.
            SealError: source or output differ from the ledger or a seal.
        """
        context, source, out = self._parts()
        self._counters.restore(context.ledger.totals(self.node_id) if context.resume else LedgerTotals())
        if context.resume and context.ledger.finished(self.node_id) is not None:
            reopen_finished(self.node_id, context, out)
            self.status, self._finished = "completed", True
            return
        self._opened = OpenNode(self._settings(), context, source, out, self._counters)
        self._opened.open(self.remembered)

    def run(self) -> None:
        """Compute all rows; call between `open` and `close`.

        Raises:
            RowError: a row cannot be processed, and `on_error` is `fail`.
            TooManyDeadLettersError: more rows failed than allowed.
        """
        if self._finished:
            return
        assert self._opened is not None
        self.status = "running"
        self._counters.begin()
        source, out = (bus.uri if bus else "?" for bus in (self.input_bus, self.output_bus))
        _log.info(
            "[Node] %s starts at source row %d: %s -> %s, parallel_size %d, batch_size %d, processes %d",
            *(self.node_id, self._opened.row, source, out),
            *(self.parallel_size, self.batch_size, self.processes),
        )
        try:
            self._opened.compute()
            self._finished = self._opened.finished
        except BaseException as error:
            self.failure = error
            raise

    def close(self) -> None:
        """Commit the computed rows and close everything."""
        try:
            if self._opened is not None:
                self._opened.commit()
        except BaseException as error:
            self.failure = self.failure or error
            raise
        finally:
            self._counters.end()
            if self._opened is not None:
                self._opened.release()
            if self.output_bus is not None and not self._finished:
                self.output_bus.bridge.stop()
        if self.status == "running":
            self.status = "completed" if self._finished else "failed" if self.failure else "canceled"
            if self._opened is not None:
                self._opened.end_dispatch_log()
            _log.info(
                "[Node] %s is %s: %d source rows committed, %d rows made",
                *(self.node_id, self.status, self._counters.durable, self._counters.made),
            )

    def recall(self, totals: LedgerTotals) -> None:
        """Restore the totals of a completed earlier run without opening anything."""
        self._counters.restore(totals)
        self.status, self._finished = "completed", True

    def progress(self) -> Progress:
        """Return the node's progress."""
        opened = self._opened
        total: tuple[int | None, bool] = (None, False)
        if self._finished or (opened is not None and opened.finished):
            total = (self._counters.durable, True)
        elif opened is not None:
            total = opened.total()
        return self._counters.progress(self.status, total, opened.waited if opened else 0.0)

    @property
    def is_attached(self) -> bool:
        """Whether the node is attached to a run."""
        return self._context is not None

    def detach(self) -> None:
        """Detach the node from its run."""
        self._context = None

    @property
    def resumed_at(self) -> int:
        """Source rows committed before this run."""
        return self._counters.base

    @property
    def name(self) -> str:
        """Display name: the operator's name."""
        return name_of(self.operator)

    def _parts(self) -> tuple[RunContext, IDataStream, IDataStream]:
        if self.operator is None:
            raise ConfigError(f"node {self.node_id} has no operator: call set_processor")
        if self.input_bus is None or self.output_bus is None:
            raise ConfigError(f"node {self.node_id} has no streams: call bind_io")
        assert self._context is not None
        return self._context, self.input_bus, self.output_bus

    def _settings(self) -> NodeSettings:
        """Return the effective settings, reduced to what the operator supports."""
        if getattr(self.operator, "ordered", False) and (self.parallel_size > 1 or self.processes > 1):
            _log.info("%s is ordered: it computes one block at a time", self.node_id)
            self.parallel_size = self.processes = 1
        if self.processes > 1 and is_async(self.operator):
            _log.info("%s is asynchronous: it runs in one process", self.node_id)
            self.processes = 1
        return NodeSettings(
            self.node_id,
            self.operator,
            self.parallel_size,
            self.batch_size,
            self.processes,
            self.writer_config,
            self.on_error,
            self.max_dead_letters,
        )
