"""The books of both rings at one moment, summed over hook points. A row is one token at one hook point."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asysi.bus.mailbox import DROP_REASONS, CaptureWord

if TYPE_CHECKING:
    from asysi_ring import Control

HOOK = "hook"
"""Name of the capture ring's one reader."""


@dataclass(frozen=True, slots=True)
class ConsumerBooks:
    """Rows of one consumer."""

    consumed: int
    """Rows that it was given: its position less what it was lapped."""
    durable: int
    lapped: int
    rolled_back: int
    lag: float
    """Largest share of a shard's depth that is unread, 0 to 1."""
    state: str
    """As `Control.reader_state` says it."""


@dataclass(frozen=True, slots=True)
class Books:
    """What both control files say."""

    at: float
    """CLOCK_MONOTONIC in seconds."""
    steps: int
    seen: int
    sampled_out: int
    published: int
    dropped: Mapping[str, int]
    """Rows dropped at the capture ring, by reason."""
    bus_published: int
    bus_dropped: Mapping[str, int]
    """Rows dropped at the bus, by reason."""
    hook: ConsumerBooks
    consumers: Mapping[str, ConsumerBooks]
    """Consumers of the bus by name."""
    generation: int
    """Of the bus's producer, from 1: one more for every restart of the hook worker."""

    @property
    def offered(self) -> int:
        """Rows that the host could have kept: those seen, less those of dropped steps."""
        return self.seen - sum(self.dropped.values())


def read_books(capture: "Control", bus: "Control") -> Books:
    """Read both control files. The numbers are a moment apart: two books may differ by a packet too many."""
    offered, carried = capture.produced(), bus.produced()
    return Books(
        at=time.monotonic(),
        steps=capture.get(CaptureWord.STEPS),
        seen=_total(offered, "seen"),
        sampled_out=_total(offered, "sampled_out"),
        published=_total(offered, "published"),
        dropped=_drops(offered),
        bus_published=_total(carried, "published"),
        bus_dropped=_drops(carried),
        hook=_consumer(capture, HOOK),
        consumers={name: _consumer(bus, name) for name in bus.readers()},
        generation=int(bus.geometry()["generation"]),
    )


def _consumer(control: "Control", name: str) -> ConsumerBooks:
    accounts = control.consumed(name)
    lapped = _total(accounts, "lapped")
    return ConsumerBooks(
        consumed=_total(accounts, "position") - lapped,
        durable=_total(accounts, "durable"),
        lapped=lapped,
        rolled_back=_total(accounts, "rolled_back"),
        lag=control.lag(name),
        state=control.reader_state(name),
    )


def _total(accounts: Iterable[Mapping[str, Any]], key: str) -> int:
    return sum(int(account[key]) for account in accounts)


def _drops(accounts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    sums = [
        sum(int(account["dropped"][number]) for account in accounts) for number in range(len(DROP_REASONS))
    ]
    return {reason: rows for reason, rows in zip(DROP_REASONS, sums, strict=True) if rows}
