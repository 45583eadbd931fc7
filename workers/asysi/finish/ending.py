"""Builds the ledger, the verdict, the report and the termination message of an attempt."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asysi.bus.accounts import total_consumed, total_produced
from asysi.bus.states import ProducerState
from asysi.contract.spec import ScanExperiment
from asysi.contract.telemetry import Captured, Quality, Summary, Verdict
from asysi.finish import facts, history, provenance, sample, verdict
from asysi.finish.analysis import RunAnalysis
from asysi.finish.attempts import Attempt, earlier_attempts, incomplete_attempts, rows_known, total_counts
from asysi.finish.facts import Records
from asysi.finish.ledger import (
    AttemptCounts,
    Ledger,
    as_json,
    build_ledger,
    consumed_json,
    finite,
    produced_json,
)
from asysi.finish.status import Snapshot, complete, settled
from asysi.finish.verdict import DataVerdict, Facts, Level, VerdictCondition
from asysi.finish.waiting import WaitResult
from asysi.report.data import Figures, Finding, HookPointRow, ReportData
from asysi.report.words import count, percent

LAST_WORDS = 1536
"""Maximum size of the termination message in bytes."""
CONDITION_MESSAGE = 360
"""Maximum length of a condition's message in it; `verdict.json` has the full message."""


def ledger_of(outcome: WaitResult, attempt: int) -> Ledger:
    """Balance the ledger of an attempt and describe its problems."""
    snapshot = outcome.snapshot
    ended = complete(snapshot)
    problems = [outcome.gave_up] if outcome.gave_up else []
    if snapshot.bus_state is ProducerState.ATTEMPT_OVER:
        problems.append("the host died before closing its ring: the attempt is over")
    elif not ended and not outcome.gave_up:
        states = ", ".join(f"{name} is {state}" for name, state in snapshot.readers.items())
        problems.append(
            f"the stream did not end normally: the bus is {snapshot.bus_state}, {states or 'no consumer'}"
        )
    ledger = build_ledger(snapshot.books, attempt=attempt, complete=ended)
    problems += [
        f"{line.point}, {line.hop}: {line.claim} does not hold: {line.left} against {line.right}"
        for line in ledger.unbalanced()[:20]
    ]
    return build_ledger(snapshot.books, attempt=attempt, complete=ended, problems=problems)


@dataclass(frozen=True, slots=True)
class RunResult:
    """The ledger, facts and verdicts at the end of a run."""

    ledger: Ledger
    """Of the last attempt."""
    attempts: tuple[Attempt, ...]
    """Every attempt in which the model ran, including the last."""
    facts: Facts
    balanced: VerdictCondition
    """LedgerBalanced."""
    data: DataVerdict
    interrupted: bool

    @property
    def level(self) -> Level:
        """The worse of both verdicts."""
        return verdict.overall(self.balanced, self.data)

    @property
    def books(self) -> AttemptCounts:
        """Sum of the counters of all attempts that left any."""
        return total_counts(self.attempts)

    @property
    def tokens(self) -> int:
        """Content tokens read by the model in all attempts with known counters."""
        return sum(one.tokens for one in self.attempts)

    @property
    def sentence(self) -> str:
        """Both verdicts as a sentence."""
        return verdict.sentence(self.balanced, self.data, interrupted=self.interrupted)


def evaluate_run(
    experiment: ScanExperiment,
    ledger: Ledger,
    outcome: WaitResult,
    *,
    analysis: RunAnalysis,
    records: Records,
    output: Path,
) -> RunResult:
    """Judge the run."""
    host = outcome.snapshot.host
    rest = settled(outcome.snapshot)
    last = Attempt(ledger.attempt, ledger.books, ledger.balanced, rest, host.steps, host.tokens)
    attempts = (*earlier_attempts(output, ledger.attempt), last)
    found = facts.gather(
        experiment,
        total_counts(attempts),
        records,
        analysis,
        steps=sum(one.steps for one in attempts),
        interrupted=host.interrupted,
    )
    failing = [one.number for one in attempts if one.balanced is False and one.settled]
    balanced = verdict.ledger_condition(
        balanced=not failing and ledger.balanced,
        complete=ledger.complete,
        rows=rows_known(attempts),
        attempts=sum(1 for one in attempts if one.books is None or one.steps),
        without=incomplete_attempts(attempts[:-1]),
        failing=_failing(ledger, failing),
    )
    return RunResult(ledger, attempts, found, balanced, verdict.judge(found), host.interrupted)


def _failing(ledger: Ledger, attempts: list[int]) -> str:
    unbalanced = len(ledger.unbalanced())
    if unbalanced:
        lines = len(ledger.equations)
        return f"The ledger does not balance: {count(unbalanced)} of {count(lines)} equations fail."
    return f"The ledger of attempt {', '.join(map(str, attempts))} does not balance."


