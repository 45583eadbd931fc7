"""The work queue of experiments: each is queued at most once and never processed concurrently."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from asysi_operator.cache import Key

URGENT_IN_A_ROW = 8
"""Urgent experiments taken in a row before an ordinary one gets its turn."""
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 60.0
"""First and maximum delay in seconds before a failed reconcile is retried; doubled each time."""


@dataclass
class WorkQueue:
    """Experiments to be looked at, now or later. Its methods belong to one event loop.

    While an experiment is new, waiting or taken, only one of the others is taken at a time: the writes that
    bring a Job do not compete with those that report on Jobs, and no experiment waits for ever.
    """

    clock: Callable[[], float] = time.monotonic
    _urgent: deque[Key] = field(default_factory=deque)
    _ordinary: deque[Key] = field(default_factory=deque)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there may be one to take that there was not before."""
    _row: int = 0
    """Urgent experiments taken in a row."""
    _since: dict[Key, float] = field(default_factory=dict)
    """When each waiting experiment was queued."""
    _busy: dict[Key, bool] = field(default_factory=dict)
    """Those that are taken, and whether each was urgent."""
    _again: set[Key] = field(default_factory=set)
    """Experiments queued again while being processed."""
    _timers: dict[Key, asyncio.TimerHandle] = field(default_factory=dict)
    _failures: dict[Key, int] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Number of waiting experiments."""
        return len(self._since)

    def add(self, key: Key, *, urgent: bool = False) -> None:
        """Queue an experiment; urgent is for one that has no objects yet."""
        if key in self._busy:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = self.clock()
            (self._urgent if urgent else self._ordinary).append(key)
            self._changed.set()

    def later(self, key: Key, seconds: float) -> None:
        """Queue an experiment after a delay; of several delays, the earliest wins."""
        loop = asyncio.get_running_loop()
        known = self._timers.get(key)
        if known is not None and known.when() <= loop.time() + seconds:
            return
        if known is not None:
            known.cancel()
        self._timers[key] = loop.call_later(seconds, self._ring, key)

    def failed(self, key: Key) -> float:
        """Schedule a retry with exponential back-off; returns the delay in seconds."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = min(LAST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(count - 1, 16))
        self.later(key, seconds)
        return seconds

    def succeeded(self, key: Key) -> None:
        """Reset the back-off."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """Drop all state of a deleted experiment."""
        self.succeeded(key)
        if timer := self._timers.pop(key, None):
            timer.cancel()

    async def take(self) -> tuple[Key, float]:
        """Wait for the next experiment; return it and the seconds it waited. It is busy until `done`."""
        while (found := self._next()) is None:
            self._changed.clear()
            await self._changed.wait()
        key, urgent = found
        waited = self.clock() - self._since.pop(key)
        self._busy[key] = urgent
        return key, waited

    def _next(self) -> tuple[Key, bool] | None:
        """Return the next experiment and whether it is urgent, None while there is none to take."""
        urgent = any(self._busy.values())
        held = urgent and not all(self._busy.values())
        if self._urgent and (held or not self._ordinary or self._row < URGENT_IN_A_ROW):
            self._row += 1
            return self._urgent.popleft(), True
        if not self._ordinary or held:
            return None
        self._row = 0
        return self._ordinary.popleft(), False

    def done(self, key: Key) -> None:
        """Mark an experiment as processed; queue it again if it was added meanwhile."""
        self._busy.pop(key, None)
        self._changed.set()
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _ring(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)
