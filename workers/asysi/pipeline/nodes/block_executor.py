"""Computes a node's blocks in this thread, on threads, or in forked processes."""

from concurrent.futures import Executor, Future, ThreadPoolExecutor

from asysi.pipeline.nodes.config import MAX_THREADS, NodeSettings
from asysi.pipeline.nodes.event_loop import call_method
from asysi.pipeline.nodes.fork_pool import fork_pool, run_in_child
from asysi.pipeline.nodes.run_context import RunContext
from asysi.pipeline.nodes.worker import NodeWorker
from asysi.pipeline.operators.operator import NodeContext, is_async
from asysi.pipeline.rows.blocks import Result, RowBlock


class BlockExecutor:
    """Computes blocks with a node's operator. Call `open` first, `shutdown` and `close_operator` last.

    Args:
        settings: settings of the node.
        context: the run.
    """

    def __init__(self, settings: NodeSettings, context: RunContext) -> None:
        self._settings, self._context = settings, context
        self._pool: Executor | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._worker: NodeWorker | None = None

    def open(self) -> None:
        """Start threads or processes, and open the operator if it runs in this process."""
        given, operator = self._settings, self._settings.operator
        if given.processes > 1:
            self._pool = fork_pool(given, self._context)
            self._worker = NodeWorker(operator, given.batch_size, dead_letters=given.sets_aside)
            return
        if given.batch_size > 1 and not is_async(operator):
            threads = min(given.parallel_size * given.batch_size, MAX_THREADS)
            self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"{given.node_id}-rows")
        self._worker = NodeWorker(
            operator, given.batch_size, dead_letters=given.sets_aside, threads=self._threads
        )
        if given.parallel_size > 1:
            self._pool = ThreadPoolExecutor(given.parallel_size, thread_name_prefix=given.node_id)
        call_method(operator, "open", self._node_context())

    @property
    def is_parallel(self) -> bool:
        """Whether to use `submit`; otherwise `run` computes blocks one by one."""
        return self._pool is not None

    @property
    def slots(self) -> int:
        """Number of blocks computed concurrently."""
        return max(self._settings.parallel_size, self._settings.processes)

    @property
    def batches(self) -> bool:
        """Whether the operator processes batches."""
        assert self._worker is not None
        return self._worker.batches

    @property
    def waits(self) -> bool | None:
        """Whether the operator is I/O-bound rather than CPU-bound; None if not known yet."""
        assert self._worker is not None
        return self._worker.waits

    def run(self, block: RowBlock) -> Result:
        """Compute a block in this thread."""
        assert self._worker is not None
        return self._worker.run(block, self._node_context())

    def submit(self, block: RowBlock) -> "Future[Result]":
        """Start computing a block on a thread or in a process."""
        assert self._pool is not None
        assert self._worker is not None
        block.lines = None  # avoids a second copy while queued or sent to a process
        if self._settings.processes > 1:
            return self._pool.submit(run_in_child, block)
        return self._pool.submit(self._worker.run, block, self._node_context())

    def shutdown(self) -> None:
        """Wait for running blocks, and end threads and processes."""
        for pool in (self._pool, self._threads):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._threads = None

    def close_operator(self) -> None:
        """Close the operator if it was opened in this process."""
        if self._worker is not None and self._settings.processes == 1:
            call_method(self._settings.operator, "close")

    def _node_context(self) -> NodeContext:
        return NodeContext(
            self._settings.node_id,
            self._context.pipeline_id,
            self._context.folder,
            self._context.stop.is_set,
            self._settings.processes,
            self._context.round,
        )