def ledger_json(ledger: Ledger, snapshot: Snapshot, output: Path) -> dict[str, Any]:
    """Return `ledger.json`: verdict, totals, exclusions, equations and the earlier attempts."""
    host = snapshot.host
    content = as_json(ledger)
    points = content.pop("points")
    earlier = earlier_attempts(output, ledger.attempt)
    return {
        **content,
        "settled": settled(snapshot),
        "interrupted": host.interrupted,
        "tokens": {"read": host.tokens, "excluded": host.tokens_excluded},
        "steps": {"run": host.steps, "expected": host.steps_total, "dropped": host.steps_dropped},
        "captureErrors": host.capture_errors,
        "earlierAttempts": [
            {"attempt": one.number, "balanced": one.balanced, "totals": one.totals} for one in earlier
        ],
        "allAttempts": _totals(total_with_current(earlier, ledger)),
        "points": points,
    }


def total_with_current(earlier: list[Attempt], ledger: Ledger) -> AttemptCounts:
    """Return the sum of the counters of all attempts, including this one."""
    return total_counts([*earlier, Attempt(ledger.attempt, ledger.books)])


def _totals(books: AttemptCounts) -> dict[str, Any]:
    return {
        "capture": produced_json(total_produced(books.capture.values())),
        "bus": produced_json(total_produced(books.bus.values())),
        "consumers": {
            name: consumed_json(total_consumed(rows.values()))
            for name, rows in sorted({"hook": books.hook, **books.consumers}.items())
        },
    }


def verdict_json(ending: RunResult) -> dict[str, Any]:
    """Return `verdict.json`: level, both conditions, findings and the measurements per hook point."""
    return {
        "attempt": ending.ledger.attempt,
        "level": ending.level.word,
        "sentence": ending.sentence,
        "conditions": conditions_json(ending),
        "findings": [
            {"level": one.level.word, "reason": one.reason, "text": one.text, "points": list(one.points)}
            for one in ending.data.findings
        ],
        "documents": {"read": ending.facts.documents, "truncated": ending.facts.truncated},
        "points": [_point_json(point) for point in ending.facts.points],
    }


def conditions_json(ending: RunResult) -> dict[str, dict[str, str]]:
    """Return the conditions that the operator copies to the status, by type."""
    return {
        kind: {"status": one.status, "reason": one.reason, "message": one.message}
        for kind, one in (("LedgerBalanced", ending.balanced), ("DataSound", ending.data.condition))
    }


def _point_json(point: verdict.PointFacts) -> dict[str, Any]:
    return {
        "path": point.path,
        "seen": point.seen,
        "kept": point.kept,
        "lapped": {name: round(share, 6) for name, share in point.lapped.items()},
        "notFinite": point.not_finite,
        "saturated": point.saturated,
        "unpaired": point.unpaired,
        "outlier": None
        if point.outlier is None
        else {
            "by": point.outlier.by, "name": point.outlier.name,
            "share": round(point.outlier.share, 6), "rows": round(point.outlier.rows, 6),
        },
        "saes": [
            {
                "trainer": sae.trainer, "exported": sae.exported, "finite": sae.finite,
                "given": sae.given, "trained": sae.trained, "why": sae.why or None,
                "fvu": _known(sae.fvu), "fvuWithoutOutlier": _known(sae.fvu_without),
                "compared": None
                if sae.agreement is None
                else {
                    "rows": sae.agreement.rows, "trainer": _known(sae.agreement.trainer),
                    "report": _known(sae.agreement.report),
                },
            }
            for sae in point.saes
        ],
    }  # fmt: skip


def _known(number: float | None) -> float | None:
    return None if number is None else finite(number)


def report_of(
    experiment: ScanExperiment,
    ending: RunResult,
    *,
    written: Mapping[str, Any],
    outcome: WaitResult,
    analysis: RunAnalysis,
    records: Records,
    output: Path,
) -> ReportData:
    """Gather everything that the page shows."""
    host, seen = outcome.snapshot.host, records.seen
    made = total_produced(ending.books.capture.values())
    timeline = history.timeline(
        history.read_lines(output / "timeline.jsonl"), history.read_lines(output / "events.jsonl")
    )
    missing = list(analysis.missing)
    comparisons = [*sample.by_place(seen), *analysis.comparisons]
    if timeline is None:
        missing.append("The run by the second: the hook wrote no timeline.")
    if not seen:
        missing.append("Seen against kept by length and position: the host wrote no counts.")
    fvus = [layer.fvu_content for layer in analysis.layers if layer.fvu_content is not None]
    return ReportData(
        name=experiment.metadata.name,
        level=ending.level.word,
        verdict=ending.sentence,
        figures=Figures(
            model=provenance.model_name(experiment.spec.model.uri),
            model_detail=analysis.model,
            tokens_unique=seen.get("unique_tokens"),
            tokens_total=ending.tokens,
            hook_share=host.capture_ns / host.forward_ns if host.forward_ns else None,
            rows_seen=made.seen,
            rows_kept=made.published,
            fvu=sum(fvus) / len(fvus) if fvus else None,
            fvu_note=_fvu_note(ending.facts),
        ),
        ledger=written,
        problems=ending.ledger.problems,
        findings=tuple(Finding(one.level.word, one.text) for one in ending.data.findings),
        points=tuple(_hook_point(point) for point in ending.facts.points),
        layers=tuple(analysis.layers),
        timeline=timeline,
        curves=tuple(history.curves(records.training)),
        epochs=history.epochs(records.epochs),
        comparisons=tuple(comparisons),
        browser=analysis.browser,
        limits=(
            *provenance.limits(
                experiment,
                host,
                seen,
                attempt=ending.ledger.attempt,
                tokens=ending.tokens,
                progress=records.progress,
            ),
            *([("Read again", provenance.read_again(analysis.extent))] if analysis.extent else []),
            *([("Parameters", analysis.parameters)] if analysis.parameters else []),
        ),
        commands=tuple(provenance.commands(experiment, analysis.exports)),
        missing=tuple(missing),
    )


