"""The queue of experiments that are to be looked at: each at most once, and never by two at a time."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from asysi_operator.cache import Key

URGENT_IN_A_ROW = 8
"""Urgent experiments that may be looked at, one after another, before one that has waited its turn."""
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 60.0
"""Seconds until an experiment whose look came to nothing is looked at again: doubled each time."""


@dataclass
class WorkQueue:
    """Experiments to be looked at, now or later. Its methods belong to one event loop."""

    clock: Callable[[], float] = time.monotonic
    _urgent: deque[Key] = field(default_factory=deque)
    _ordinary: deque[Key] = field(default_factory=deque)
    _ready: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Counts what waits in either queue."""
    _row: int = 0
    """Urgent ones in a row."""
    _since: dict[Key, float] = field(default_factory=dict)
    """When each waiting experiment began to wait."""
    _busy: set[Key] = field(default_factory=set)
    _again: set[Key] = field(default_factory=set)
    """Busy ones that something has happened to meanwhile."""
    _timers: dict[Key, asyncio.TimerHandle] = field(default_factory=dict)
    _failures: dict[Key, int] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """How many wait."""
        return len(self._since)

    def add(self, key: Key, *, urgent: bool = False) -> None:
        """Look at an experiment as soon as possible; urgent is one of which nothing is there yet."""
        if key in self._busy:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = self.clock()
            (self._urgent if urgent else self._ordinary).append(key)
            self._ready.release()

    def later(self, key: Key, seconds: float) -> None:
        """Look at an experiment in some seconds; of several such times the earliest stands."""
        loop = asyncio.get_running_loop()
        known = self._timers.get(key)
        if known is not None and known.when() <= loop.time() + seconds:
            return
        if known is not None:
            known.cancel()
        self._timers[key] = loop.call_later(seconds, self._ring, key)

    def failed(self, key: Key) -> float:
        """Look again after a while, longer each time; returns the seconds."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = min(LAST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(count - 1, 16))
        self.later(key, seconds)
        return seconds

    def succeeded(self, key: Key) -> None:
        """Forget that looks have come to nothing."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """Drop what is kept about an experiment that has gone."""
        self.succeeded(key)
        if timer := self._timers.pop(key, None):
            timer.cancel()

    async def take(self) -> tuple[Key, float]:
        """Return the next experiment and the seconds that it waited; it is busy until `done`."""
        await self._ready.acquire()
        key = self._next()
        waited = self.clock() - self._since.pop(key)
        self._busy.add(key)
        return key, waited

    def _next(self) -> Key:
        if self._urgent and not (self._ordinary and self._row >= URGENT_IN_A_ROW):
            self._row += 1
            return self._urgent.popleft()
        self._row = 0
        return self._ordinary.popleft()

    def done(self, key: Key) -> None:
        """Let an experiment be looked at again."""
        self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _ring(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)
