"""Steers the sampling rate: reads the books, asks `rate.decide`, tells the host through the mailbox."""

from typing import TYPE_CHECKING

from asysi.bus.mailbox import CaptureWord
from asysi.hook.books import HOOK, Books, ConsumerBooks
from asysi.hook.rate import Consumer, Limits, Pace, decide, standing

if TYPE_CHECKING:
    from asysi_ring import Control


class Pacer:
    """The controller's memory, and the lags since its last decision.

    Args:
        capture: the capture ring; a rate that stands in its mailbox is gone on with.
        bus: the bus.
        limits: bounds of the rate.
    """

    def __init__(self, capture: "Control", bus: "Control", limits: Limits, books: Books) -> None:
        self._capture, self._bus, self._limits = capture, bus, limits
        told = capture.get_float(CaptureWord.RATE)
        self.pace = Pace(rate=min(limits.most, max(limits.least, told)) if told > 0 else limits.most)
        capture.set_float(CaptureWord.RATE, self.pace.rate)
        self._decided = books
        self._names = bus.readers()
        self._lags: dict[str, list[float]] = {}

    def look(self) -> None:
        """Note how far everybody lags; to be called often, between two decisions."""
        self._lags.setdefault(HOOK, []).append(self._capture.lag(HOOK))
        for name in self._names:
            self._lags.setdefault(name, []).append(self._bus.lag(name))

    def decide(self, books: Books) -> None:
        """Set the rate, unless the host has offered nothing since the last decision."""
        offered = books.offered - self._decided.offered
        if offered <= 0:
            return
        before, lags = self._decided, self._lags
        consumers = {
            name: Consumer(
                rows=now.consumed - before.consumers[name].consumed,
                lag=standing(min(lags[name]), max(lags[name])),
                present=now.state == "attached",
            )
            for name, now in books.consumers.items()
        }
        # The hook itself may be the slowest. A burst may fill its ring, which need not hold two steps.
        consumers[HOOK] = Consumer(_rows(before.hook, books.hook), min(lags[HOOK]), present=True)
        self.pace = decide(self.pace, self._limits, books.at - before.at, offered, consumers)
        self._capture.set_float(CaptureWord.RATE, self.pace.rate)
        self._decided = books
        self._lags = {}
        self.look()


def _rows(before: ConsumerBooks, after: ConsumerBooks) -> int:
    return after.consumed - before.consumed
