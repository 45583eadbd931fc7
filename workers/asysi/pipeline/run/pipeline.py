"""Pipelines: nodes one after the other, from a blueprint to a sealed output."""

import base64
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from asysi.contract.errors import ConfigError
from asysi.files import write_atomic
from asysi.locations import local_folder
from asysi.pipeline.ledger.ledger import Ledger
from asysi.pipeline.ledger.settled_rows import settled_rows
from asysi.pipeline.nodes.config import NodeConfig, WriterConfig, refuse_unknown
from asysi.pipeline.nodes.libc import keep_freed_memory
from asysi.pipeline.nodes.node import Progress, Surroundings, UnifiedNode
from asysi.pipeline.operators.fingerprint import differences, fingerprint, rebuild
from asysi.pipeline.operators.operator import as_operator, name_of
from asysi.pipeline.rows.blocks import Result, RowError
from asysi.pipeline.run.hooks import CompositePipelineHooks
from asysi.pipeline.run.platform_log import FILE, journal
from asysi.pipeline.run.run_state import CHECKPOINT, RUNTIME, alive, read_image, unchanged, write_live
from asysi.pipeline.run.shards import refuse_foreign
from asysi.pipeline.run.signals import cancel_on_signal
from asysi.pipeline.streams import input_files
from asysi.pipeline.streams.completeness import is_complete
from asysi.pipeline.streams.data_streams import FileStream, IDataStream, MemoryStream, StreamFactory
from asysi.pipeline.streams.input_files import InputFile
from asysi.pipeline.streams.open_files import is_locked
from asysi.pipeline.streams.row_log import MemoryLog
from asysi.pipeline.streams.seal import START_OVER
from asysi.pipeline.streams.source import Window

LEDGER = "ledger.sqlite"
_ON_DISK = (
    "ledger, locks and rows on their way need a disk of this machine; inputs and outputs may be in a store"
)
_TICK = 1.0
"""Seconds between two writings of runtime.json."""
_MEMORY_KEPT = 64 << 20
"""Bytes that a `memory://` bus between two streaming nodes holds."""
_ON_ERROR, _MOST_DEAD = "fail", 1000
"""What a pipeline does with rows that cannot be processed, where nothing else is said."""
_log = logging.getLogger("asysi.pipeline")


class _CheckedError(Exception):
    """Everything was looked at: what was changed for that is taken back."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a run ended.

    Attributes:
        pipeline_id: the pipeline.
        status: completed, canceled or budget_exhausted; the latter two can be resumed.
        nodes: how far each node is.
        usage: what was spent, by name, over all runs of this pipeline.
        settled: source rows with all their descendants in the output.
        dead: rows set aside.
        seconds: how long this run took.
        new_inputs: files that match the input and came after the run had begun: it has not read them.
    """

    pipeline_id: str
    status: str
    nodes: dict[str, Progress]
    usage: dict[str, float]
    settled: int
    dead: int
    seconds: float
    new_inputs: tuple[str, ...] = ()


