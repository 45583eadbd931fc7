"""How fast requests may follow each other."""

import time
from collections.abc import Callable

MINUTE = 60.0
_SAVED = 1.0
"""Seconds of unused allowance that are kept for later."""


class RateLimit:
    """Lets through so many units in any minute at most, evenly (generic cell rate algorithm, ITU-T I.371).

    Args:
        per_minute: units, > 0.
        clock: seconds, never going back.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        # What was saved may be spent at once at the beginning of a minute, so it counts as part of it.
        self._interval = (MINUTE + _SAVED) / per_minute
        self._clock = clock
        self._next = clock()

    def reserve(self, units: float = 1.0) -> float:
        """Book units and return how long to wait before they are used, seconds."""
        now = self._clock()
        begin = max(self._next, now - _SAVED)
        self._next = begin + units * self._interval
        return max(0.0, begin - now)

    def correct(self, units: float) -> None:
        """Book more units, or fewer, where it turned out what a request really took."""
        self._next += units * self._interval
