"""The sampling rate: how much the host keeps so that the slowest consumer can follow. Pure.

The rate is the consumers' pace over what is offered, times a push that depends on the lag alone:

    rate = pace / offered × push(lag),   push(lag) = max(0, 2 - 2.5·lag)

A consumer that follows easily has no lag, and its pace is what it is given: the push of 2 makes the rate
grow. One that cannot follow is always busy, its pace is its capacity, and the lag settles where the push is
1, at 0.4: enough work in stock to bridge a checkpoint, enough room left to bridge a restart.

The lag is how long the newest packet will wait, as a share of the time that it stands in the ring. The share
of chunks that are unread says the same of a steady stream only: after a change of the rate the packets in a
ring differ in size, and fewer rows are then not fewer packets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

SMOOTHING_SECONDS = 2.0
"""Time constant of the moving averages."""
GRACE_SECONDS = 15.0
"""So long the rate stays bearable for a consumer that is gone: its ring then lasts until it is back."""
_BALANCE = 0.4
"""Lag at which the push is 1."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the rate, from the spec."""

    most: float
    least: float


@dataclass(frozen=True, slots=True)
class Queue:
    """What happened in one shard before one consumer, in an interval."""

    rows: float
    """Rows consumed."""
    unread: float
    """Rows left of those that lay there when it began: what a burst adds for a moment is not a queue."""
    turnover: float
    """How often the shard was written from end to end: packets published over depth."""


@dataclass(frozen=True, slots=True)
class ConsumerInterval:
    """What one consumer did in an interval."""

    queues: Sequence[Queue]
    """By shard."""
    peak: float = 0.0
    """Largest share of a shard's depth that was unread, 0 to 1."""
    away: float = 0.0
    """Seconds that it has been gone; 0 when it is there, infinite when it will not come."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Moving averages of one queue."""

    pace: float
    """Rows consumed a second."""
    turnover: float
    """Times a second that the shard is written from end to end."""


@dataclass(frozen=True, slots=True)
class RateState:
    """What the controller remembers."""

    rate: float
    offered: float | None = None
    """Rows a second that the host could have kept; None before anything was offered."""
    flows: Mapping[str, Sequence[Flow]] = field(default_factory=dict)
    """By consumer, by shard; a consumer that is gone keeps its own until it is back."""


def push(lag: float) -> float:
    """Return the factor on the pace: 2 without lag, 1 at 0.4, 0 from 0.8 on."""
    return max(0.0, 2.0 - lag / _BALANCE)


def lag_of(consumer: ConsumerInterval, flows: Sequence[Flow]) -> float:
    """Return the longest wait of a newest packet over its time in the ring, >= 0.

    What comes near the end of its ring, for a burst or for a wrong guess, counts whatever the forecast: a
    peak of 0.8 like a lag of 0.4.
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
        pace: the state before it.
        limits: bounds of the rate.
        seconds: length of the interval, > 0. Intervals in which nothing was offered belong to the next one.
        offered: rows that the host could have kept in it (seen less dropped), > 0.
        consumers: what each consumer did in it.
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
    """Return whether it did nothing, with room enough left: a checkpoint, say. That is not its pace."""
    return consumer.peak < _BALANCE and not any(queue.rows for queue in consumer.queues)


def _bearable(
    rate: float, offered: float, flows: Sequence[Flow], consumer: ConsumerInterval, seconds: float
) -> float:
    """Return the rate that a consumer can follow."""
    followed = sum(flow.pace for flow in flows) / offered
    if consumer.away:
        return followed
    pushed = followed * push(lag_of(consumer, flows))
    if consumer.peak >= _BALANCE or any(queue.unread for queue in consumer.queues):
        return pushed
    # Nothing to do: its pace says what it was given, perhaps nothing at all, not what it can do.
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
