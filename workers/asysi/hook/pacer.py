"""Adjusts the sampling rate: reads the totals, calls `rate.decide`, and passes the rate to the host."""

import math
from dataclasses import replace

from asysi.bus.mailbox import CaptureWord
from asysi.bus.states import ReaderState
from asysi.bus.stream import StreamControl
from asysi.hook.rate import ConsumerInterval, Limits, Queue, RateState, decide
from asysi.hook.totals import HOOK, RingTotals, StreamTotals


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
        self._peaks = dict.fromkeys(totals.bus.consumers, 0.0)
        self._gone_since: dict[str, float] = {}

    def look(self) -> None:
        """Record the lag of the bus's consumers; call this often between decisions."""
        for name, peak in self._peaks.items():
            self._peaks[name] = max(peak, self._bus.lag(name))

    def decide(self, totals: StreamTotals) -> None:
        """Set the rate, unless the host offered no rows since the last decision."""
        before = self._decided
        offered = totals.offered - before.offered
        if offered <= 0:
            return
        consumers = {
            name: replace(
                _consumer(before.bus, totals.bus, name),
                peak=self._peaks[name],
                away=self._away(name, now.state, before.at, totals.at),
            )
            for name, now in totals.bus.consumers.items()
        }
        # The hook itself may be the slowest. Its ring may hold only one step, so its peak is meaningless.
        consumers[HOOK] = _consumer(before.capture, totals.capture, HOOK)
        self.pace = decide(self.pace, self._limits, totals.at - before.at, offered, consumers)
        self._capture.set_float(CaptureWord.RATE, self.pace.rate)
        self._decided = totals
        self._peaks = dict.fromkeys(self._peaks, 0.0)
        self.look()

    def _away(self, name: str, state: ReaderState, before: float, now: float) -> float:
        """Return for how many seconds a consumer has been gone; infinite if it finished or never attached."""
        if state is ReaderState.ATTACHED:
            self._gone_since.pop(name, None)
            return 0.0
        if state is ReaderState.GONE:
            return now - self._gone_since.setdefault(name, before)
        return math.inf


def _consumer(before: RingTotals, now: RingTotals, name: str) -> ConsumerInterval:
    """Return the activity of a ring's consumer between two totals."""
    then, since = before.consumers[name], now.consumers[name]
    return ConsumerInterval(
        [
            Queue(
                rows=since.consumed[shard] - then.consumed[shard],
                unread=max(0, before.published[shard] - since.position[shard]),
                turnover=(now.heads[shard] - before.heads[shard]) / now.depth,
            )
            for shard in range(len(now.heads))
        ]
    )
