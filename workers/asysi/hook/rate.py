"""The sampling rate: how much the host keeps so that the slowest consumer can follow. Pure.

The rate is the consumers' pace over what is offered, times a push that depends on the lag alone:

    rate = pace / offered × push(lag),   push(lag) = max(0, 2 - 2.5·lag)

A consumer that follows easily has no lag, and its pace is what it is given: the push of 2 makes the rate
grow. One that cannot follow is always busy, its pace is its capacity, and the lag settles where the push is 1
(0.4 of the ring): enough work in stock to bridge a checkpoint, enough room left to bridge a restart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

SMOOTHING_SECONDS = 1.0
"""Time constant of the moving averages."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the rate, from the spec."""

    most: float
    least: float


@dataclass(frozen=True, slots=True)
class Consumer:
    """What one consumer did in an interval."""

    rows: float
    """Rows consumed."""
    lag: float
    """Share of its ring's depth that was unread during the interval, 0 to 1, see `standing`."""
    present: bool
    """Whether it is there. One that is gone is not waited for: it misses rows, and the books say so."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What the controller remembers."""

    rate: float
    offered: float | None = None
    """Rows a second that the host could have kept; None before anything was offered."""
    consumed: Mapping[str, float] = field(default_factory=dict)
    """Rows a second by consumer; one that is gone keeps its own until it is back."""


def standing(least: float, most: float) -> float:
    """Return the lag to steer by, from the least and the most in an interval.

    What counts is the standing queue, the least. What a burst adds for a moment is no reason to throttle,
    unless it comes near the end of the ring: 0.8 at its height counts like a standing 0.4.
    """
    return max(least, most - 0.4)


def push(lag: float) -> float:
    """Return the factor on the pace: 2 without lag, 1 at 0.4, 0 from 0.8 on."""
    return max(0.0, 2.0 - 2.5 * lag)


def decide(
    pace: Pace, limits: Limits, seconds: float, offered: float, consumers: Mapping[str, Consumer]
) -> Pace:
    """Return the next state after an interval.

    Args:
        pace: the state before it.
        limits: bounds of the rate.
        seconds: length of the interval, > 0. Intervals in which nothing was offered belong to the next one.
        offered: rows that the host could have kept in it (seen less dropped), > 0.
        consumers: what each consumer did in it.
    """
    weight = 1.0 - math.exp(-seconds / SMOOTHING_SECONDS)
    present = {name: consumer for name, consumer in consumers.items() if consumer.present}
    consumed = dict(pace.consumed) | {
        name: _smooth(pace.consumed.get(name), consumer.rows / seconds, weight)
        for name, consumer in present.items()
    }
    after = replace(pace, offered=_smooth(pace.offered, offered / seconds, weight), consumed=consumed)
    if not present:
        return after
    rate = min(_bearable(after, name, consumer.lag) for name, consumer in present.items())
    return replace(after, rate=min(limits.most, max(limits.least, rate)))


def _bearable(pace: Pace, name: str, lag: float) -> float:
    assert pace.offered
    if pace.consumed[name] == 0.0 and lag < 0.4:
        return pace.rate  # it has not begun yet: its pace is unknown, and there is room
    return pace.consumed[name] / pace.offered * push(lag)


def _smooth(before: float | None, now: float, weight: float) -> float:
    return now if before is None else before + weight * (now - before)
