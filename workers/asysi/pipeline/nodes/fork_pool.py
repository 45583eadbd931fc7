"""Worker processes of a node. They are forked, so operators need not be picklable."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asysi.pipeline.nodes.config import MAX_THREADS, NodeSettings
from asysi.pipeline.nodes.event_loop import call_method
from asysi.pipeline.nodes.run_context import RunContext
from asysi.pipeline.nodes.worker import NodeWorker
from asysi.pipeline.operators.operator import NodeContext
from asysi.pipeline.rows.blocks import Result, RowBlock

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

_child: tuple[NodeWorker, Callable[[], NodeContext]] | None = None
"""In a worker process: the worker, and a factory for each block's context."""


@dataclass(frozen=True, slots=True)
class _Task:
    """Settings passed to a worker process."""

    operator: Any
    node_id: str
    batch_size: int
    dead_letters: bool
    pipeline_id: str
    folder: Path
    processes: int
    parent: int


def fork_pool(settings: NodeSettings, run: RunContext) -> "ProcessPoolExecutor":
    """Start a pool of processes for `run_in_child`."""
    import multiprocessing  # noqa: PLC0415 - not needed with one process
    from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415

    context = multiprocessing.get_context("fork")
    stop = context.Event()
    task = _Task(
        settings.operator,
        settings.node_id,
        settings.batch_size,
        settings.sets_aside,
        run.pipeline_id,
        run.folder,
        settings.processes,
        os.getpid(),
    )
    pool = ProcessPoolExecutor(
        settings.processes, context, initializer=_begin_child, initargs=(task, stop.is_set)
    )
    pool.submit(os.getpid).result(timeout=60)
    threading.Thread(target=_pass_on, args=(run.stop, stop, pool), daemon=True).start()
    return pool


def run_in_child(block: RowBlock) -> Result:
    """Compute a block in a worker process."""
    assert _child is not None
    worker, context = _child
    return worker.run(block, context())


def _pass_on(stop: threading.Event, child_stop: Any, pool: "ProcessPoolExecutor") -> None:
    while not stop.wait(0.5):
        if getattr(pool, "_shutdown_thread", False):
            return
    child_stop.set()


def _begin_child(task: _Task, stopped: Callable[[], bool]) -> None:
    global _child  # noqa: PLW0603 - runs in the child process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(task.parent)

    def context() -> NodeContext:
        return NodeContext(task.node_id, task.pipeline_id, task.folder, stopped, task.processes)

    threads = ThreadPoolExecutor(min(task.batch_size, MAX_THREADS)) if task.batch_size > 1 else None
    call_method(task.operator, "open", context())
    _child = (
        NodeWorker(task.operator, task.batch_size, dead_letters=task.dead_letters, threads=threads),
        context,
    )


def die_with(parent: int) -> None:
    """Start a thread that kills this process once its parent has died."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
