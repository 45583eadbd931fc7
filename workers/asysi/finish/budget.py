"""What finish may spend on reading with the model, and how far it is."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ReadBudget:
    """What one reading may take."""

    tokens: int
    """Tokens that run through the model at most."""
    seconds: float
    """Time after which no further forward begins; the first one is always run."""
    memory: int = 512 * 2**20
    """Bytes of the activations that are kept at most."""


@dataclass(frozen=True, slots=True)
class ReadProgress:
    """How far a reading is."""

    what: str
    """What is read for: `report` or `cross-entropy`."""
    tokens: int
    """That have run through the model."""
    tokens_total: int
    """That will have, unless the time is over before."""
    seconds_left: float | None
    """At the present pace, None before the first forward."""


class ReadWatch(Protocol):
    """Who is told that work goes on, and how far it is."""

    def beat(self) -> None:
        """Note that something was done."""

    def show(self, progress: ReadProgress | None) -> None:
        """Note how far a reading is; None when it is over."""


class Unwatched:
    """Is told, and does nothing."""

    def beat(self) -> None:
        """Do nothing."""

    def show(self, progress: ReadProgress | None) -> None:
        """Do nothing."""


class Spending:
    """Decides whether the next forward still fits into the time, at the pace of those before.

    Args:
        what: what is read for.
        seconds: of the whole, counted from now.
        watch: is told after every forward.
        clock: seconds, monotonic.
    """

    def __init__(
        self, what: str, seconds: float, watch: ReadWatch, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._seconds, self._watch, self._clock = what, seconds, watch, clock
        self._began = self._forwards_began = clock()
        self._done = 0
        self.total = 0
        """Tokens that are to be read in all."""

    def plan(self, tokens: int) -> None:
        """Say how many tokens are to be read in all; forwards begin now."""
        self.total, self._forwards_began = tokens, self._clock()

    @property
    def left(self) -> float:
        """Seconds that may still be spent; below 0 they are over."""
        return self._seconds - (self._clock() - self._began)

    @property
    def pace(self) -> float | None:
        """Tokens a second, None before the first forward."""
        spent = self._clock() - self._forwards_began
        return self._done / spent if self._done and spent > 0 else None

    def fits(self, tokens: int) -> bool:
        """Return whether a forward of so many tokens will end in time; the first one may take any."""
        pace = self.pace
        return not self._done or self.left >= (tokens / pace if pace else 0.0)

    def spend(self, tokens: int) -> None:
        """Note a forward of so many tokens."""
        self._done += tokens
        pace = self.pace
        ahead = None if pace is None else (self.total - self._done) / pace
        left = None if ahead is None else max(0.0, min(ahead, self.left))
        self._watch.beat()
        self._watch.show(ReadProgress(self._what, self._done, self.total, left))
