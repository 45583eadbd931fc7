"""One run of a pipeline: opens, runs and closes its nodes, sequentially or concurrently."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asysi.pipeline.ledger.dead_letters import write_dead_letters
from asysi.pipeline.ledger.ledger import RowLedger
from asysi.pipeline.nodes.node import Node
from asysi.pipeline.nodes.run_context import RunContext
from asysi.pipeline.rows.blocks import Result, RowError
from asysi.pipeline.run.budget import SpendingLimit
from asysi.pipeline.run.hooks import CompositePipelineHooks
from asysi.pipeline.run.redrive import finish_merge
from asysi.pipeline.run.telemetry import Ticker, node_image, save, tell_progress
from asysi.pipeline.streams import input_files
from asysi.pipeline.streams.data_streams import MemoryStream
from asysi.pipeline.streams.input_files import InputFile
from asysi.pipeline.streams.source import Window

_log = logging.getLogger("asysi.pipeline")


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Plan of a run.

    Attributes:
        pipeline_id: name of the pipeline.
        folder: results folder.
        nodes: the nodes, in order.
        streaming: run all nodes concurrently, each on the committed rows of the previous one.
        resume: continue after the committed rows of an earlier run.
        window: the part of the input to read; None: all of it.
        inputs: input files pinned when the pipeline was created; None: there are none.
        operators_dir: directory for operator state that survives a restart.
        round: name of the redrive, empty in a normal run.
        hooks: hooks of the run.
        progress: show progress on the terminal; None: if there is one.
    """

    pipeline_id: str
    folder: Path
    nodes: Sequence[Node]
    streaming: bool
    resume: bool
    window: Window | None
    inputs: list[InputFile] | None
    operators_dir: Path
    round: str
    hooks: CompositePipelineHooks
    progress: bool | None


@dataclass(slots=True)
class LifecycleState:
    """Status of a run: written by the run, read by others.

    Attributes:
        name: defined, created, resuming, running, canceling, redriving, completed, canceled, failed or
            budget_exhausted.
        error: the error that ended it.
        stop: set when it is ending.
        new_inputs: files that match the input but appeared after the run had started.
        began: start time on the monotonic clock.
    """

    name: str = "defined"
    error: BaseException | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    new_inputs: tuple[str, ...] = ()
    began: float = 0.0

    def forget(self) -> None:
        """Reset the outcome of an earlier run."""
        self.error = None
        self.stop.clear()


