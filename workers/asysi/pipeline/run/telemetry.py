"""Telemetry of a run: images, hooks, progress and the final report."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asysi.pipeline.nodes.counters import Progress
from asysi.pipeline.nodes.node import Node
from asysi.pipeline.run.hooks import CompositePipelineHooks
from asysi.pipeline.run.run_state import CHECKPOINT, RUNTIME, write_live

_TICK = 1.0
"""Seconds between two writes of runtime.json."""
_log = logging.getLogger("asysi.pipeline")


@dataclass(frozen=True, slots=True)
class Report:
    """Outcome of a run.

    Attributes:
        pipeline_id: the pipeline.
        status: completed, canceled or budget_exhausted; the latter two can be resumed.
        nodes: progress per node.
        usage: total usage over all runs of this pipeline, by name.
        settled: source rows with all descendants in the output.
        dead: number of dead letters.
        seconds: duration of this run.
        new_inputs: files that match the input but appeared after the run had started, and were not read.
    """

    pipeline_id: str
    status: str
    nodes: dict[str, Progress]
    usage: dict[str, float]
    settled: int
    dead: int
    seconds: float
    new_inputs: tuple[str, ...] = ()


def node_image(node: Node, spent: Mapping[str, float]) -> dict[str, Any]:
    """Return a node's settings and progress, for the image."""
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
        "usage": dict(spent),
    }


def save(folder: Path, image: Mapping[str, Any], nodes: Sequence[Node]) -> None:
    """Write `runtime.json` and `checkpoint.json` to a results folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_live(folder / RUNTIME, image)
    write_live(folder / CHECKPOINT, _checkpoint(image["pipeline_id"], nodes))


def tell_progress(hooks: CompositePipelineHooks, pipeline_id: str, node: Node) -> None:
    """Report a node's progress to the hooks."""
    now = node.progress()
    percent = min(100.0, 100 * now.durable / now.total) if now.total else 100.0 if now.exact else None
    meta = {**asdict(now), "percent": percent, "resumed_at": node.resumed_at}
    hooks.on_node_progress(pipeline_id, node.node_id, now.durable, now.total, meta)


def timestamp() -> str:
    """Return the current time in the format of images."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Ticker:
    """Once per second during a run, writes the image, calls the hooks and draws the progress.

    Args:
        image: returns the image.
        folder: results folder.
        nodes: nodes of the run.
        hooks: hooks of the run.
        progress: show progress on the terminal; None: if there is one.
    """

    def __init__(
        self,
        image: Callable[[], Mapping[str, Any]],
        folder: Path,
        nodes: Sequence[Node],
        hooks: CompositePipelineHooks,
        progress: bool | None,
    ) -> None:
        self._image, self._folder, self._nodes = image, folder, nodes
        self._hooks, self._progress = hooks, progress
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start, once the first processes have been forked: forking with threads is unsafe."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Stop."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        from asysi.pipeline.run.progress import display  # noqa: PLC0415 - rich is not needed without one

        with display(self._image, self._progress):
            while not self._ended.wait(_TICK):
                try:
                    self._tick()
                except OSError as error:  # the run must not fail because of its status file
                    _log.warning("%s cannot be written: %s", RUNTIME, error)

    def _tick(self) -> None:
        image = self._image()
        save(self._folder, image, self._nodes)
        for node in self._nodes:
            if node.status == "running":
                tell_progress(self._hooks, image["pipeline_id"], node)
                checkpoint = {"durable": node.progress().durable}
                self._hooks.on_checkpoint(image["pipeline_id"], node.node_id, checkpoint)


def _checkpoint(pipeline_id: str, nodes: Sequence[Node]) -> dict[str, Any]:
    progress = {node.node_id: node.progress() for node in nodes}
    return {
        "pipeline_id": pipeline_id,
        "updated": timestamp(),
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
