"""The sampling rate: the share of rows the host keeps so that the slowest consumer keeps up. Pure.

The rate is a consumer's capacity over the offered rows, times a factor that depends on what is queued:

    rate = capacity / offered × factor,   factor = correction(wait, target) × relief(crowding)

*Capacity* is a moving average of the rows that a consumer takes per second while it has work. Where it has
none, it takes what it is given: that only shows a capacity of at least as much. Work is a backlog for
`TARGET_SECONDS`, which bridges a checkpoint, or two fifths of a small ring. With less the factor grows to
1.4, with that or more it is 1: a longer backlog, after a restart for instance, is no reason to keep less,
because the consumer is as fast as ever. Only a ring that runs full lowers it, from two fifths of its depth
slightly and from three fifths steeply, to a quarter. So with a constant consumer the rate is constant, and
one that has been away finds the same rate again.

*Crowding* is the time the newest packet will wait, relative to the time it stays in the ring. The share of
unread chunks is equivalent only for a steady stream: after a change of the rate, the packets in a ring
differ in size, and fewer rows do not mean fewer packets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

SMOOTHING_SECONDS = 6.0
"""Time constant of the moving averages."""
SETTLING_SECONDS = 2.5
"""Time constant with which a backlog that is too short is filled up."""
DOUBLING_SECONDS = 2.0
"""In which the rate doubles while a consumer has nothing to do."""
TARGET_SECONDS = 1.0
"""Work that should be queued for a consumer."""
GRACE_SECONDS = 15.0
"""How long the rate stays sustainable for a consumer that is gone, so that it does not lose rows."""
_BALANCE, _CROWDED = 0.4, 0.6
"""Crowding from which the factor falls below 1, and from which it falls steeply."""
_DRAINING, _LEAST_RELIEF = 0.9, 0.25
"""The factor at a crowding of _CROWDED, and of 1."""


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
    """Rows consumed per second while there is work; the least that it can be before there was any."""
    turnover: float
    """How many times per second the whole shard is overwritten."""
    measured: float = 0.0
    """Seconds of work that the pace is the average of, at most a few SMOOTHING_SECONDS count."""


@dataclass(frozen=True, slots=True)
class RateState:
    """State of the controller."""

    rate: float
    offered: float | None = None
    """Rows per second that the host could have kept; None before any row was offered."""
    measured: float = 0.0
    """Seconds that `offered` is the average of."""
    flows: Mapping[str, Sequence[Flow]] = field(default_factory=dict)
    """By consumer, then by shard; those of a consumer that is gone are kept until it is back."""


def correction(wait: float, target: float) -> float:
    """Return the factor for a backlog of `wait` seconds: up to 1.4 if it is shorter than `target`."""
    return 1.0 + max(0.0, min(target - wait, TARGET_SECONDS)) / SETTLING_SECONDS


def relief(crowding: float) -> float:
    """Return the factor for a ring that runs full: 1 up to 0.4, 0.9 at 0.6, a quarter from 1.0."""
    gentle = 1.0 - (1.0 - _DRAINING) * _clamp((crowding - _BALANCE) / (_CROWDED - _BALANCE))
    steep = (_DRAINING - _LEAST_RELIEF) * _clamp((crowding - _CROWDED) / (1.0 - _CROWDED))
    return gentle - steep


def wait_of(consumer: ConsumerInterval, flows: Sequence[Flow]) -> float:
    """Return the longest time, in seconds, that the newest packets of a shard will wait."""
    return max(map(_wait, consumer.queues, flows))


def crowding_of(consumer: ConsumerInterval, flows: Sequence[Flow]) -> float:
    """Return the longest expected wait of the newest packets relative to their time in the ring, >= 0.

    A consumer that came close to being lapped counts regardless of the forecast: its peak counts as it is.
    """
    forecasts = [
        _wait(queue, flow) * flow.turnover if flow.turnover else 0.0
        for queue, flow in zip(consumer.queues, flows, strict=True)
    ]
    return max(*forecasts, consumer.peak)


def _wait(queue: Queue, flow: Flow) -> float:
    if not queue.unread:
        return 0.0
    return queue.unread / flow.pace if flow.pace else math.inf


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
    offered = _smooth(pace.offered, offered / seconds, _weight(seconds, pace.measured))
    flows = dict(pace.flows) | {
        name: _flows_after(pace.flows.get(name), consumer, seconds)
        for name, consumer in consumers.items()
        if not consumer.away and (name in pace.flows or _has_begun(consumer))
    }
    bounds = [
        _sustainable(pace.rate, offered, flows[name], consumer, seconds)
        for name, consumer in consumers.items()
        if name in flows and consumer.away <= GRACE_SECONDS
    ]
    rate = min(limits.most, max(limits.least, min(bounds, default=pace.rate)))
    return replace(pace, rate=rate, offered=offered, measured=pace.measured + seconds, flows=flows)


def _has_begun(consumer: ConsumerInterval) -> bool:
    """Return whether it has read anything, or so much is queued that this is all that is known of it."""
    return consumer.peak >= _BALANCE or any(queue.rows for queue in consumer.queues)


def _sustainable(
    rate: float, offered: float, flows: Sequence[Flow], consumer: ConsumerInterval, seconds: float
) -> float:
    """Return the rate that a consumer can sustain."""
    followed = sum(flow.pace for flow in flows) / offered
    crowding = crowding_of(consumer, flows)
    if consumer.away:
        return followed * relief(crowding)
    turnover = max(flow.turnover for flow in flows)
    target = min(TARGET_SECONDS, _BALANCE / turnover) if turnover else TARGET_SECONDS
    sustained = followed * correction(wait_of(consumer, flows), target) * relief(crowding)
    if consumer.peak >= _BALANCE or any(queue.unread for queue in consumer.queues):
        return sustained
    # Idle: what is known is only the least that it can do.
    return max(sustained, rate * 2 ** (seconds / DOUBLING_SECONDS))


def _flows_after(before: Sequence[Flow] | None, consumer: ConsumerInterval, seconds: float) -> list[Flow]:
    """Return the moving averages after an interval."""
    busy = any(queue.unread for queue in consumer.queues)
    now = [Flow(queue.rows / seconds, queue.turnover / seconds, seconds * busy) for queue in consumer.queues]
    if before is None or not any(flow.pace for flow in before):
        return now
    taken, known = sum(flow.pace for flow in now), sum(flow.pace for flow in before)
    measured = before[0].measured
    learns = _weight(seconds, measured) if busy or taken > known else 0.0
    return [
        Flow(
            _smooth(old.pace, new.pace, learns),
            _smooth(old.turnover, new.turnover, _weight(seconds, measured)),
            measured + seconds * busy,
        )
        for old, new in zip(before, now, strict=True)
    ]


def _weight(seconds: float, measured: float) -> float:
    """Return the weight of a new value: that of a plain average at first, then of an exponential one."""
    return max(1.0 - math.exp(-seconds / SMOOTHING_SECONDS), seconds / (measured + seconds))


def _clamp(value: float) -> float:
    return min(1.0, max(0.0, value))


def _smooth(before: float | None, now: float, weight: float) -> float:
    return now if before is None else before + weight * (now - before)
