"""Totals of the counters of both rings over all hook points."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from asysi.bus.accounts import ConsumerAccounts, StreamAccounts, read_accounts, total_consumed, total_produced
from asysi.bus.mailbox import CaptureWord
from asysi.bus.states import ReaderState
from asysi.bus.stream import StreamControl, shard_of

HOOK = "hook"
"""Name of the capture ring's only reader."""


@dataclass(frozen=True, slots=True)
class ConsumerTotals:
    """Rows of one consumer."""

    consumed: Sequence[int]
    """Rows received, by shard."""
    position: Sequence[int]
    """Rows received or lapped, by shard."""
    durable: int
    lapped: int
    rolled_back: int
    lag: float
    """Largest unread share of a shard's depth, 0 to 1."""
    state: ReaderState


@dataclass(frozen=True, slots=True)
class RingTotals:
    """Rows at one ring."""

    seen: int
    sampled_out: int
    published: Sequence[int]
    """By shard."""
    dropped: Mapping[str, int]
    """By reason; contains only reasons that occurred."""
    heads: Sequence[int]
    """Newest sequence, by shard."""
    depth: int
    """Maximum number of unread packets per shard."""
    generation: int
    """Generation of its producer, from 1; incremented at every restart."""
    consumers: Mapping[str, ConsumerTotals]


@dataclass(frozen=True, slots=True)
class StreamTotals:
    """Rows at both rings."""

    at: float
    """CLOCK_MONOTONIC in seconds."""
    steps: int
    """Steps started by the host."""
    capture: RingTotals
    bus: RingTotals

    @property
    def offered(self) -> int:
        """Rows that the host could have kept: rows seen minus rows of dropped steps."""
        return self.capture.seen - sum(self.capture.dropped.values())


def read_totals(capture: StreamControl, bus: StreamControl) -> StreamTotals:
    """Read both rings' counters. They are not read at the same instant and may differ by a packet."""
    return StreamTotals(
        at=time.monotonic(),
        steps=capture.get(CaptureWord.STEPS),
        capture=_ring(read_accounts(capture)),
        bus=_ring(read_accounts(bus)),
    )


def _ring(accounts: StreamAccounts) -> RingTotals:
    made, shards = total_produced(accounts.produced.values()), len(accounts.heads)
    return RingTotals(
        seen=made.seen,
        sampled_out=made.sampled_out,
        published=_by_shard(shards, ((point, row.published) for point, row in accounts.produced.items())),
        dropped=made.dropped,
        heads=accounts.heads,
        depth=accounts.depth,
        generation=accounts.generation,
        consumers={name: _consumer(consumer, shards) for name, consumer in accounts.consumers.items()},
    )


def _consumer(consumer: ConsumerAccounts, shards: int) -> ConsumerTotals:
    used = total_consumed(consumer.consumed.values())
    given = ((point, rows - consumer.consumed[point].lapped) for point, rows in consumer.position.items())
    return ConsumerTotals(
        consumed=_by_shard(shards, given),
        position=_by_shard(shards, consumer.position.items()),
        durable=used.durable,
        lapped=used.lapped,
        rolled_back=used.rolled_back,
        lag=consumer.lag,
        state=consumer.state,
    )


def _by_shard(shards: int, rows: Iterable[tuple[str, int]]) -> list[int]:
    sums = [0] * shards
    for point, more in rows:
        sums[shard_of(point, shards)] += more
    return sums
