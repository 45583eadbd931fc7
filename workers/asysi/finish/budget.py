"""Budget and progress of finish when it reads documents with the model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ReadBudget:
    """Limits of one reading."""

    tokens: int
    """Maximum number of tokens run through the model."""
    seconds: float
    """Time after which no further forward pass starts; the first one is always run."""
    memory: int = 512 * 2**20
    """Maximum bytes of kept activations."""


@dataclass(frozen=True, slots=True)
class ReadProgress:
    """Progress of a reading."""

    what: str
    """Purpose of the reading: `report` or `cross-entropy`."""
    tokens: int
    """Tokens run through the model so far."""
    tokens_total: int
    """Tokens to run in total, unless time runs out first."""
    seconds_left: float | None
    """Remaining time at the current pace, None before the first forward pass."""


class ReadWatch(Protocol):
    """Receives heartbeats and the progress of a reading."""

    def beat(self) -> None:
        """Record that work continues."""

    def show(self, progress: ReadProgress | None) -> None:
        """Record the progress of a reading; None when it is over."""


class Unwatched:
    """Ignores heartbeats and progress."""

    def beat(self) -> None:
        """Do nothing."""

    def show(self, progress: ReadProgress | None) -> None:
        """Do nothing."""


class Spending:
    """Decides whether the next forward pass still fits into the time, at the pace of the previous ones.

    Args:
        what: purpose of the reading.
        seconds: total time, counted from now.
        watch: called after every forward pass.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self, what: str, seconds: float, watch: ReadWatch, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._seconds, self._watch, self._clock = what, seconds, watch, clock
        self._began = self._forwards_began = clock()
        self._done = 0
        self.total = 0
        """Total number of tokens to read."""

    def plan(self, tokens: int) -> None:
        """Set the total number of tokens to read; forward passes start now."""
        self.total, self._forwards_began = tokens, self._clock()

    @property
    def left(self) -> float:
        """Remaining seconds; negative if the time is over."""
        return self._seconds - (self._clock() - self._began)

    @property
    def pace(self) -> float | None:
        """Tokens per second, None before the first forward pass."""
        spent = self._clock() - self._forwards_began
        return self._done / spent if self._done and spent > 0 else None

    def fits(self, tokens: int) -> bool:
        """Return whether a forward pass of `tokens` tokens will end in time; the first always fits."""
        pace = self.pace
        return not self._done or self.left >= (tokens / pace if pace else 0.0)

    def spend(self, tokens: int) -> None:
        """Record a forward pass of `tokens` tokens."""
        self._done += tokens
        pace = self.pace
        ahead = None if pace is None else (self.total - self._done) / pace
        left = None if ahead is None else max(0.0, min(ahead, self.left))
        self._watch.beat()
        self._watch.show(ReadProgress(self._what, self._done, self.total, left))
