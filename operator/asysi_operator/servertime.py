"""The API server's time: what it writes on objects is only to be compared with its own clock. Pure.

Its answers say what time it is, to the second. In between a monotonic clock counts on, so that neither a node
whose clock is wrong nor one that is set right moves a deadline.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TOLERANCE = 1.0
"""Seconds by which an answer may seem early or late: it was under way, and tells whole seconds."""


class ServerTime:
    """What the API server's clock shows. Moments are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._zero: float | None = None
        """Seconds since 1970 at the monotonic clock's zero."""

    def heard(self, date: str | None, at: float) -> None:
        """Take in the header `Date` of an answer that came at a moment; what is not a date is ignored."""
        try:
            told = (parsedate_to_datetime(date or "") - _EPOCH).total_seconds()
        except (ValueError, TypeError):
            return
        least, most = told - at - _TOLERANCE, told + 1 - at + _TOLERANCE
        if self._zero is None or not least <= self._zero <= most:
            self._zero = told + 0.5 - at

    def at(self, moment: float) -> datetime | None:
        """Return the time at a moment, None before the API server has told any."""
        return None if self._zero is None else _EPOCH + timedelta(seconds=self._zero + moment)