class UnifiedNodePipeline:
    """Nodes that are bound to their buses already: starts them, runs them, keeps their state.

    Args:
        nodes: in the order in which rows pass them.
        streaming: run all nodes at once, each on the rows that the one before has committed.
        results_dir: folder of image, checkpoint and ledger; a folder holds one pipeline. By default the
        pipeline's id
            in `base_path`.
        hooks: told how it goes (`IPipelineHooks`), one or several.
        budget: by name of what operators report (`cost`, `total_tokens`, …), how much may be spent before the
        run ends
            cleanly.
        base_path: folder of everything that has no name of its own, by default `tmp`.
        log_dir: folder of `platform.log`, by default `logs`.
        progress: show progress on the terminal; None: if there is one.

    A pipeline that runs without `create()` and is given none of these folders leaves nothing but its outputs.
    """

    def __init__(
        self,
        nodes: Sequence[UnifiedNode] = (),
        *,
        streaming: bool = False,
        results_dir: str | Path | None = None,
        hooks: Any = None,
        budget: Mapping[str, float] | None = None,
        base_path: str | Path | None = None,
        log_dir: str | Path | None = None,
        progress: bool | None = None,
    ) -> None:
        self.nodes = list(nodes)
        self.streaming = streaming
        self.base_path = local_folder(base_path or "tmp", "base_path", _ON_DISK)
        self._leaves_state = any(folder is not None for folder in (results_dir, base_path, log_dir))
        self.budget = dict(budget or {})
        self.pipeline_id = ""
        self.status = "defined"
        self.error: BaseException | None = None
        self._given_dir = _local_or_none(results_dir)
        self._hooks = CompositePipelineHooks(list(hooks) if isinstance(hooks, list | tuple) else [hooks])
        self._log_dir: Path | None = local_folder(log_dir or "logs", "log_dir")
        self._progress = progress
        self._stop = threading.Event()
        self._window: Window | None = None
        self._inputs: list[InputFile] | None = None
        self._new_inputs: tuple[str, ...] = ()
        self._resume = False
        self._created = ""
        self._prints: list[dict[str, Any]] = []
        self._began = 0.0
        self._spending = threading.Lock()
        self._usage: dict[str, dict[str, float]] = {}
        self._ledger: Ledger | None = None
        self.round = ""
        """The redrive that this is part of, empty in a run of its own."""
        self.operators_dir: Path | None = None
        """Where operators keep what they know across a restart; None: the results folder."""

    # The blueprint
    # -----------------------------------------------------------------------------------------------

    @property
    def results_dir(self) -> Path:
        """Folder of image, checkpoint and ledger."""
        return self._given_dir if self._given_dir is not None else self.base_path / self.pipeline_id

    def has_begun(self) -> bool:
        """Return whether there is something to resume in the results folder."""
        return (self.results_dir / RUNTIME).exists()

    def create(self, pipeline_id: str | None = None, *, overwrite: bool = False) -> Self:
        """Write the blueprint, under a name or a new one.

        Args:
            pipeline_id: name of the pipeline; letters, digits, `.`, `_` and `-`.
            overwrite: delete what an earlier run under this name, or another one at these outputs, left.

        Raises:
            ConfigError: the name is in use, a run has left rows (it says in what its blueprint differs), an
            output is
                there already, or the nodes do not make a pipeline.
        """
        self.pipeline_id = _name(pipeline_id)
        self._build()
        for node in self.nodes:
            if isinstance(node.output_bus, FileStream):
                node.output_bus.move_spool(self.results_dir / "spool")
        self._check_nodes()
        self._input.static = self._input.static or is_complete(self._input)
        self._prints = self._fingerprints()
        with _locked(self.results_dir, self.pipeline_id):
            self._make_room(overwrite)
            self._inputs = input_files.pin(self._input)
            self._forget_run()
            self._resume, self.status, self._created = False, "created", _now()
            self.save_runtime()
        return self

    def resume(self, pipeline_id: str | None = None, *, accept_changes: bool = False) -> Self:
        """Load the image of a pipeline, to go on where it ended; `run()` then starts it.

        Its image says what is read and written, whatever this object was made with.

        Args:
            pipeline_id: name of the pipeline; None: the one in `results_dir`.
            accept_changes: go on although operators are not what they were.

        Raises:
            ConfigError: there is no such pipeline, it is running, or its operators differ.
        """
        self.pipeline_id = pipeline_id or ""
        folder = self.results_dir
        image = read_image(folder)
        if pipeline_id and image["pipeline_id"] != pipeline_id:
            raise ConfigError(
                f"{self.results_dir} holds the pipeline {image['pipeline_id']}, not {pipeline_id}: name "
                "that one, or"
                " another results_dir"
            )
        self._given_dir, self._resume = folder, True
        self.pipeline_id, self._created = str(image["pipeline_id"]), image["created"]
        with _locked(self.results_dir, self.pipeline_id):
            self._load(image, accept_changes)
            self._check_nodes()
            self._prints = self._fingerprints()
            if pinned := image.get("inputs"):
                self._inputs = input_files.restore(self._input, pinned, accept=accept_changes)
            self._forget_run()
            self.status = "resuming"
            self.save_runtime()
        _log.info("[Resume] %s was %s", self.pipeline_id, image["status"])
        return self

    def get_runtime(self) -> dict[str, Any]:
        """Return the image: what the pipeline is and how it goes."""
        return {
            "pipeline_id": self.pipeline_id,
            "status": self.status,
            "error": str(self.error) if self.error else None,
            "process": os.getpid(),
            "created": self._created,
            "updated": _now(),
            "streaming": self.streaming,
            "budget": self.budget,
            "usage": self._spent_so_far(),
            "results_dir": str(self.results_dir),
            **self._blueprint(),
            "inputs": input_files.as_image(self._inputs),
            "new_inputs": list(self._new_inputs),
            "nodes": [self._node_image(node) for node in self.nodes],
        }

    def save_runtime(self) -> None:
        """Write `runtime.json` and `checkpoint.json`."""
        self.results_dir.mkdir(parents=True, exist_ok=True)
        write_live(self.results_dir / RUNTIME, self.get_runtime())
        write_live(self.results_dir / CHECKPOINT, self._checkpoint())

    def _forget_run(self) -> None:
        """Forget how an earlier run of this object ended."""
        self.error = None
        self._stop.clear()

    def _build(self) -> None:
        """Make the nodes, where they are not given."""

    def _blueprint(self) -> dict[str, Any]:
        return {"operators": self._prints}

    def _fingerprints(self) -> list[dict[str, Any]]:
        """Return what the operators are; their source may change while they run, they do not."""
        return [fingerprint(node.operator) for node in self.nodes if node.operator is not None]

    def _load(self, image: Mapping[str, Any], accept_changes: bool) -> None:
        """Take paths and sizes from the image.

        Raises:
            ConfigError: the nodes are not those of the image.
        """
        names, found = [node["node_id"] for node in image["nodes"]], [node.node_id for node in self.nodes]
        if names != found:
            raise ConfigError(
                f"pipeline {self.pipeline_id} has the nodes {', '.join(names)}, not {', '.join(found)}"
            )
        _compare(image, [node.operator for node in self.nodes], accept_changes)
        for node, saved in zip(self.nodes, image["nodes"], strict=True):
            node.bind_io(self._bus(saved["input_uri"]), self._bus(saved["output_uri"]))
            node.parallel_size, node.batch_size = saved["parallel_size"], saved["batch_size"]
            node.writer_config = WriterConfig.of(saved["writer_config"])
        self.streaming = bool(image["streaming"])

    def _bus(self, uri: str) -> IDataStream:
        return StreamFactory.create(uri, self.results_dir / "spool")

    def _check_nodes(self) -> None:
        names = [node.node_id for node in self.nodes]
        if not names:
            raise ConfigError("a pipeline needs at least one node")
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two nodes are called {name}: give each its own node_id")
        for node in self.nodes:
            if node.operator is None or node.input_bus is None or node.output_bus is None:
                missing = "set_processor" if node.operator is None else "bind_io"
                raise ConfigError(f"node {node.node_id} is not ready: call {missing}")
        outputs = [node.output_bus.uri for node in self.nodes if node.output_bus]
        first = self._input.uri
        for uri in outputs:
            if outputs.count(uri) > 1 or uri == first:
                raise ConfigError(
                    f"{uri} would be written by two nodes, or over its own input: give each an output_uri"
                )
        self._link()
        input_files.refuse_own_output(self.nodes, self.results_dir, self._writes_besides())

    def _writes_besides(self) -> list[str | None]:
        """Return what it writes beside the outputs of its nodes."""
        return [str(self._log_dir / FILE)] if self._log_dir else []

    @property
    def _input(self) -> IDataStream:
        bus = self.nodes[0].input_bus
        assert bus is not None
        return bus

    def _link(self) -> None:
        """Let a node read the very bus that the one before it writes."""
        for before, node in zip(self.nodes, self.nodes[1:], strict=False):
            assert before.output_bus is not None
            assert node.input_bus is not None
            assert node.output_bus is not None
            if before.output_bus.uri == node.input_bus.uri:
                node.bind_io(before.output_bus, node.output_bus)
                before.output_bus.bound = True
                log = before.output_bus.log()
                if isinstance(log, MemoryLog):
                    log.keep = _MEMORY_KEPT if self.streaming else None

    def _make_room(self, overwrite: bool) -> None:
        used = self.results_dir / LEDGER
        taken = [node.output_bus for node in self.nodes if node.output_bus and node.output_bus.exists()]
        if (self.results_dir / RUNTIME).exists():
            self._refuse_other(self._image_before(overwrite), used.exists(), overwrite)
        if taken and not overwrite:
            raise ConfigError(
                *(
                    f"{bus.uri} is there already: delete it, name another output, or {START_OVER}"
                    for bus in taken
                )
            )
        for bus in taken:
            bus.remove()
        if used.exists():
            for name in (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm", "answers.sqlite"):
                (self.results_dir / name).unlink(missing_ok=name != LEDGER)
            for folder in ("spool", "dead_letters", "redrive"):
                shutil.rmtree(self.results_dir / folder, ignore_errors=True)

    def _image_before(self, overwrite: bool) -> Mapping[str, Any]:
        """Return the image of the run before; one that cannot be read may be overwritten."""
        try:
            return read_image(self.results_dir)
        except ConfigError:
            if not overwrite:
                raise
            return {"pipeline_id": self.pipeline_id, "status": "unknown"}

    def _refuse_other(self, image: Mapping[str, Any], used: bool, overwrite: bool) -> None:
        if image["pipeline_id"] != self.pipeline_id:
            raise ConfigError(
                f"{self.results_dir} holds the pipeline {image['pipeline_id']}: give {self.pipeline_id} a "
                "results_dir of"
                " its own"
            )
        if used and not overwrite:
            changes = _changes(image, self.get_runtime())
            differs = f"This blueprint differs: {'; '.join(changes)}. " if changes else ""
            raise ConfigError(
                f"the pipeline {self.pipeline_id} has run before (it is {image['status']}). {differs}"
                f"`resume` (in Python resume({self.pipeline_id!r})) goes on with it; else give this one"
                f" another pipelineId, or {START_OVER}"
            )

    # The run
    # -----------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Run until every node is done, or it is canceled, or the budget is spent.

        Raises:
            RowError: a row could not be processed; what was finished before is committed, and `resume` goes
            on there.
            SealError: a file is not what the ledger or its seal says.
            ConfigError: it cannot begin.
        """
        if self.status not in {"created", "resuming"}:
            if self.status != "defined":
                raise ConfigError(
                    f"the pipeline {self.pipeline_id} is {self.status}: call resume() before it runs again"
                )
            if not self._leaves_state:
                return self._run_without_a_trace()
            self.create()
        return self._run_created()

    def _run_without_a_trace(self) -> Report:
        """Run with its state in a folder that goes with the run, unless rows in a spool would go with it."""
        folder = Path(tempfile.mkdtemp(prefix="asysi-pipeline-"))
        self._given_dir, self._log_dir, kept = folder, None, False
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
            stack.enter_context(_locked(self.results_dir, self.pipeline_id))
            stack.enter_context(journal(self._log_dir))
            stack.enter_context(cancel_on_signal(self.cancel))
            fsync = any(node.writer_config.fsync for node in self.nodes)
            self._ledger = Ledger(self.results_dir / LEDGER, fsync=fsync)
            stack.callback(self._ledger.close)
            return self._run(self._ledger)

    def redrive(self, pipeline_id: str | None = None, *, accept_changes: bool = False) -> Report:
        """Put the dead letters of a completed pipeline through again, from the node that they failed in.

        What they become has the ids that it would have had, and is merged into the output in its place; what
        fails again stays a dead letter. A redrive that was ended goes on when it is called again.

        Args:
            pipeline_id: name of the pipeline; None: the one in `results_dir`.
            accept_changes: go on although operators are not what they were.

        Raises:
            ConfigError: there is no such pipeline, it is running or not completed, or its operators differ.
            SealError: its output is not what its ledger says.
        """
        from asysi.pipeline.run.redrive import check_completed, redrive  # noqa: PLC0415 - it knows pipelines

        self.pipeline_id = pipeline_id or ""
        check_completed(self.results_dir)
        with unchanged(self.results_dir):
            self.resume(pipeline_id, accept_changes=accept_changes)
            with self._redriving() as ledger:
                self.save_runtime()
                status = redrive(self, ledger)
                self.status = "completed"
                self.save_runtime()
                if status != "completed":
                    return replace(self.report(ledger), status=status)
        self.status = "resuming"
        return self.run()

    def check_redrive(self, pipeline_id: str | None = None, *, accept_changes: bool = False) -> None:
        """Refuse what `redrive` would refuse, and change nothing.

        Raises:
            ConfigError, SealError: see `redrive`.
        """
        from asysi.pipeline.run.redrive import check_completed, check_output  # noqa: PLC0415 - it knows pipelines

        self.pipeline_id = pipeline_id or ""
        check_completed(self.results_dir)
        with suppress(_CheckedError), unchanged(self.results_dir):
            self.resume(pipeline_id, accept_changes=accept_changes)
            with self._redriving() as ledger:
                check_output(self, ledger)
            raise _CheckedError

    @contextmanager
    def _redriving(self) -> Iterator[Ledger]:
        """Hold the pipeline for a redrive, with its ledger and what its nodes have completed."""
        with _locked(self.results_dir, self.pipeline_id), journal(self._log_dir):
            self._began, self.status = time.monotonic(), "redriving"
            ledger = Ledger(self.results_dir / LEDGER)
            try:
                for node in self.nodes:
                    node.recall(ledger.totals(node.node_id))
                yield ledger
            finally:
                ledger.close()

    def beside(
        self, nodes: Sequence[UnifiedNode], results_dir: Path, budget: Mapping[str, float]
    ) -> "UnifiedNodePipeline":
        """Return a pipeline of other nodes with the same hooks, whose operators keep what they know here."""
        other = UnifiedNodePipeline(
            nodes,
            results_dir=results_dir,
            hooks=self._hooks,
            budget=budget,
            base_path=self.base_path,
            log_dir=self._log_dir,
            progress=self._progress,
        )
        other.operators_dir = self.results_dir
        other.round = str(results_dir.relative_to(self.results_dir))
        return other

    def cancel(self, reason: str = "cancel()") -> None:
        """End the run cleanly: nothing new is begun, what is begun is finished and committed."""
        if not self._stop.is_set():
            _log.info("[Cancel] %s: %s", self.pipeline_id, reason)
            self.status = "canceling"
        self._stop.set()

    def _look_for_new_inputs(self) -> None:
        """Say which files have come since the run began, once each."""
        found = input_files.new_files(self._input, self._inputs)
        if any(name not in self._new_inputs for name in found):
            _log.warning("[Input] %s", input_files.say_new(self._input.uri, found))
        self._new_inputs = tuple(found)

    def _run(self, ledger: Ledger) -> Report:
        self._began = time.monotonic()
        self.status = "running" if not self._stop.is_set() else "canceling"
        if not self._resume and self._inputs:
            input_files.refuse_changes(self._input, self._inputs)
        self._prepare(ledger)
        self._look_for_new_inputs()
        self.save_runtime()
        self._hooks.on_pipeline_start(self.pipeline_id, self.get_runtime())
        watch = _Watch(self)
        try:
            if self.streaming:
                self._run_streaming(watch)
            else:
                self._run_sequential(watch)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.status = self._final_status()
            watch.end()
            self._write_dead_letters(ledger)
            self._look_for_new_inputs()
            self.save_runtime()
            self._hooks.on_pipeline_end(self.pipeline_id, self.status == "completed", self.error)
            for node in self.nodes:
                if node.output_bus is not None:
                    node.output_bus.bound = False
            _log.info("%s is %s", self.pipeline_id, self.status)
        return self.report(ledger)

    def report(self, ledger: Ledger) -> Report:
        """Return how it went."""
        names = [node.node_id for node in self.nodes]
        return Report(
            self.pipeline_id,
            self.status,
            {node.node_id: node.progress() for node in self.nodes},
            self._spent_so_far(),
            settled_rows(ledger, names, [node.output_bus for node in self.nodes]),
            len(ledger.dead()),
            time.monotonic() - self._began,
            self._new_inputs,
        )

    def _prepare(self, ledger: Ledger) -> None:
        if self._resume:
            self._finish_redrive(ledger)
            self._rewind_lost(ledger)
        for node in self.nodes:
            self._usage[node.node_id] = dict(ledger.totals(node.node_id).usage or {}) if self._resume else {}
            node.attach(
                Surroundings(
                    self.pipeline_id,
                    self.operators_dir or self.results_dir,
                    ledger,
                    self._stop,
                    self._on_result,
                    self._window if node is self.nodes[0] else None,
                    self._resume,
                    node is self.nodes[0],
                    self.round,
                )
            )

        if over := self._over_budget():
            self._stop_spending(over)

    def _finish_redrive(self, ledger: Ledger) -> None:
        """Give a redriven output its name, if a crash came between."""
        from asysi.pipeline.run.redrive import finish_merge  # noqa: PLC0415 - it knows pipelines

        if (bus := self.nodes[-1].output_bus) is not None:
            finish_merge(ledger, bus)

    def _rewind_lost(self, ledger: Ledger) -> None:
        """Let nodes make again what was lost with the process that held it, and the next node has not
        committed.
        """
        for index in range(len(self.nodes) - 1, -1, -1):
            bus = self.nodes[index].output_bus
            last = ledger.last(self.nodes[index].node_id)
            if isinstance(bus, MemoryStream) and last is not None and bus.log().size < last.out_end:
                following = (
                    ledger.last(self.nodes[index + 1].node_id) if index + 1 < len(self.nodes) else None
                )
                ledger.rewind(self.nodes[index].node_id, following.source_end if following else 0)

    def _run_sequential(self, watch: "_Watch") -> None:
        for node in self.nodes:
            self._run_node(node, watch, opened=False)
            if self._stop.is_set():
                break

    def _run_streaming(self, watch: "_Watch") -> None:
        errors: list[BaseException] = []
        try:
            for node in self.nodes:
                node.open()
        except BaseException:
            for node in self.nodes:
                node.close()
            raise
        watch.begin()

        def body(node: UnifiedNode) -> None:
            try:
                self._run_node(node, watch, opened=True)
            except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
                errors.append(error)

        threads = [threading.Thread(target=body, args=(node,), name=node.node_id) for node in self.nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)
        if errors:
            raise errors[0]

    def _run_node(self, node: UnifiedNode, watch: "_Watch", *, opened: bool) -> None:
        try:
            try:
                if not opened:
                    node.open()
                    watch.begin()
                if node.status != "completed":
                    self._hooks.on_node_start(self.pipeline_id, node.node_id, self._node_image(node))
                node.run()
            finally:
                node.close()
        except BaseException as error:
            self._stop.set()
            node.status, node.failure = "failed", error
            items = [error.identity] if isinstance(error, RowError) else None
            _log.error("node %s failed: %s", node.node_id, error)
            self._hooks.on_node_error(self.pipeline_id, node.node_id, error, items)
            self._hooks.on_node_end(self.pipeline_id, node.node_id, False, error)
            raise
        self._tell_progress(node)
        self._hooks.on_node_end(self.pipeline_id, node.node_id, node.status == "completed", None)

    def _final_status(self) -> str:
        if all(node.status == "completed" for node in self.nodes):
            return "completed"
        if self.error is not None:
            return "failed"
        return "budget_exhausted" if self._over_budget() else "canceled"

    # What it tells
    # -----------------------------------------------------------------------------------------------

    def _on_result(self, node: str, result: Result) -> None:
        with self._spending:
            spent = self._usage.setdefault(node, {})
            for name, value in result.usage.items():
                spent[name] = spent.get(name, 0) + value
        for report in result.reports:
            provider, model = str(report.get("provider", "")), str(report.get("model", ""))
            self._hooks.on_usage(self.pipeline_id, node, provider, model, report)
        over = self._over_budget()
        if over and not self._stop.is_set():
            self._stop_spending(over)

    def _stop_spending(self, over: str) -> None:
        _log.warning("[Budget] %s has spent its budget: %s", self.pipeline_id, over)
        self._stop.set()

    def _over_budget(self) -> str | None:
        spent = self._spent_so_far()
        over = [
            f"{name} {spent.get(name, 0):g} of {limit:g}"
            for name, limit in self.budget.items()
            if spent.get(name, 0) >= limit
        ]
        return ", ".join(over) or None

    def _spent_so_far(self) -> dict[str, float]:
        total: dict[str, float] = {}
        with self._spending:
            for usage in self._usage.values():
                for name, value in usage.items():
                    total[name] = total.get(name, 0) + value
        return total

    def _tell_progress(self, node: UnifiedNode) -> None:
        now = node.progress()
        percent = min(100.0, 100 * now.durable / now.total) if now.total else 100.0 if now.exact else None
        meta = {**asdict(now), "percent": percent, "resumed_at": node.resumed_at}
        self._hooks.on_node_progress(self.pipeline_id, node.node_id, now.durable, now.total, meta)

    def _node_image(self, node: UnifiedNode) -> dict[str, Any]:
        return {
            "node_id": node.node_id,
            "input_uri": node.input_bus.uri if node.input_bus else None,
            "output_uri": node.output_bus.uri if node.output_bus else None,
            "parallel_size": node.parallel_size,
            "batch_size": node.batch_size,
            "processes": node.processes,
            "on_error": node.on_error,
            "max_dead_letters": node.max_dead_letters,
            "writer_config": node.writer_config.as_dict(),
            **asdict(node.progress()),
            "resumed_at": node.resumed_at,
            "usage": dict(self._usage.get(node.node_id, {})),
        }

    def _checkpoint(self) -> dict[str, Any]:
        progress = {node.node_id: node.progress() for node in self.nodes}
        return {
            "pipeline_id": self.pipeline_id,
            "updated": _now(),
            "nodes": {
                name: {
                    "source_rows": now.durable,
                    "rows_made": now.made,
                    "dead": now.dead,
                    "status": now.status,
                }
                for name, now in progress.items()
            },
        }

    def _write_dead_letters(self, ledger: Ledger) -> None:
        by_node: dict[str, list[str]] = {}
        for _, node, letter, tries in ledger.dead():
            tree = {
                "_i": letter.identity,
                "node": node,
                "row": letter.row,
                "reason": letter.reason,
                "error": letter.error,
                "tries": tries,
                **_as_text(letter.line),
            }
            by_node.setdefault(node, []).append(json.dumps(tree, ensure_ascii=False))
        for name in (node.node_id for node in self.nodes):
            file = self.results_dir / "dead_letters" / f"{name}.jsonl"
            if name in by_node:
                write_atomic(file, "\n".join(by_node[name]) + "\n")
            else:
                file.unlink(missing_ok=True)


class UnifiedPipeline(UnifiedNodePipeline):
    """Operators from an input to an output; everything between them follows.

    Args:
        operators: in the order in which rows pass them; functions over batches are operators too.
        input_uri: where rows come from: `jsonl://`, `csv://`, `parquet://`, `memory://`, a protocol of your
        own.
        output_uri: where the last operator's rows go; by default among the others in `base_path`.
        streaming: run all nodes at once, each on the rows that the one before has committed.
        parallel_size: batches computed at once, on threads.
        batch_size: source rows in a batch.
        writer_config: how nodes write.
        base_path: folder of everything that has no name of its own.
        protocol_prefix: put before the names of the buses between the nodes.
        default_protocol: protocol of the buses between the nodes.
        results_dir: folder of image, checkpoint and ledger, by default the pipeline's id in `base_path`.
        hooks: told how it goes (`IPipelineHooks`), one or several.
        processes: processes that compute in each node; more than 1 splits the rows of a file among them.
        on_error: `fail` (the default) ends the run at the first row that cannot be processed; `dead_letter`
            sets such rows aside.
        max_dead_letters: rows that each node may set aside, by default 1000.
        budget: by name of what operators report, how much may be spent before the run ends cleanly. This,
            `on_error` and `max_dead_letters` may be others when a run is resumed; all else is as it was.
        log_dir: folder of `platform.log`.
        progress: show progress on the terminal; None: if there is one.
        node_configs: what single nodes have different, in their order.
        shard: (i, n): this run reads the i-th of n parts of the input, and everything it writes is named so.
    """

    _SETTINGS = (
        "operators",
        "input_uri",
        "output_uri",
        "streaming",
        "parallel_size",
        "batch_size",
        "writer_config",
        "base_path",
        "protocol_prefix",
        "default_protocol",
        "results_dir",
        "hooks",
        "processes",
        "on_error",
        "max_dead_letters",
        "budget",
        "log_dir",
        "progress",
        "node_configs",
        "shard",
    )

    def __init__(  # noqa: PLR0917 - the document's parameters, in its order
        self,
        operators: Sequence[Any] | None = None,
        input_uri: str = "",
        output_uri: str | None = None,
        streaming: bool = False,
        parallel_size: int = 1,
        batch_size: int = 1,
        writer_config: WriterConfig | None = None,
        base_path: str | Path = "tmp",
        protocol_prefix: str = "",
        default_protocol: str = "jsonl://",
        results_dir: str | Path | None = None,
        hooks: Any = None,
        *,
        processes: int = 1,
        on_error: str | None = None,
        max_dead_letters: int | None = None,
        budget: Mapping[str, float] | None = None,
        log_dir: str | Path = "logs",
        progress: bool | None = None,
        node_configs: Sequence[Any] | None = None,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self._settings: dict[str, Any] = {
            name: value for name, value in locals().items() if name in self._SETTINGS
        }
        super().__init__()
        self._leaves_state = True
        self._apply()

    def create(self, pipeline_id: str | None = None, *, overwrite: bool = False, **settings: Any) -> Self:
        """Write the blueprint, under a name or a new one.

        Args:
            pipeline_id: name of the pipeline; letters, digits, `.`, `_` and `-`.
            overwrite: delete what an earlier run under this name, or another one at these outputs, left.
            settings: anything that the constructor takes, instead of what it was given.

        Raises:
            ConfigError: see `UnifiedNodePipeline.create`; or a setting is unknown or out of its range.
        """
        refuse_unknown("create", settings, list(self._SETTINGS))
        self._settings.update(settings)
        self._apply()
        return super().create(pipeline_id, overwrite=overwrite)

    def outline(self, pipeline_id: str) -> Self:
        """Make the nodes, bound to their buses, without writing anything: to look at, not to run.

        Raises:
            ConfigError: the nodes do not make a pipeline.
        """
        self.pipeline_id = pipeline_id
        self._build()
        self._check_nodes()
        return self

    def _apply(self) -> None:
        given = self._settings
        self.streaming = bool(given["streaming"])
        self.base_path = local_folder(given["base_path"], "base_path", _ON_DISK)
        self.budget = dict(given["budget"] or {})
        self._given_dir = _local_or_none(given["results_dir"])
        hooks = given["hooks"]
        self._hooks = CompositePipelineHooks(list(hooks) if isinstance(hooks, list | tuple) else [hooks])
        self._log_dir, self._progress = local_folder(given["log_dir"], "log_dir"), given["progress"]

    @property
    def results_dir(self) -> Path:
        """Folder of image, checkpoint and ledger."""
        folder = super().results_dir
        return (
            folder / _shard_name(self._settings["shard"])
            if self._settings["shard"] and not self._resume
            else folder
        )

    def _build(self) -> None:
        given = self._settings
        operators = [as_operator(operator) for operator in given["operators"] or ()]
        if not operators:
            raise ConfigError("a pipeline needs at least one operator")
        if not given["input_uri"]:
            raise ConfigError("a pipeline needs an input_uri")
        names = [_node_name(index, operator) for index, operator in enumerate(operators, 1)]
        configs = self._configs(names)
        uris = [given["input_uri"]]
        for index, (name, config) in enumerate(zip(names, configs, strict=True)):
            final = given["output_uri"] if index == len(names) - 1 else None
            uris.append(self._named(config.output_uri or final or self._between(config.node_id or name)))
        self.nodes = [
            self._node(config.node_id or name, operator, config)
            for name, operator, config in zip(names, operators, configs, strict=True)
        ]
        for node, source, out in zip(self.nodes, uris, uris[1:], strict=False):
            node.bind_io(self._bus(source), self._bus(out))
        self._prepare_input()

    def _writes_besides(self) -> list[str | None]:
        merged = self._settings["output_uri"]  # of shards; each writes another file
        return [*super()._writes_besides(), getattr(self._bus(merged), "url", None) if merged else None]

    def _make_room(self, overwrite: bool) -> None:
        if self._settings["shard"] and self._settings["output_uri"]:
            refuse_foreign(self._bus(self._settings["output_uri"]), self.pipeline_id, overwrite=overwrite)
        super()._make_room(overwrite)

    def _configs(self, names: list[str]) -> list[NodeConfig]:
        """Return a config for each node; entries with a `node_id` of ours mean that node, others go by their
        place.
        """
        given = [NodeConfig.of(value) for value in self._settings["node_configs"] or ()]
        if len(given) > len(names):
            raise ConfigError(f"node_configs has {len(given)} entries for {len(names)} operators")
        configs = [NodeConfig() for _ in names]
        for index, config in enumerate(given):
            configs[names.index(config.node_id) if config.node_id in names else index] = config
        return configs

    def _node(self, name: str, operator: Any, config: NodeConfig) -> UnifiedNode:
        given = self._settings
        node = UnifiedNode(
            name,
            config.parallel_size or given["parallel_size"],
            config.batch_size or given["batch_size"],
            processes=config.processes or given["processes"],
            writer_config=WriterConfig.of(config.writer_config or given["writer_config"]),
            on_error=config.on_error or given["on_error"] or _ON_ERROR,
            max_dead_letters=_or(given["max_dead_letters"], _MOST_DEAD),
        )
        node.set_processor(operator)
        return node

    def _between(self, node: str) -> str:
        protocol = self._settings["default_protocol"]
        ending = {"csv://": ".csv", "parquet://": ".parquet", "memory://": ""}.get(protocol, ".jsonl")
        return (
            f"{protocol}{self.base_path}/{self._settings['protocol_prefix']}{self.pipeline_id}/{node}{ending}"
        )

    def _named(self, uri: str) -> str:
        """Return a URI with the shard's name in it."""
        shard = self._settings["shard"]
        if not shard:
            return uri
        stem, dot, suffix = uri.rpartition(".")
        return (
            f"{stem}.{_shard_name(shard)}.{suffix}"
            if dot and "/" not in suffix
            else f"{uri}.{_shard_name(shard)}"
        )

    def _prepare_input(self, saved: Mapping[str, Any] | None = None) -> None:
        """A file that lies there is complete; of a shard, its part is cut out, once and for all."""
        bus = self.nodes[0].input_bus
        assert bus is not None
        bus.static = not _is_written(bus)
        self._window = None
        if self._settings["shard"]:
            from asysi.pipeline.run.shards import window  # noqa: PLC0415 - only shards need it

            if any(getattr(node.operator, "ordered", False) for node in self.nodes):
                raise ConfigError(
                    "an operator that sees rows in their order (deduplication) cannot run in shards: run "
                    "it on the merged"
                    " output"
                )
            self._window = Window(**saved) if saved else window(bus, *self._settings["shard"])

    def _blueprint(self) -> dict[str, Any]:
        given = self._settings
        return {
            **{name: given[name] for name in _IN_IMAGE},
            "on_error": given["on_error"] or _ON_ERROR,
            "max_dead_letters": _or(given["max_dead_letters"], _MOST_DEAD),
            "base_path": str(given["base_path"]),
            "shard": list(given["shard"]) if given["shard"] else None,
            "window": asdict(self._window) if self._window else None,
            "writer_config": WriterConfig.of(given["writer_config"]).as_dict(),
            **super()._blueprint(),
        }

    def _load(self, image: Mapping[str, Any], accept_changes: bool) -> None:
        given = self._settings
        operators = given["operators"]
        if operators is None:
            operators = [rebuild(saved) for saved in image["operators"]]
        operators = [as_operator(operator) for operator in operators]
        _compare(image, operators, accept_changes)
        if given["input_uri"] and given["input_uri"] != image["input_uri"]:
            _log.warning(
                "[Resume] input_uri is %s: the image's %s stands", given["input_uri"], image["input_uri"]
            )
        on_error = given["on_error"]
        configs = self._configs([saved["node_id"] for saved in image["nodes"]])
        given.update({name: image[name] for name in (*_IN_IMAGE, "base_path")})
        for name in ("on_error", "max_dead_letters"):
            given[name] = _or(given[name], image[name])
        given.update(
            operators=operators,
            streaming=image["streaming"],
            writer_config=WriterConfig.of(image["writer_config"]),
        )
        given["shard"] = tuple(image["shard"]) if image["shard"] else None
        self.streaming, self.base_path = image["streaming"], Path(image["base_path"])
        if given["budget"] is None:
            self.budget = dict(image["budget"])
        self.nodes = []
        for saved, operator, wanted in zip(image["nodes"], operators, configs, strict=True):
            config = {
                name: saved[name] for name in ("parallel_size", "batch_size", "processes", "writer_config")
            }
            config["on_error"] = wanted.on_error or on_error or saved["on_error"]
            node = self._node(saved["node_id"], operator, NodeConfig.of(config))
            node.bind_io(self._bus(saved["input_uri"]), self._bus(saved["output_uri"]))
            self.nodes.append(node)
        self._prepare_input(image["window"])


_IN_IMAGE = (
    "input_uri",
    "output_uri",
    "parallel_size",
    "batch_size",
    "processes",
    "protocol_prefix",
    "default_protocol",
)
"""Settings that a resume takes from the image."""


class _Watch:
    """Writes the image, tells the hooks and draws the progress while a run goes on."""

    def __init__(self, pipeline: UnifiedNodePipeline) -> None:
        self._pipeline, self._ended = pipeline, threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin, after the first processes were forked: threads and forks do not go together."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """End."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        from asysi.pipeline.run.progress import display  # noqa: PLC0415 - rich is not needed without a terminal

        pipeline = self._pipeline
        with display(pipeline, pipeline._progress):
            while not self._ended.wait(_TICK):
                try:
                    pipeline.save_runtime()
                    for node in pipeline.nodes:
                        if node.status == "running":
                            pipeline._tell_progress(node)
                            checkpoint = {"durable": node.progress().durable}
                            pipeline._hooks.on_checkpoint(pipeline.pipeline_id, node.node_id, checkpoint)
                except OSError as error:  # the rows matter more than their picture
                    _log.warning("%s cannot be written: %s", RUNTIME, error)


@contextmanager
def _locked(folder: Path, pipeline_id: str) -> Iterator[None]:
    """Hold a results folder: two runs of one pipeline would spoil each other.

    Raises:
        ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        process = alive(read_image(folder)) if (folder / RUNTIME).exists() else None
        raise ConfigError(
            f"the pipeline {pipeline_id} is running already{f' (process {process})' if process else ''} in "
            f"{folder}: wait"
            " for it, cancel it, or give this one another pipeline_id"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def _compare(image: Mapping[str, Any], operators: Sequence[Any], accept: bool) -> None:
    """Refuse operators that are not what they were.

    Raises:
        ConfigError: they differ; it says in what.
    """
    saved = image["operators"]
    if len(saved) != len(operators):
        raise ConfigError(f"pipeline {image['pipeline_id']} has {len(saved)} operators, not {len(operators)}")
    problems = [
        f"operator {index} ({before['name']}) is not what it was: {'; '.join(found)}"
        for index, (before, operator) in enumerate(zip(saved, operators, strict=True), 1)
        if (found := differences(before, fingerprint(operator)))
    ]
    if problems and not accept:
        raise ConfigError(
            *problems,
            f"rows made before and after would not belong together: undo the change, {START_OVER}, or go on"
            " all the same with --accept-changes (in Python accept_changes=True)",
        )
    for problem in problems:
        _log.warning("[Resume] %s", problem)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = (
        "input_uri",
        "output_uri",
        "streaming",
        "parallel_size",
        "batch_size",
        "processes",
        "on_error",
        "shard",
    )
    found = [
        f"{name} was {before.get(name)}, it is {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    old, new = before.get("operators", []), now.get("operators", [])
    if len(old) != len(new):
        return [*found, f"it had {len(old)} operators, it has {len(new)}"]
    for index, (was, is_now) in enumerate(zip(old, new, strict=True), 1):
        found += [f"operator {index}: {difference}" for difference in differences(was, is_now)]
    return found


def _as_text(line: bytes) -> dict[str, str]:
    """Return a line for a JSON file: its bytes too, where they are not text."""
    try:
        return {"line": line.decode()}
    except UnicodeDecodeError:
        return {
            "line": line.decode(errors="replace"),
            "line_base64": base64.b64encode(line).decode(),
        }


def _local_or_none(folder: str | Path | None) -> Path | None:
    return None if folder is None else local_folder(folder, "results_dir", _ON_DISK)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _is_written(bus: IDataStream) -> bool:
    path = getattr(bus, "local", None)
    return path is not None and path.exists() and is_locked(path)


def _name(given: str | None) -> str:
    if given is None:
        return f"pipeline-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", given):
        raise ConfigError(f"{given!r} is no pipeline_id: take up to 128 letters, digits, dots, _ and -")
    return given


def _node_name(index: int, operator: Any) -> str:
    return f"{index}_{re.sub(r'[^A-Za-z0-9_-]', '', name_of(operator)) or 'node'}"


def _shard_name(shard: tuple[int, int]) -> str:
    return f"shard-{shard[0]:05d}-of-{shard[1]:05d}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
