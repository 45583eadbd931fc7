"""Steers the sampling rate: reads the books, asks `rate.decide`, tells the host through the mailbox."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from asysi.bus.mailbox import CaptureWord
from asysi.bus.states import ReaderState
from asysi.hook.books import HOOK, Books, RingBooks
from asysi.hook.rate import Consumer, Limits, Pace, Queue, decide

if TYPE_CHECKING:
    from asysi_ring import Control


class Pacer:
    """The controller's memory, and what happened since its last decision.

    Args:
        capture: the capture ring; a rate that stands in its mailbox is gone on with.
        bus: the bus.
        limits: bounds of the rate.
        books: at the start.
    """

    def __init__(self, capture: "Control", bus: "Control", limits: Limits, books: Books) -> None:
        self._capture, self._bus, self._limits = capture, bus, limits
        told = capture.get_float(CaptureWord.RATE)
        self.pace = Pace(rate=min(limits.most, max(limits.least, told)) if told > 0 else limits.most)
        capture.set_float(CaptureWord.RATE, self.pace.rate)
        self._decided = books
        self._peaks = dict.fromkeys(books.bus.consumers, 0.0)
        self._gone_since: dict[str, float] = {}

    def look(self) -> None:
        """Note how far the bus's consumers lag; to be called often, between two decisions."""
        for name, peak in self._peaks.items():
            self._peaks[name] = max(peak, self._bus.lag(name))

    def decide(self, books: Books) -> None:
        """Set the rate, unless the host has offered nothing since the last decision."""
        before = self._decided
        offered = books.offered - before.offered
        if offered <= 0:
            return
        consumers = {
            name: replace(
                _consumer(before.bus, books.bus, name),
                peak=self._peaks[name],
                away=self._away(name, now.state, before.at, books.at),
            )
            for name, now in books.bus.consumers.items()
        }
        # The hook itself may be the slowest. Its ring need not hold more than one step: a peak is no warning.
        consumers[HOOK] = _consumer(before.capture, books.capture, HOOK)
        self.pace = decide(self.pace, self._limits, books.at - before.at, offered, consumers)
        self._capture.set_float(CaptureWord.RATE, self.pace.rate)
        self._decided = books
        self._peaks = dict.fromkeys(self._peaks, 0.0)
        self.look()

    def _away(self, name: str, state: ReaderState, before: float, now: float) -> float:
        """Return the seconds that a consumer has been gone; for ever when it has finished or never came."""
        if state is ReaderState.ATTACHED:
            self._gone_since.pop(name, None)
            return 0.0
        if state is ReaderState.GONE:
            return now - self._gone_since.setdefault(name, before)
        return math.inf


def _consumer(before: RingBooks, now: RingBooks, name: str) -> Consumer:
    """Return what a consumer of a ring did between two books."""
    then, since = before.consumers[name], now.consumers[name]
    return Consumer(
        [
            Queue(
                rows=since.consumed[shard] - then.consumed[shard],
                unread=max(0, before.published[shard] - since.position[shard]),
                turnover=(now.heads[shard] - before.heads[shard]) / now.depth,
            )
            for shard in range(len(now.heads))
        ]
    )
