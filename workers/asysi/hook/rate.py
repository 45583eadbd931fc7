"""The sampling rate: the share of rows the host keeps so that the slowest consumer keeps up. Pure.

The rate is the consumers' throughput over the offered rows, times a factor that depends only on the lag:

    rate = pace / offered × push(lag),   push(lag) = max(0, 2 - 2.5·lag)

A consumer that keeps up has no lag, and its pace equals its input: a push of 2 makes the rate grow. One
that cannot keep up is always busy, its pace is its capacity, and the lag settles where the push is 1, at
0.4: enough queued work to bridge a checkpoint, enough free space to bridge a restart.

The lag is the time the newest packet will wait, relative to the time it stays in the ring. The share of
unread chunks is equivalent only for a steady stream: after a change of the rate, the packets in a ring differ
in size, and fewer rows do not mean fewer packets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

SMOOTHING_SECONDS = 2.0
"""Time constant of the moving averages."""
GRACE_SECONDS = 15.0
"""How long the rate stays sustainable for a consumer that is gone, so that it does not lose rows."""
_BALANCE = 0.4
"""Lag at which the push is 1."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the rate, from the spec."""

    most: float
    least: float


@dataclass(frozen=True, slots=True)
class Queue:
    """Activity of one consumer on one shard during an interval."""

    rows: float
    """Rows consumed."""
    unread: float
    """Rows still unread of those present at the start; rows added by a short burst do not count."""
    turnover: float
    """How many times the whole shard was overwritten: packets published over depth."""


@dataclass(frozen=True, slots=True)
class ConsumerInterval:
    """Activity of one consumer during an interval."""

    queues: Sequence[Queue]
    """One per shard."""
    peak: float = 0.0
    """Largest unread share of a shard's depth, 0 to 1."""
    away: float = 0.0
    """For how many seconds it has been gone; 0 if it is attached, infinite if it will not return."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Moving averages of one queue."""

    pace: float
    """Rows consumed per second."""
    turnover: float
    """How many times per second the whole shard is overwritten."""


@dataclass(frozen=True, slots=True)
class RateState:
    """State of the controller."""

    rate: float
    offered: float | None = None
    """Rows per second that the host could have kept; None before any row was offered."""
    flows: Mapping[str, Sequence[Flow]] = field(default_factory=dict)
    """By consumer, then by shard; those of a consumer that is gone are kept until it is back."""


def push(lag: float) -> float:
    """Return the factor applied to the pace: 2 without lag, 1 at 0.4, 0 from 0.8."""
    return max(0.0, 2.0 - lag / _BALANCE)


def lag_of(consumer: ConsumerInterval, flows: Sequence[Flow]) -> float:
    """Return the longest expected wait of the newest packets relative to their time in the ring, >= 0.

    A consumer that came close to being lapped counts regardless of the forecast: a peak of 0.8 counts as a
    lag of 0.4.
    """
    forecasts = [_forecast(queue, flow) for queue, flow in zip(consumer.queues, flows, strict=True)]
    return max(*forecasts, consumer.peak - _BALANCE)


def _forecast(queue: Queue, flow: Flow) -> float:
    if not queue.unread:
        return 0.0
    return queue.unread / flow.pace * flow.turnover if flow.pace else math.inf


def decide(
    pace: RateState, limits: Limits, seconds: float, offered: float, consumers: Mapping[str, ConsumerInterval]
) -> RateState:
    """Return the next state after an interval.

    Args:
        pace: the state before the interval.
        limits: bounds of the rate.
        seconds: length of the interval, > 0. Intervals without offered rows are merged into the next one.
        offered: rows that the host could have kept in it (seen minus dropped), > 0.
        consumers: activity of each consumer during it.
    """
    weight = 1.0 - math.exp(-seconds / SMOOTHING_SECONDS)
    offered = _smooth(pace.offered, offered / seconds, weight)
    flows = dict(pace.flows) | {
        name: _smooth_flows(pace.flows.get(name), consumer, seconds, weight)
        for name, consumer in consumers.items()
        if not consumer.away and not _pauses(consumer)
    }
    bounds = [
        _bearable(pace.rate, offered, flows[name], consumer, seconds)
        for name, consumer in consumers.items()
        if name in flows and consumer.away <= GRACE_SECONDS
    ]
    rate = min(limits.most, max(limits.least, min(bounds, default=pace.rate)))
    return replace(pace, rate=rate, offered=offered, flows=flows)


def _pauses(consumer: ConsumerInterval) -> bool:
    """Return whether it was idle with enough free space, as during a checkpoint; this is not its pace."""
    return consumer.peak < _BALANCE and not any(queue.rows for queue in consumer.queues)


def _bearable(
    rate: float, offered: float, flows: Sequence[Flow], consumer: ConsumerInterval, seconds: float
) -> float:
    """Return the rate that a consumer can sustain."""
    followed = sum(flow.pace for flow in flows) / offered
    if consumer.away:
        return followed
    pushed = followed * push(lag_of(consumer, flows))
    if consumer.peak >= _BALANCE or any(queue.unread for queue in consumer.queues):
        return pushed
    # Idle: its pace is its input, possibly zero, not its capacity.
    return max(pushed, rate * 2 ** (seconds / SMOOTHING_SECONDS))


def _smooth_flows(
    before: Sequence[Flow] | None, consumer: ConsumerInterval, seconds: float, weight: float
) -> list[Flow]:
    now = [Flow(queue.rows / seconds, queue.turnover / seconds) for queue in consumer.queues]
    if before is None:
        return now
    return [
        Flow(_smooth(old.pace, new.pace, weight), _smooth(old.turnover, new.turnover, weight))
        for old, new in zip(before, now, strict=True)
    ]


def _smooth(before: float | None, now: float, weight: float) -> float:
    return now if before is None else before + weight * (now - before)
