"""The window of blocks computed ahead, whose results are delivered in source order."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from asysi.pipeline.nodes.block_executor import BlockExecutor
from asysi.pipeline.nodes.config import NodeSettings
from asysi.pipeline.nodes.dispatch_log import DispatchLog
from asysi.pipeline.nodes.run_context import RunContext
from asysi.pipeline.rows.blocks import Result, RowBlock

_QUICK, _SLOW = 0.02, 0.2
"""Blocks grow below the first and shrink above the second duration, in seconds."""
_AHEAD = 64
"""Maximum blocks completed ahead of a slow one, per concurrent slot."""


@dataclass(slots=True)
class _Flight:
    """A block in flight."""

    block: RowBlock
    future: "Future[Result]"
    since: float
    parked: bool = False


class BlockSize:
    """Adaptive block size: blocks grow until the overhead per block is small.

    Args:
        batch_size: source rows per batch; a block is a multiple of it, or one batch if the operator waits.
        queue_size: maximum computed rows waiting to be written.
    """

    def __init__(self, batch_size: int, queue_size: int) -> None:
        self.rows = self._batch = batch_size
        self._most = max(batch_size, queue_size // batch_size * batch_size)

    def adapt(self, result: Result, *, waits: bool | None) -> None:
        """Adapt the size to a block's duration."""
        if waits or result.failure is not None:
            self.rows = self._batch
        elif result.seconds < _QUICK and result.last - result.first >= self.rows:
            self.rows = min(2 * self.rows, self._most)
        elif result.seconds > _SLOW:
            self.rows = max(self._batch, self.rows // 2 // self._batch * self._batch)


class FlightWindow:
    """Blocks in flight through an executor.

    Results that wait long for a slow earlier block are parked in the ledger, so that a kill does not lose
    them; results parked by an earlier run are delivered at their position without being recomputed.

    Args:
        settings: settings of the node.
        context: the run.
        executor: computes blocks.
        deliver: called with each block and its result, in source order.
    """

    def __init__(
        self,
        settings: NodeSettings,
        context: RunContext,
        executor: BlockExecutor,
        deliver: Callable[[RowBlock, Result], None],
    ) -> None:
        self._settings, self._context, self._executor, self._deliver = settings, context, executor, deliver
        self._size = BlockSize(settings.batch_size, settings.writer_config.queue_size)
        self._flights: deque[_Flight] = deque()
        self._parked = context.ledger.parked(settings.node_id) if context.resume else {}
        self.has_parked = bool(self._parked)
        """Whether the ledger holds results of uncommitted blocks."""
        self.dispatches = DispatchLog(settings.node_id)

    @property
    def busy(self) -> bool:
        """Whether blocks are in flight."""
        return bool(self._flights)

    def rows_to_take(self, row: int) -> int:
        """Return the number of rows of the next block, which starts at source row `row`."""
        following = [first for first in self._parked if first >= row]
        if not following:
            return self._size.rows
        first = min(following)
        if first == row:
            return self._parked[first].last - first
        return min(self._size.rows, first - row)

    def dispatch(self, block: RowBlock) -> None:
        """Dispatch a block and deliver completed results; blocks while the window is full."""
        self.dispatches.tell(block.first, block.last, len(self._flights))
        parked = self._parked.pop(block.first, None)
        if parked is not None:
            self._spent(parked)
            ready: Future[Result] = Future()
            ready.set_result(parked)
            self._flights.append(_Flight(block, ready, time.monotonic(), parked=True))
            self.deliver_ready()
        elif self._executor.is_parallel:
            self._submit(block)
        else:
            self.drain()  # deliver parked results before it
            result = self._executor.run(block)
            self._spent(result)
            self._size.adapt(result, waits=self._executor.waits)
            self._deliver(block, result)

    def deliver_ready(self) -> None:
        """Deliver completed results up to the first incomplete one."""
        while self._flights and self._flights[0].future.done():
            self._land()

    def drain(self) -> None:
        """Wait for all blocks in flight and deliver them."""
        while self._flights:
            if not self._flights[0].future.done():
                wait([self._flights[0].future], timeout=0.5)
                self._park_late()
            self.deliver_ready()

    def abandon(self) -> None:
        """Wait for all blocks in flight and park them: an earlier block has failed or was cut short."""
        wait([flight.future for flight in self._flights])
        self._park([flight for flight in self._flights if not flight.parked])
        self._flights.clear()

    def _submit(self, block: RowBlock) -> None:
        future = self._executor.submit(block)
        future.add_done_callback(self._on_done)
        self._flights.append(_Flight(block, future, time.monotonic()))
        self.deliver_ready()
        slots = self._executor.slots
        while self._flights and self._crowded(slots):
            running = [flight.future for flight in self._flights if not flight.future.done()]
            if running:
                wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            self.deliver_ready()
            self._park_late()

    def _crowded(self, slots: int) -> bool:
        """Return whether the window is full: too many blocks running, or completed behind a slow one."""
        running = sum(not flight.future.done() for flight in self._flights)
        rows = sum(flight.block.rows for flight in self._flights)
        return (
            running >= 2 * slots
            or len(self._flights) >= _AHEAD * slots
            or (rows >= self._settings.writer_config.queue_size and len(self._flights) >= 2 * slots)
        )

    def _land(self) -> None:
        flight = self._flights.popleft()
        result = flight.future.result()
        if not flight.parked:
            self._size.adapt(result, waits=self._executor.waits)
        self._deliver(flight.block, result)

    def _park_late(self) -> None:
        """Park results that have waited long for a slow earlier block."""
        now = time.monotonic()
        late = [
            flight
            for flight in self._flights
            if flight.future.done()
            and not flight.parked
            and now - flight.since > self._settings.writer_config.flush_interval
        ]
        if self._flights and not self._flights[0].future.done():
            self._park(late)

    def _park(self, flights: list[_Flight]) -> None:
        done = [flight for flight in flights if flight.future.done() and not flight.future.exception()]
        whole = [
            flight.future.result() for flight in done if flight.future.result().last == flight.block.last
        ]
        if whole:
            self._context.ledger.park(self._settings.node_id, whole)
            self.has_parked = True
        for flight in done:
            flight.parked = True

    def _on_done(self, future: "Future[Result]") -> None:
        if not future.cancelled() and future.exception() is None:
            self._spent(future.result())

    def _spent(self, result: Result) -> None:
        if result.usage:
            self._context.spent(self._settings.node_id, result)
