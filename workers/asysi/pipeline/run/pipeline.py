"""Pipelines of nodes: run, cancel and redrive."""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.pipeline.ledger.ledger import RowLedger
from asysi.pipeline.ledger.settled_rows import settled_rows
from asysi.pipeline.nodes.libc import keep_freed_memory
from asysi.pipeline.nodes.node import Node
from asysi.pipeline.run.blueprint import PipelineBlueprint
from asysi.pipeline.run.platform_log import journal
from asysi.pipeline.run.redrive import CompletedRun, check_completed, check_output, redrive
from asysi.pipeline.run.results_folder import LEDGER, locked
from asysi.pipeline.run.run import Run, RunPlan
from asysi.pipeline.run.run_state import unchanged
from asysi.pipeline.run.signals import cancel_on_signal
from asysi.pipeline.run.telemetry import Report

_log = logging.getLogger("asysi.pipeline")


class _CheckedError(Exception):
    """Raised after a check to roll back its changes."""


class UnifiedNodePipeline(PipelineBlueprint):
    """Runs nodes that are bound to their streams, and keeps their state.

    Args:
        nodes: the nodes, in order.
        streaming: run all nodes concurrently, each on the committed rows of the previous one.
        results_dir: folder with image, checkpoint and ledger of one pipeline. By default the pipeline's id in
            `base_path`.
        hooks: one or several hooks (`IPipelineHooks`).
        budget: limits by name of reported usage (`cost`, `total_tokens`, …); the run ends cleanly when one is
            reached.
        base_path: folder for everything without an explicit path, by default `tmp`.
        log_dir: folder of `platform.log`, by default `logs`.
        progress: show progress on the terminal; None: if there is one.

    A pipeline run without `create()` and without any of these folders leaves only its outputs.
    """

    def run(self) -> Report:
        """Run until all nodes have finished, the run is canceled, or the budget is exhausted.

        Raises:
            RowError: a row could not be processed; earlier rows are committed, and `resume` continues there.
            SealError: a file differs from the ledger or its seal.
            ConfigError: it cannot start.
        """
        if self.status not in {"created", "resuming"}:
            if self.status != "defined":
                raise ConfigError(
                    f"the pipeline {self.pipeline_id} is {self.status}: call resume() before it runs again"
                )
            if not self._given.leaves_state:
                return self._run_without_a_trace()
            self.create()
        return self._run_created()

    def cancel(self, reason: str = "cancel()") -> None:
        """End the run cleanly: rows in progress are finished and committed."""
        if not self._status.stop.is_set():
            _log.info("[Cancel] %s: %s", self.pipeline_id, reason)
            self._status.name = "canceling"
        self._status.stop.set()

    def redrive(self, pipeline_id: str | None = None, *, accept_changes: bool = False) -> Report:
        """Process the dead letters of a completed pipeline again, starting at the node where they failed.

        The resulting rows keep their ids and are merged into the output at their position; rows that fail
        again stay dead letters. An interrupted redrive continues when called again.

        Args:
            pipeline_id: name of the pipeline; None: the one in `results_dir`.
            accept_changes: redrive even if operators changed.

        Raises:
            ConfigError: there is no such pipeline, it is running or not completed, or its operators differ.
            SealError: its output differs from its ledger.
        """
        self.pipeline_id = pipeline_id or ""
        check_completed(self.results_dir)
        with unchanged(self.results_dir):
            self.resume(pipeline_id, accept_changes=accept_changes)
            with self._redriving() as ledger:
                self.save_runtime()
                status = redrive(self._completed_run(), ledger)
                self._status.name = "completed"
                self.save_runtime()
                if status != "completed":
                    return replace(self._report(ledger), status=status)
        self._status.name = "resuming"
        return self.run()

    def check_redrive(self, pipeline_id: str | None = None, *, accept_changes: bool = False) -> None:
        """Check whether `redrive` would be rejected, without changing anything.

        Raises:
            ConfigError, SealError: see `redrive`.
        """
        self.pipeline_id = pipeline_id or ""
        check_completed(self.results_dir)
        with suppress(_CheckedError), unchanged(self.results_dir):
            self.resume(pipeline_id, accept_changes=accept_changes)
            with self._redriving() as ledger:
                check_output(self._completed_run(), ledger)
            raise _CheckedError

    def _run_without_a_trace(self) -> Report:
        """Run with the state in a temporary folder, which is kept only if a failed run spooled rows."""
        folder, kept = Path(tempfile.mkdtemp(prefix="asysi-pipeline-")), False
        self._given = replace(self._given, results_dir=folder, log_dir=None)
        try:
            self.create()
            return self._run_created()
        except BaseException:
            kept = any((folder / "spool").glob("*"))
            raise
        finally:
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _run_created(self) -> Report:
        keep_freed_memory()
        with ExitStack() as stack:
            stack.enter_context(locked(self.results_dir, self.pipeline_id))
            stack.enter_context(journal(self._given.log_dir))
            stack.enter_context(cancel_on_signal(self.cancel))
            fsync = any(node.writer_config.fsync for node in self.nodes)
            ledger = RowLedger(self.results_dir / LEDGER, fsync=fsync)
            stack.callback(ledger.close)
            Run(self._plan(), ledger, self._status, self._budget, self.get_runtime).execute()
            return self._report(ledger)

    def _plan(self) -> RunPlan:
        return RunPlan(
            self.pipeline_id,
            self.results_dir,
            tuple(self.nodes),
            self.streaming,
            self._resume,
            self._window,
            self._inputs,
            self._operators_dir or self.results_dir,
            self._round,
            self._given.hooks,
            self._given.progress,
        )

    def _report(self, ledger: RowLedger) -> Report:
        names = [node.node_id for node in self.nodes]
        return Report(
            self.pipeline_id,
            self.status,
            {node.node_id: node.progress() for node in self.nodes},
            self._budget.spent(),
            settled_rows(ledger, names, [node.output_bus for node in self.nodes]),
            len(ledger.dead()),
            time.monotonic() - self._status.began,
            self._status.new_inputs,
        )

    @contextmanager
    def _redriving(self) -> Iterator[RowLedger]:
        """Lock the pipeline for a redrive, open its ledger and restore its nodes' totals."""
        with locked(self.results_dir, self.pipeline_id), journal(self._given.log_dir):
            self._status.began, self._status.name = time.monotonic(), "redriving"
            ledger = RowLedger(self.results_dir / LEDGER)
            try:
                for node in self.nodes:
                    node.recall(ledger.totals(node.node_id))
                yield ledger
            finally:
                ledger.close()

    def _completed_run(self) -> CompletedRun:
        return CompletedRun(self.pipeline_id, self.nodes, self.results_dir, self.budget, self._run_chain)

    def _run_chain(self, nodes: Sequence[Node], folder: Path, budget: Mapping[str, float]) -> str:
        """Run the nodes of a redrive as a separate pipeline that shares this one's operator state."""
        other = UnifiedNodePipeline(
            nodes,
            results_dir=folder,
            hooks=self._given.hooks,
            budget=budget,
            base_path=self.base_path,
            log_dir=self._given.log_dir,
            progress=self._given.progress,
        )
        other._operators_dir = self.results_dir
        other._round = str(folder.relative_to(self.results_dir))
        if other.has_begun():
            other.resume(accept_changes=True)
        else:
            other.create(self.pipeline_id)
        return other.run().status


class UnifiedNode(Node):
    """An operator between two streams, in a pipeline or standalone; see `Node` for the arguments."""

    def run(self) -> None:
        """Compute all rows. A standalone node is also opened and closed.

        Raises:
            RowError: a row cannot be processed, and `on_error` is `fail`.
            TooManyDeadLettersError: more rows failed than allowed.
        """
        if self.is_attached:
            super().run()
            return
        try:
            UnifiedNodePipeline([self]).run()
        finally:
            self.detach()


class OperatorNode(UnifiedNode):
    """A node that is created with its operator.

    Args:
        node_id: its name.
        operator: the operator, or a function of (items, ctx).
        settings: see `UnifiedNode`.

    Raises:
        ConfigError: see `UnifiedNode`.
        TypeError: the operator is invalid.
    """

    def __init__(self, node_id: str, operator: Any, **settings: Any) -> None:
        super().__init__(node_id, **settings)
        self.set_processor(operator)


ParallelBatchNode = UnifiedNode
"""Alias: every node computes `parallel_size` batches in parallel."""
