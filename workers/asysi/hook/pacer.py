"""Adjusts the sampling rate: reads the totals, calls `rate.decide`, and passes the rate to the host."""

import math
from collections.abc import Sequence
from dataclasses import replace

from asysi.bus.mailbox import CaptureWord
from asysi.bus.states import ReaderState
from asysi.bus.stream import StreamControl
from asysi.hook.rate import ConsumerInterval, Limits, Queue, RateState, decide
from asysi.hook.totals import HOOK, ConsumerTotals, RingTotals, StreamTotals

_JUST_GONE = 1e-3
"""Seconds for which a consumer counts as gone that was found gone just now."""


class Pacer:
    """The controller's state, and the observations since its last decision.

    Args:
        capture: the capture ring; a rate in its mailbox is the initial rate.
        bus: the bus.
        limits: bounds of the rate.
        totals: totals at the start.
    """

    def __init__(
        self, capture: StreamControl, bus: StreamControl, limits: Limits, totals: StreamTotals
    ) -> None:
        self._capture, self._bus, self._limits = capture, bus, limits
        told = capture.get_float(CaptureWord.RATE)
        self.pace = RateState(rate=min(limits.most, max(limits.least, told)) if told > 0 else limits.most)
        capture.set_float(CaptureWord.RATE, self.pace.rate)
        self._decided = totals
        self._begun = False
        self._peaks = dict.fromkeys(totals.bus.consumers, 0.0)
        self._gone: dict[str, tuple[float, Sequence[int]]] = {}
        """When a consumer was found gone, and what it had read by then."""

    def observe(self) -> None:
        """Record the lag of the bus's consumers; call this often between decisions."""
        for name, peak in self._peaks.items():
            self._peaks[name] = max(peak, self._bus.lag(name))

    def decide(self, totals: StreamTotals) -> None:
        """Set the rate, unless the host offered no rows since the last decision."""
        before = self._decided
        for name, now in totals.bus.consumers.items():
            if now.state is ReaderState.GONE:
                self._gone.setdefault(name, (totals.at, now.consumed))
        offered = totals.offered - before.offered
        if offered <= 0:
            return
        if not self._begun:  # until now the host was loading its model: there is no pace in that time
            self._begun, self._decided = True, totals
            return
        consumers = {
            name: replace(
                _consumer(before.bus, totals.bus, name),
                peak=self._peaks[name],
                away=self._away(name, now, totals.at),
            )
            for name, now in totals.bus.consumers.items()
        }
        # The hook itself may be the slowest. Its ring may hold only one step, so its peak is meaningless.
        consumers[HOOK] = _consumer(before.capture, totals.capture, HOOK)
        self.pace = decide(self.pace, self._limits, totals.at - before.at, offered, consumers)
        self._capture.set_float(CaptureWord.RATE, self.pace.rate)
        self._decided = totals
        self._peaks = dict.fromkeys(self._peaks, 0.0)
        self.observe()

    def _away(self, name: str, totals: ConsumerTotals, now: float) -> float:
        """Return for how many seconds a consumer has been gone; infinite if it finished or never attached.

        A consumer that was gone is loading until it reads again. The interval in which it begins to is the
        last one in which it counts as gone: what it read in it says nothing of its pace.
        """
        if totals.state not in {ReaderState.GONE, ReaderState.ATTACHED}:
            return math.inf
        if name not in self._gone:
            return 0.0
        since, consumed = self._gone[name]
        if totals.state is ReaderState.ATTACHED and totals.consumed != consumed:
            del self._gone[name]
        return max(_JUST_GONE, now - since)


def _consumer(before: RingTotals, now: RingTotals, name: str) -> ConsumerInterval:
    """Return the activity of a ring's consumer between two totals."""
    then, since = before.consumers[name], now.consumers[name]
    return ConsumerInterval(
        [
            Queue(
                rows=max(0, since.consumed[shard] - then.consumed[shard]),
                unread=max(0, before.published[shard] - since.position[shard]),
                turnover=(now.heads[shard] - before.heads[shard]) / now.depth,
            )
            for shard in range(len(now.heads))
        ]
    )
