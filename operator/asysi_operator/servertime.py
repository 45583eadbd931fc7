"""The API server's time: timestamps on objects are only comparable with the server's own clock. Pure.

Responses carry the time to the second; a monotonic clock interpolates in between, so neither a wrong local
clock nor an adjustment of it shifts a deadline.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TOLERANCE = 1.0
"""Seconds by which a response may seem early or late, because of latency and whole-second resolution."""


class ServerTime:
    """Estimate of the API server's clock. Moments are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._zero: float | None = None
        """Seconds since 1970 at the monotonic clock's zero."""

    def heard(self, date: str | None, at: float) -> None:
        """Record the `Date` header of a response received at a moment; an invalid date is ignored."""
        try:
            told = (parsedate_to_datetime(date or "") - _EPOCH).total_seconds()
        except (ValueError, TypeError):
            return
        least, most = told - at - _TOLERANCE, told + 1 - at + _TOLERANCE
        if self._zero is None or not least <= self._zero <= most:
            self._zero = told + 0.5 - at

    def at(self, moment: float) -> datetime | None:
        """Return the server time at a moment, or None before the first response."""
        return None if self._zero is None else _EPOCH + timedelta(seconds=self._zero + moment)