class Run:
    """Runs the nodes of a plan.

    Args:
        plan: the plan.
        ledger: the ledger.
        status: updated by the run.
        budget: usage and limits.
        image: returns the pipeline's image.
    """

    def __init__(
        self,
        plan: RunPlan,
        ledger: RowLedger,
        status: LifecycleState,
        budget: SpendingLimit,
        image: Callable[[], dict[str, Any]],
    ) -> None:
        self._plan, self._ledger, self._status = plan, ledger, status
        self._budget, self._image = budget, image
        self._ticker = Ticker(image, plan.folder, plan.nodes, plan.hooks, plan.progress)

    def execute(self) -> None:
        """Run until all nodes have finished, the run is canceled, or the budget is exhausted.

        Raises:
            RowError: a row could not be processed.
            SealError: a file differs from the ledger or its seal.
            ConfigError: it cannot start.
        """
        plan, status = self._plan, self._status
        status.began = time.monotonic()
        status.name = "running" if not status.stop.is_set() else "canceling"
        source = plan.nodes[0].input_bus
        if not plan.resume and plan.inputs and source is not None:
            input_files.refuse_changes(source, plan.inputs)
        self._prepare()
        self._find_new_inputs()
        self._save()
        plan.hooks.on_pipeline_start(plan.pipeline_id, self._image())
        try:
            if plan.streaming:
                self._run_streaming()
            else:
                self._run_sequential()
        except BaseException as error:
            status.error = error
            raise
        finally:
            self._end()

    def _prepare(self) -> None:
        plan, ledger = self._plan, self._ledger
        if plan.resume:
            if (bus := plan.nodes[-1].output_bus) is not None:
                finish_merge(ledger, bus)  # of a redrive that crashed after its ledger transaction
            self._rewind_lost()
        for node in plan.nodes:
            spent = (ledger.totals(node.node_id).usage or {}) if plan.resume else {}
            self._budget.restore(node.node_id, spent)
            is_first = node is plan.nodes[0]
            node.attach(
                RunContext(
                    plan.pipeline_id,
                    plan.operators_dir,
                    ledger,
                    self._status.stop,
                    self._on_result,
                    plan.window if is_first else None,
                    plan.resume,
                    is_first,
                    plan.round,
                )
            )
        if over := self._budget.exhausted():
            self._stop_spending(over)

    def _rewind_lost(self) -> None:
        """Rewind nodes whose in-memory output was lost with its process before the next node committed
        it.
        """
        nodes, ledger = self._plan.nodes, self._ledger
        for index in range(len(nodes) - 1, -1, -1):
            bus = nodes[index].output_bus
            last = ledger.last(nodes[index].node_id)
            if isinstance(bus, MemoryStream) and last is not None and bus.log().size < last.out_end:
                following = ledger.last(nodes[index + 1].node_id) if index + 1 < len(nodes) else None
                ledger.rewind(nodes[index].node_id, following.source_end if following else 0)

    def _find_new_inputs(self) -> None:
        """Report files that have appeared since the run started, once each."""
        source, status = self._plan.nodes[0].input_bus, self._status
        found = input_files.new_files(source, self._plan.inputs)
        if source is not None and any(name not in status.new_inputs for name in found):
            _log.warning("[Input] %s", input_files.say_new(source.uri, found))
        status.new_inputs = tuple(found)

    def _run_sequential(self) -> None:
        for node in self._plan.nodes:
            self._run_node(node, opened=False)
            if self._status.stop.is_set():
                break

    def _run_streaming(self) -> None:
        errors: list[BaseException] = []
        nodes = self._plan.nodes
        try:
            for node in nodes:
                node.open()
        except BaseException:
            for node in nodes:
                node.close()
            raise
        self._ticker.begin()

        def body(node: Node) -> None:
            try:
                self._run_node(node, opened=True)
            except BaseException as error:  # noqa: BLE001 - re-raised in the caller's thread
                errors.append(error)

        threads = [threading.Thread(target=body, args=(node,), name=node.node_id) for node in nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)
        if errors:
            raise errors[0]

    def _run_node(self, node: Node, *, opened: bool) -> None:
        hooks, pipeline_id = self._plan.hooks, self._plan.pipeline_id
        try:
            try:
                if not opened:
                    node.open()
                    self._ticker.begin()
                if node.status != "completed":
                    image = node_image(node, self._budget.of(node.node_id))
                    hooks.on_node_start(pipeline_id, node.node_id, image)
                node.run()
            finally:
                node.close()
        except BaseException as error:
            self._status.stop.set()
            node.status, node.failure = "failed", error
            items = [error.identity] if isinstance(error, RowError) else None
            _log.error("node %s failed: %s", node.node_id, error)
            hooks.on_node_error(pipeline_id, node.node_id, error, items)
            hooks.on_node_end(pipeline_id, node.node_id, False, error)
            raise
        tell_progress(hooks, pipeline_id, node)
        hooks.on_node_end(pipeline_id, node.node_id, node.status == "completed", None)

    def _end(self) -> None:
        """Save and report the final status."""
        plan, status = self._plan, self._status
        status.name = self._final_status()
        self._ticker.end()
        names = [node.node_id for node in plan.nodes]
        write_dead_letters(self._ledger, names, plan.folder / "dead_letters")
        self._find_new_inputs()
        self._save()
        plan.hooks.on_pipeline_end(plan.pipeline_id, status.name == "completed", status.error)
        for node in plan.nodes:
            if node.output_bus is not None:
                node.output_bus.bound = False
        _log.info("%s is %s", plan.pipeline_id, status.name)

    def _final_status(self) -> str:
        if all(node.status == "completed" for node in self._plan.nodes):
            return "completed"
        if self._status.error is not None:
            return "failed"
        return "budget_exhausted" if self._budget.exhausted() else "canceled"

    def _save(self) -> None:
        save(self._plan.folder, self._image(), self._plan.nodes)

    def _on_result(self, node: str, result: Result) -> None:
        self._budget.spend(node, result.usage)
        for report in result.reports:
            provider, model = str(report.get("provider", "")), str(report.get("model", ""))
            self._plan.hooks.on_usage(self._plan.pipeline_id, node, provider, model, report)
        over = self._budget.exhausted()
        if over and not self._status.stop.is_set():
            self._stop_spending(over)

    def _stop_spending(self, over: str) -> None:
        _log.warning("[Budget] %s has spent its budget: %s", self._plan.pipeline_id, over)
        self._status.stop.set()
