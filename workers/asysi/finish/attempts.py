"""The attempts of a run, with the counters that the finish of each one wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asysi.bus.accounts import total_produced
from asysi.contract.runtime import ATTEMPTS_FOLDER, HOST_FOLDER, LEDGER_FILE
from asysi.finish.ledger import AttemptCounts, counts_from_json, sum_counts
from asysi.finish.sample import read_json


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is known about an attempt."""

    number: int
    books: AttemptCounts | None
    """None if its finish was killed before it could write them."""
    balanced: bool | None = None
    settled: bool = True
    """Whether its stream was settled when the counters were written; if not, rows may have been in flight."""
    steps: int = 0
    tokens: int = 0
    """Content tokens read by the model."""
    totals: Mapping[str, Any] | None = None
    """As in its `ledger.json`."""


def earlier_attempts(output: Path, attempt: int) -> list[Attempt]:
    """Return the attempts before `attempt` in which the host ran a step or that left counters."""
    begun = read_json(output / HOST_FOLDER / "progress.json").get("attempts")
    found = [_read(output, number) for number in range(attempt)]
    return [one for one in found if one.books or not isinstance(begun, dict) or str(one.number) in begun]


def _read(output: Path, number: int) -> Attempt:
    written = read_json(output / ATTEMPTS_FOLDER / str(number) / LEDGER_FILE)
    try:
        books = counts_from_json(written)
        steps, tokens = int(written["steps"]["run"]), int(written["tokens"]["read"])
    except (KeyError, TypeError, ValueError):
        return Attempt(number, None)
    settled = written.get("settled", True) is not False
    balanced = written.get("balanced") is True
    return Attempt(number, books, balanced, settled, steps, tokens, written.get("totals"))


def total_counts(attempts: Sequence[Attempt]) -> AttemptCounts:
    """Return the sum of the counters of all attempts that left any."""
    return sum_counts([one.books for one in attempts if one.books is not None])


def incomplete_attempts(attempts: Sequence[Attempt]) -> list[int]:
    """Return the attempts whose counters are missing or incomplete."""
    return [one.number for one in attempts if one.books is None or not (one.balanced or one.settled)]


def rows_known(attempts: Sequence[Attempt]) -> int:
    """Return the rows seen in the attempts with complete counters."""
    gone = incomplete_attempts(attempts)
    return total_produced(
        total_counts([one for one in attempts if one.number not in gone]).capture.values()
    ).seen
