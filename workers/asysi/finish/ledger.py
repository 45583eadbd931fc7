"""The ledger: how many rows were seen and what happened to each. Pure: numbers in, equations out."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asysi.bus.accounts import Consumed, Produced, total_consumed, total_produced


@dataclass(frozen=True, slots=True)
class AttemptCounts:
    """Every counter of an attempt, by hook point."""

    capture: Mapping[str, Produced] = field(default_factory=dict)
    hook: Mapping[str, Consumed] = field(default_factory=dict)
    bus: Mapping[str, Produced] = field(default_factory=dict)
    consumers: Mapping[str, Mapping[str, Consumed]] = field(default_factory=dict)
    not_finite: Mapping[str, int] = field(default_factory=dict)
    """Captured rows with NaN or infinite elements; they are on their way like any other row."""
    saturated: Mapping[str, int] = field(default_factory=dict)
    """Values that int8 stored as the end of their channel's range."""
    unpaired: Mapping[str, int] = field(default_factory=dict)
    """Gradient rows without scores, because their activation was missing."""


@dataclass(frozen=True, slots=True)
class Equation:
    """One line of the ledger: both sides in rows."""

    point: str
    hop: str
    claim: str
    left: int
    right: int

    @property
    def difference(self) -> int:
        """Left minus right; 0 when the line balances."""
        return self.left - self.right


@dataclass(frozen=True, slots=True)
class Ledger:
    """The counters of an attempt and the equations they must satisfy."""

    attempt: int
    complete: bool
    """Whether the stream ended normally and every consumer finalised its files."""
    equations: tuple[Equation, ...]
    books: AttemptCounts
    problems: tuple[str, ...] = ()
    """Human-readable problem descriptions."""

    @property
    def balanced(self) -> bool:
        """Whether every equation holds exactly."""
        return all(equation.difference == 0 for equation in self.equations)

    @property
    def passed(self) -> bool:
        """The verdict: balanced and complete."""
        return self.balanced and self.complete

    def unbalanced(self) -> list[Equation]:
        """Return the equations that do not hold."""
        return [equation for equation in self.equations if equation.difference]


def build_ledger(
    books: AttemptCounts, *, attempt: int, complete: bool, problems: Iterable[str] = ()
) -> Ledger:
    """Return the ledger of `books`, with equations for every hook point in any of its counters."""
    return Ledger(attempt, complete, tuple(_equations(books)), books, tuple(problems))


def _equations(books: AttemptCounts) -> Iterator[Equation]:
    for point in points_of(books):
        capture, bus = books.capture.get(point, Produced()), books.bus.get(point, Produced())
        hook = books.hook.get(point, Consumed())
        yield _production(point, "capture", capture)
        yield _consumption(point, "hook", capture.published, hook)
        yield Equation(
            point, "hook → bus", "durable = bus published + bus dropped",
            hook.durable, bus.published + sum(bus.dropped.values()),
        )  # fmt: skip
        yield _production(point, "bus", bus)
        for name in sorted(books.consumers):
            yield _consumption(point, name, bus.published, books.consumers[name].get(point, Consumed()))


def _production(point: str, hop: str, made: Produced) -> Equation:
    accounted = made.published + made.sampled_out + sum(made.dropped.values())
    return Equation(point, hop, "seen = published + sampled out + dropped", made.seen, accounted)


def _consumption(point: str, name: str, published: int, used: Consumed) -> Equation:
    accounted = used.durable + used.lapped + used.rolled_back
    return Equation(point, name, "published = durable + lapped + rolled back", published, accounted)


def points_of(books: AttemptCounts) -> list[str]:
    """Return the hook points in the order of capture, then those that only other counters contain."""
    known: dict[str, None] = dict.fromkeys(books.capture)
    for names in (books.hook, books.bus, *books.consumers.values()):
        known.update(dict.fromkeys(names))
    return list(known)