def _fvu_note(found: Facts) -> str:
    """Return the note beside the mean FVU: its value without outlier rows, or that some SAEs have no FVU."""
    every = [sae for point in found.points for sae in point.saes]
    known = sum(sae.fvu is not None for sae in every)
    pairs = [
        (point.outlier, sae.fvu_without)
        for point in found.points
        if point.outlier is not None and point.outlier.share > verdict.OUTLIERS.limit
        for sae in point.saes
        if sae.fvu_without is not None
    ]
    if not pairs:
        return (
            f"held out, mean of {known} of {len(every)}: the rest has none" if 0 < known < len(every) else ""
        )
    first = pairs[0][0]
    name = first.name if len({outlier.name for outlier, _ in pairs}) == 1 else "outliers"
    where = "" if len(every) == len(pairs) else f" at {len(pairs)} of {len(every)}"
    return f"{percent(sum(without for _, without in pairs) / len(pairs))} without {name}{where}"


def _hook_point(point: verdict.PointFacts) -> HookPointRow:
    sae = next((one for one in point.saes if one.agreement is not None), None)
    agreement = None if sae is None else sae.agreement
    return HookPointRow(
        path=point.path,
        seen=point.seen,
        kept=point.kept,
        lapped=tuple(point.lapped.items()),
        not_finite=point.not_finite,
        outlier="" if point.outlier is None or point.outlier.by == "none" else point.outlier.name,
        outlier_share=None if point.outlier is None else point.outlier.share,
        outlier_rows=None if point.outlier is None else point.outlier.rows,
        sae=_sae_words(point),
        given=min((one.given for one in point.saes if one.given is not None), default=None),
        compared=None if agreement is None else (agreement.rows, agreement.trainer, agreement.report),
        flags=tuple(sorted(_flags(point))),
    )


def _sae_words(point: verdict.PointFacts) -> str:
    if not point.saes:
        return "none asked for"
    lacking = [one for one in point.saes if not one.exported or one.constant or not one.finite]
    if not lacking:
        return "exported"
    return "; ".join(one.why or "not finite" for one in lacking)


def _flags(point: verdict.PointFacts) -> set[str]:
    """Return the columns of the page's table whose values are out of bounds."""
    checks = {
        "seen": not point.seen,
        "lapped": any(share > verdict.LAPPED.limit for share in point.lapped.values()),
        "finite": point.not_finite > 0,
        "outlier": point.outlier is not None and point.outlier.share > verdict.OUTLIERS.limit,
        "sae": any(not one.exported or one.constant or not one.finite for one in point.saes),
        "given": any(point.missed(one) > verdict.MISSED.limit for one in point.saes),
        "compared": any(one.agreement is not None and not one.agreement.holds for one in point.saes),
    }
    return {name for name, out in checks.items() if out}


def termination_message(
    ledger: Ledger, snapshot: Snapshot, analysis: RunAnalysis | None, ending: RunResult | None
) -> str:
    """Return the termination message: totals as JSON, at most LAST_WORDS bytes."""
    books = ending.books if ending else ledger.books
    layers = analysis.layers if analysis else []
    fvus = [layer.fvu_content for layer in layers if layer.fvu_content is not None]
    l0s = [layer.l0 for layer in layers if layer.l0 is not None]
    dead = [layer.dead for layer in layers if layer.dead is not None]
    trained = [point.trained for point in snapshot.points if finite(point.trained) is not None]
    made = total_produced(books.capture.values())
    words = Summary(
        attempt=ledger.attempt,
        complete=ledger.complete,
        interrupted=snapshot.host.interrupted,
        ledger=Verdict(balanced=ledger.balanced),
        tokens=ending.tokens if ending else snapshot.host.tokens,
        capture=Captured(
            seen=made.seen,
            published=made.published,
            sampled_out=made.sampled_out,
            dropped=dict(made.dropped),
        ),
        durable={
            name: total_consumed(rows.values()).durable for name, rows in sorted(books.consumers.items())
        },
        trained=int(sum(trained)),
        quality=Quality(fvu=_mean(fvus), l0=_mean(l0s), dead=_mean(dead)),
        conditions={
            kind: {**one, "message": one["message"][:CONDITION_MESSAGE]}
            for kind, one in (conditions_json(ending) if ending else {}).items()
        },
    ).as_json()
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
