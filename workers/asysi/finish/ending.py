"""The end of an attempt: the ledger, the report and the last words, from what is known."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asysi.contract.runtime import LEDGER_FILE
from asysi.contract.spec import ScanExperiment
from asysi.finish import history, provenance, sample
from asysi.finish.analysis import Analysis
from asysi.finish.ledger import (
    Ledger,
    as_json,
    finite,
    open_ledger,
    produced_json,
    total_consumed,
    total_produced,
)
from asysi.finish.status import Snapshot, complete
from asysi.finish.waiting import Outcome
from asysi.report.data import Figures, ReportData
from asysi.report.words import count

ATTEMPTS_FOLDER = "attempts"
LAST_WORDS = 1536
"""Bytes of the termination message at most."""


def ledger_of(outcome: Outcome, attempt: int) -> Ledger:
    """Balance the books of an attempt, and say in sentences what is wrong with them."""
    snapshot = outcome.snapshot
    ended = complete(snapshot)
    problems = [outcome.gave_up] if outcome.gave_up else []
    if snapshot.bus_state == "attempt_over":
        problems.append("the host died before it had closed its ring: the attempt is over")
    elif not ended and not outcome.gave_up:
        states = ", ".join(f"{name} is {state}" for name, state in snapshot.readers.items())
        problems.append(
            f"the stream did not end as meant: the bus is {snapshot.bus_state}, {states or 'no consumer'}"
        )
    ledger = open_ledger(snapshot.books, attempt=attempt, complete=ended)
    problems += [
        f"{line.point}, {line.hop}: {line.claim} does not hold: {line.left} against {line.right}"
        for line in ledger.unbalanced()[:20]
    ]
    return open_ledger(snapshot.books, attempt=attempt, complete=ended, problems=problems)


def ledger_json(ledger: Ledger, snapshot: Snapshot, output: Path) -> dict[str, Any]:
    """Return `ledger.json`: verdict, totals, what was left out, equations, and the attempts before this
    one.
    """
    host = snapshot.host
    content = as_json(ledger)
    points = content.pop("points")
    return {
        **content,
        "interrupted": host.interrupted,
        "tokens": {"read": host.tokens, "excluded": host.tokens_excluded},
        "steps": {"run": host.steps, "expected": host.steps_total, "dropped": host.steps_dropped},
        "captureErrors": host.capture_errors,
        "earlierAttempts": earlier_attempts(output, ledger.attempt),
        "points": points,
    }


def earlier_attempts(output: Path, attempt: int) -> list[dict[str, Any]]:
    """Return attempt, balanced and totals of the attempts before `attempt`.

    Balanced and totals are null where no ledger is left: that attempt's finish was killed, and its rings
    are gone.
    """
    files = [output / ATTEMPTS_FOLDER / str(number) / LEDGER_FILE for number in range(attempt)]
    found = [sample.read_json(file) for file in files]
    return [
        {"attempt": number, "balanced": one.get("balanced"), "totals": one.get("totals")}
        for number, one in enumerate(found)
    ]


def report_of(
    experiment: ScanExperiment,
    ledger: Ledger,
    *,
    written: Mapping[str, Any],
    outcome: Outcome,
    analysis: Analysis,
    output: Path,
) -> ReportData:
    """Gather everything that the page shows."""
    host = outcome.snapshot.host
    seen = sample.read_json(output / "host" / "seen.json")
    made = total_produced(ledger.books.capture.values())
    timeline = history.timeline(
        history.read_lines(output / "timeline.jsonl"), history.read_lines(output / "events.jsonl")
    )
    missing = list(analysis.missing)
    comparisons = [*sample.by_place(seen), *analysis.comparisons]
    if timeline is None:
        missing.append("The run by the second: the hook wrote no timeline.")
    if not seen:
        missing.append("Seen against kept by length and position: the host left no counts.")
    missing += [
        f"The books of attempt {earlier['attempt']}: its finish was killed before it could write them."
        for earlier in written["earlierAttempts"]
        if earlier["balanced"] is None
    ]
    fvus = [layer.fvu_content for layer in analysis.layers if layer.fvu_content is not None]
    return ReportData(
        name=experiment.metadata.name,
        passed=ledger.passed and not analysis.problems,
        verdict=verdict(ledger, made.seen, interrupted=host.interrupted),
        figures=Figures(
            model=provenance.model_name(experiment.spec.model.uri),
            model_detail=analysis.model,
            tokens_unique=seen.get("unique_tokens"),
            tokens_total=host.tokens,
            hook_share=host.capture_ns / host.forward_ns if host.forward_ns else None,
            rows_seen=made.seen,
            rows_kept=made.published,
            fvu=sum(fvus) / len(fvus) if fvus else None,
        ),
        ledger=written,
        problems=(*ledger.problems, *analysis.problems),
        layers=tuple(analysis.layers),
        timeline=timeline,
        comparisons=tuple(comparisons),
        browser=analysis.browser,
        limits=(
            *provenance.limits(experiment, host, seen, attempt=ledger.attempt),
            *([("Parameters", analysis.parameters)] if analysis.parameters else []),
        ),
        commands=tuple(provenance.commands(experiment, analysis.exports)),
        missing=tuple(missing),
    )


def verdict(ledger: Ledger, rows: int, *, interrupted: bool) -> str:
    """Return the verdict as one sentence."""
    ended = "The run was ended early" if interrupted else "The run is complete"
    if ledger.passed:
        return f"{ended}, and its books balance: all {count(rows)} rows seen are accounted for."
    if ledger.balanced:
        return "The run did not come to its end; what it saw until then is accounted for."
    failing, lines = len(ledger.unbalanced()), len(ledger.equations)
    return f"The books do not balance: {count(failing)} of {count(lines)} equations fail."


def last_words(ledger: Ledger, snapshot: Snapshot, analysis: Analysis | None) -> str:
    """Return the termination message: totals as JSON, at most LAST_WORDS bytes."""
    books = ledger.books
    layers = analysis.layers if analysis else []
    fvus = [layer.fvu_content for layer in layers if layer.fvu_content is not None]
    l0s = [layer.l0 for layer in layers if layer.l0 is not None]
    dead = [layer.dead for layer in layers if layer.dead is not None]
    trained = [point.trained for point in snapshot.points if finite(point.trained) is not None]
    words: dict[str, Any] = {
        "attempt": ledger.attempt,
        "complete": ledger.complete,
        "interrupted": snapshot.host.interrupted,
        "ledger": {"balanced": ledger.balanced, "unbalanced": []},
        "tokens": snapshot.host.tokens,
        "capture": produced_json(total_produced(books.capture.values())),
        "durable": {
            name: total_consumed(rows.values()).durable for name, rows in sorted(books.consumers.items())
        },
        "trained": int(sum(trained)),
        "sae": {"fvu": _mean(fvus), "l0": _mean(l0s), "dead": _mean(dead)},
        "problems": [],
    }
    problems = (*ledger.problems, *(analysis.problems if analysis else ()))
    for key, part, lines in (
        ("unbalanced", words["ledger"], [f"{line.point} {line.hop}" for line in ledger.unbalanced()]),
        ("problems", words, [problem[:300] for problem in problems]),
    ):
        for line in lines:
            part[key].append(line)
            if len(json.dumps(words).encode()) > LAST_WORDS:
                part[key].pop()
                break
    return json.dumps(words)


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