def sum_counts(parts: Sequence[AttemptCounts]) -> AttemptCounts:
    """Return the sum of the counters of several attempts, per hook point."""

    def made(tables: list[Mapping[str, Produced]]) -> dict[str, Produced]:
        names = dict.fromkeys(name for table in tables for name in table)
        return {name: total_produced(table[name] for table in tables if name in table) for name in names}

    def used(tables: list[Mapping[str, Consumed]]) -> dict[str, Consumed]:
        names = dict.fromkeys(name for table in tables for name in table)
        return {name: total_consumed(table[name] for table in tables if name in table) for name in names}

    consumers = dict.fromkeys(name for books in parts for name in books.consumers)

    def sum_counts(tables: list[Mapping[str, int]]) -> dict[str, int]:
        names = dict.fromkeys(name for table in tables for name in table)
        return {name: sum(table.get(name, 0) for table in tables) for name in names}

    return AttemptCounts(
        made([books.capture for books in parts]),
        used([books.hook for books in parts]),
        made([books.bus for books in parts]),
        {name: used([books.consumers.get(name, {}) for books in parts]) for name in consumers},
        sum_counts([books.not_finite for books in parts]),
        sum_counts([books.saturated for books in parts]),
        sum_counts([books.unpaired for books in parts]),
    )


def counts_from_json(written: Mapping[str, Any]) -> AttemptCounts:
    """Return the counters stored in `ledger.json`.

    Raises:
        KeyError, TypeError, ValueError: `written` does not have the expected format.
    """
    points: list[Mapping[str, Any]] = written["points"]

    def made(row: Mapping[str, Any]) -> Produced:
        dropped = {str(reason): int(count) for reason, count in row["dropped"].items()}
        return Produced(int(row["seen"]), int(row["published"]), int(row["sampledOut"]), dropped)

    def used(row: Mapping[str, Any]) -> Consumed:
        return Consumed(int(row["durable"]), int(row["lapped"]), int(row["rolledBack"]))

    consumers = dict.fromkeys(name for point in points for name in point["consumers"])
    return AttemptCounts(
        {point["path"]: made(point["capture"]) for point in points},
        {point["path"]: used(point["hook"]) for point in points},
        {point["path"]: made(point["bus"]) for point in points},
        {
            name: {
                point["path"]: used(point["consumers"][name])
                for point in points
                if name in point["consumers"]
            }
            for name in consumers
        },
        {point["path"]: int(point.get("notFinite", 0)) for point in points},
        {point["path"]: int(point.get("saturated", 0)) for point in points},
        {point["path"]: int(point.get("unpaired", 0)) for point in points},
    )


def as_json(ledger: Ledger) -> dict[str, Any]:
    """Return the ledger in the format of `ledger.json`: verdict, totals, equations, counters."""
    books = ledger.books
    return {
        "attempt": ledger.attempt,
        "complete": ledger.complete,
        "balanced": ledger.balanced,
        "problems": list(ledger.problems),
        "totals": {
            "capture": produced_json(total_produced(books.capture.values())),
            "hook": consumed_json(total_consumed(books.hook.values())),
            "bus": produced_json(total_produced(books.bus.values())),
            "consumers": {
                name: consumed_json(total_consumed(rows.values()))
                for name, rows in sorted(books.consumers.items())
            },
        },
        "points": [_point_json(point, ledger) for point in points_of(books)],
    }


def _point_json(point: str, ledger: Ledger) -> dict[str, Any]:
    books = ledger.books
    return {
        "path": point,
        "notFinite": books.not_finite.get(point, 0),
        "saturated": books.saturated.get(point, 0),
        "unpaired": books.unpaired.get(point, 0),
        "capture": produced_json(books.capture.get(point, Produced())),
        "hook": consumed_json(books.hook.get(point, Consumed())),
        "bus": produced_json(books.bus.get(point, Produced())),
        "consumers": {
            name: consumed_json(rows.get(point, Consumed())) for name, rows in sorted(books.consumers.items())
        },
        "equations": [
            {
                "hop": line.hop, "claim": line.claim,
                "left": line.left, "right": line.right, "difference": line.difference,
            }
            for line in ledger.equations
            if line.point == point
        ],
    }  # fmt: skip


def produced_json(made: Produced) -> dict[str, Any]:
    """Return the counters of a producer with the field names of /status."""
    return {
        "seen": made.seen,
        "published": made.published,
        "sampledOut": made.sampled_out,
        "dropped": {reason: count for reason, count in made.dropped.items() if count},
    }


def consumed_json(used: Consumed) -> dict[str, Any]:
    """Return the counters of a reader with the field names of /status."""
    return {"durable": used.durable, "lapped": used.lapped, "rolledBack": used.rolled_back}


def finite(number: float) -> float | None:
    """Return `number`, or None if JSON cannot represent it."""
    return number if math.isfinite(number) else None
