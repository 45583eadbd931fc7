"""Rate limiting of requests."""

import time
from collections.abc import Callable

MINUTE = 60.0
_SAVED = 1.0
"""Seconds of unused allowance that may be saved up."""


class RateLimit:
    """Rate limiter for units per minute, evenly spaced (generic cell rate algorithm, ITU-T I.371).

    Args:
        per_minute: maximum units in any minute, > 0.
        clock: monotonic clock in seconds.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        # Saved allowance may be used at once at the start of a minute, so it counts towards that minute.
        self._interval = (MINUTE + _SAVED) / per_minute
        self._clock = clock
        self._next = clock()

    def reserve(self, units: float = 1.0) -> float:
        """Reserve units and return the seconds to wait before using them."""
        now = self._clock()
        begin = max(self._next, now - _SAVED)
        self._next = begin + units * self._interval
        return max(0.0, begin - now)

    def correct(self, units: float) -> None:
        """Adjust the reservation by the difference to a request's actual usage."""
        self._next += units * self._interval
