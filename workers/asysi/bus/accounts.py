"""A snapshot of a stream's counters. A row is one token at one hook point."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from asysi.bus.states import DropReason, ProducerState, ReaderState


class StreamCounters(Protocol):
    """The raw counters of a stream's transport; each list is indexed by account."""

    def accounts(self) -> list[str]: ...
    def readers(self) -> list[str]: ...
    def geometry(self) -> dict[str, int | str]: ...
    def heads(self) -> list[int]: ...
    def produced(self) -> list[dict[str, object]]: ...
    def consumed(self, reader: str, /) -> list[dict[str, int]]: ...
    def gauges(self, reader: str, /) -> list[list[float]]: ...
    def cursors(self, reader: str, /) -> list[int]: ...
    def lag(self, reader: str, /) -> float: ...
    def reader_state(self, reader: str, /) -> str: ...
    def writer_state(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Produced:
    """Rows of one hook point at the producer of a stream."""

    seen: int = 0
    published: int = 0
    sampled_out: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows dropped, by reason; contains only reasons that occurred."""


@dataclass(frozen=True, slots=True)
class Consumed:
    """Rows of one hook point at one reader of a stream."""

    durable: int = 0
    """Rows whose effect was persisted or passed on."""
    lapped: int = 0
    """Rows overwritten before they were read."""
    rolled_back: int = 0
    """Rows consumed by a killed reader after its last checkpoint."""


@dataclass(frozen=True, slots=True)
class ConsumerAccounts:
    """Counters of one reader."""

    state: ReaderState
    lag: float
    """Largest unread share of a shard's depth, 0..1."""
    consumed: Mapping[str, Consumed]
    """By hook point."""
    position: Mapping[str, int]
    """Rows received or lapped, by hook point."""
    cursors: Sequence[int]
    """Sequence of the last packet taken, by shard."""
    gauges: Mapping[str, Sequence[float]]
    """Its gauges, by hook point."""


@dataclass(frozen=True, slots=True)
class StreamAccounts:
    """Counters of one stream."""

    state: ProducerState
    generation: int
    """Number of producers so far; incremented at every restart."""
    produced: Mapping[str, Produced]
    """By hook point, in order of registration."""
    packets: Mapping[str, int]
    """Packets published, by hook point."""
    heads: Sequence[int]
    """Newest sequence, by shard."""
    depth: int
    """Maximum number of unread packets per shard."""
    consumers: Mapping[str, ConsumerAccounts]


def read_accounts(counters: StreamCounters) -> StreamAccounts:
    """Read all counters, not atomically, but so that no reader is ahead of the producer.

    While the stream is active, its equations may be off by a packet.
    """
    points = counters.accounts()  # consumers before the producer
    consumers = {
        name: _consumer(counters, name, points) for name in counters.readers()
    }  # before the producer
    geometry = counters.geometry()
    produced = dict(zip(counters.accounts(), counters.produced(), strict=False))
    return StreamAccounts(
        state=ProducerState(counters.writer_state()),
        generation=int(geometry["generation"]),
        produced={point: _produced(row) for point, row in produced.items()},
        packets={point: _count(row["packets"]) for point, row in produced.items()},
        heads=counters.heads(),
        depth=int(geometry["depth"]),
        consumers=consumers,
    )


def _consumer(counters: StreamCounters, name: str, points: Sequence[str]) -> ConsumerAccounts:
    rows = dict(zip(points, counters.consumed(name), strict=False))  # a hook point may be added in between
    return ConsumerAccounts(
        state=ReaderState(counters.reader_state(name)),
        lag=counters.lag(name),
        consumed={
            point: Consumed(row["durable"], row["lapped"], row["rolled_back"]) for point, row in rows.items()
        },
        position={point: row["position"] for point, row in rows.items()},
        cursors=counters.cursors(name),
        gauges=dict(zip(points, counters.gauges(name), strict=False)),
    )


def _produced(row: Mapping[str, Any]) -> Produced:
    dropped = {reason.word: int(row["dropped"][reason]) for reason in DropReason if row["dropped"][reason]}
    return Produced(int(row["seen"]), int(row["published"]), int(row["sampled_out"]), dropped)


def _count(value: object) -> int:
    assert isinstance(value, int)
    return value


def total_produced(rows: Iterable[Produced]) -> Produced:
    """Return the sum over hook points, with only the reasons that occurred."""
    listed = list(rows)
    dropped: dict[str, int] = {}
    for row in listed:
        for reason, count in row.dropped.items():
            if count:
                dropped[reason] = dropped.get(reason, 0) + count
    return Produced(
        sum(row.seen for row in listed),
        sum(row.published for row in listed),
        sum(row.sampled_out for row in listed),
        dropped,
    )


def total_consumed(rows: Iterable[Consumed]) -> Consumed:
    """Return the sum over hook points."""
    listed = list(rows)
    return Consumed(
        sum(row.durable for row in listed),
        sum(row.lapped for row in listed),
        sum(row.rolled_back for row in listed),
    )
