"""The books of both rings at one moment. A row is one token at one hook point."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asysi.bus.mailbox import CaptureWord
from asysi.bus.states import DropReason, ReaderState
from asysi.bus.stream import shard_of

if TYPE_CHECKING:
    from asysi_ring import Control

HOOK = "hook"
"""Name of the capture ring's one reader."""

Accounts = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ConsumerBooks:
    """Rows of one consumer."""

    consumed: Sequence[int]
    """Rows that it was given, by shard."""
    position: Sequence[int]
    """Rows that it was given or lapped, by shard."""
    durable: int
    lapped: int
    rolled_back: int
    lag: float
    """Largest share of a shard's depth that is unread, 0 to 1."""
    state: ReaderState


@dataclass(frozen=True, slots=True)
class RingBooks:
    """Rows at one ring, all hook points together."""

    seen: int
    sampled_out: int
    published: Sequence[int]
    """By shard."""
    dropped: Mapping[str, int]
    """By reason; only reasons that occurred."""
    heads: Sequence[int]
    """Newest sequence, by shard."""
    depth: int
    """Packets of a shard that can be unread at once."""
    generation: int
    """Of its producer, from 1: one more for every restart."""
    consumers: Mapping[str, ConsumerBooks]


@dataclass(frozen=True, slots=True)
class Books:
    """What both control files say."""

    at: float
    """CLOCK_MONOTONIC in seconds."""
    steps: int
    """Steps that the host has begun."""
    capture: RingBooks
    bus: RingBooks

    @property
    def offered(self) -> int:
        """Rows that the host could have kept: those seen, less those of dropped steps."""
        return self.capture.seen - sum(self.capture.dropped.values())


def read_books(capture: "Control", bus: "Control") -> Books:
    """Read both control files. The numbers are a moment apart: two books may differ by a packet too many."""
    return Books(
        at=time.monotonic(), steps=capture.get(CaptureWord.STEPS), capture=_ring(capture), bus=_ring(bus)
    )


def _ring(control: "Control") -> RingBooks:
    consumed = {name: control.consumed(name) for name in control.readers()}  # first: nobody gets ahead
    produced: Accounts = control.produced()
    geometry = control.geometry()
    count = int(geometry["shards"])
    shards = [shard_of(point, count) for point in control.accounts()]
    return RingBooks(
        seen=_total(produced, "seen"),
        sampled_out=_total(produced, "sampled_out"),
        published=_by_shard(shards, count, (made["published"] for made in produced)),
        dropped=_drops(produced),
        heads=control.heads(),
        depth=int(geometry["depth"]),
        generation=int(geometry["generation"]),
        consumers={
            name: ConsumerBooks(
                consumed=_by_shard(shards, count, (row["position"] - row["lapped"] for row in rows)),
                position=_by_shard(shards, count, (row["position"] for row in rows)),
                durable=_total(rows, "durable"),
                lapped=_total(rows, "lapped"),
                rolled_back=_total(rows, "rolled_back"),
                lag=control.lag(name),
                state=ReaderState(control.reader_state(name)),
            )
            for name, rows in consumed.items()
        },
    )


def _by_shard(shards: Sequence[int], count: int, rows: Iterable[int]) -> list[int]:
    sums = [0] * count
    for shard, more in zip(shards, rows, strict=False):  # a hook point may join in between
        sums[shard] += more
    return sums


def _total(accounts: Accounts, key: str) -> int:
    return sum(int(account[key]) for account in accounts)


def _drops(accounts: Accounts) -> dict[str, int]:
    sums = {
        reason.word: sum(int(account["dropped"][reason]) for account in accounts) for reason in DropReason
    }
    return {word: rows for word, rows in sums.items() if rows}
