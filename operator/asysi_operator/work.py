"""The queue of experiments that are to be looked at: each at most once, and never by two at a time."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from asysi_operator.world import Key

FIRST_BACKOFF, LAST_BACKOFF = 0.5, 60.0
"""Seconds until an experiment whose look came to nothing is looked at again: doubled each time."""


@dataclass
class Work:
    """Experiments to be looked at, now or later. Its methods belong to one event loop."""

    clock: Callable[[], float] = time.monotonic
    _ready: "asyncio.Queue[Key]" = field(default_factory=asyncio.Queue)
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

    def add(self, key: Key) -> None:
        """Look at an experiment as soon as possible."""
        if key in self._busy:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = self.clock()
            self._ready.put_nowait(key)

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
        key = await self._ready.get()
        waited = self.clock() - self._since.pop(key)
        self._busy.add(key)
        return key, waited

    def done(self, key: Key) -> None:
        """Let an experiment be looked at again."""
        self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _ring(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)
