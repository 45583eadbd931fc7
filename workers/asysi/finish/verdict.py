"""The verdict on a run's ledger and data: facts in, levels with reasons out. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

from asysi.bus.packet import Kind, split_account
from asysi.finish.outliers import Outlier
from asysi.report.words import count, percent


class Level(IntEnum):
    """Severity, from best to worst."""

    OK = 0
    UNKNOWN = 1
    """Something could not be measured; nothing bad was found."""
    WARNING = 2
    """The exit code stays 0."""
    FAIL = 3
    """The exit code is 1."""

    @property
    def mark(self) -> str:
        """The symbol shown before the verdict."""
        return "✓?!✕"[self]

    @property
    def word(self) -> str:
        """The level in lower case."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table of checks: its level, and the limit above which it applies."""

    reason: str
    """Reason in the condition `DataSound` and in `verdict.json`."""
    level: Level
    when: str
    """Human-readable description of when it applies."""
    limit: float = 0.0


OUTLIERS = Check(
    "OutlierShare", Level.WARNING, "one position, one token or 1% of the rows holds more than 50% of the "
    "variance of a hook point, and at least twice its share of the rows", 0.5,
)  # fmt: skip
LAPPED = Check(
    "RowsLapped", Level.WARNING, "more than 5% of the rows of a hook point were overwritten before a consumer"
    " had read them", 0.05,
)  # fmt: skip
MISSED = Check(
    "TrainingMissedRows", Level.WARNING, "a trainer was given less than 95% of the rows that were kept for "
    "it: they were overwritten, or lost with a worker that was killed or had no room for its checkpoint",
    0.05,
)  # fmt: skip
NOT_FINITE = Check("RowsNotFinite", Level.WARNING, "a row holds NaN or infinity")
SATURATED = Check(
    "ValuesSaturated", Level.WARNING, "under `quantization: int8` more than one value in ten rows of a hook "
    "point lay outside the frozen range of its channel", 0.1,
)  # fmt: skip
UNPAIRED = Check(
    "GradientsUnpaired", Level.WARNING, "more than 5% of the gradient rows of a hook point missed the "
    "activation of their token, and have no ΔSC", 0.05,
)  # fmt: skip
TRUNCATED = Check(
    "DocumentsTruncated", Level.WARNING, "more than 10% of the documents were cut at `tokens.contextLength`",
    0.1,
)  # fmt: skip
NEVER_CALLED = Check(
    "NeverCalled",
    Level.WARNING,
    "the model never called a hook point that no trainer names, or no backward pass reached it",
)
NO_RESULT = Check(
    "NoResult", Level.FAIL, "a hook point that a trainer names has no SAE, or one without an FVU because its "
    "activations do not vary",
)  # fmt: skip
EXPORT = Check("ExportNotFinite", Level.FAIL, "an exported SAE holds a number that is not finite")
DISAGREE = Check(
    "ReportDisagrees", Level.FAIL, "on the same held-out rows the FVU of the report and that of the trainer "
    "differ by more than 0.01 and by more than 5%", 0.05,
)  # fmt: skip
ANALYSIS = Check(
    "AnalysisFailed", Level.FAIL, "what finish had to read could not be read, or was replaced during the run"
)  # fmt: skip
NOT_MEASURED = Check(
    "NotMeasured", Level.UNKNOWN, "something above could not be measured; the report says what and why"
)  # fmt: skip

CHECKS = (
    NO_RESULT, EXPORT, DISAGREE, ANALYSIS, OUTLIERS, LAPPED, MISSED, NOT_FINITE, SATURATED,
    UNPAIRED, TRUNCATED, NEVER_CALLED, NOT_MEASURED,
)  # fmt: skip
"""All checks of the data, the most severe first; `docs/report.md` has the same table."""
ABSOLUTE = 0.01
"""Differences between two FVUs up to this value are never a disagreement."""
SOUND, NOT_JUDGED = "Sound", "NotJudged"
BALANCED, NOT_BALANCED, NOT_ENDED, NO_BOOKS = "Balanced", "NotBalanced", "NotEnded", "AttemptWithoutBooks"


@dataclass(frozen=True, slots=True)
class Agreement:
    """FVU of one SAE on the same held-out rows, as received by the trainer and as recomputed by finish."""

    rows: int
    trainer: float
    report: float

    @property
    def holds(self) -> bool:
        """Whether the two are close enough."""
        return abs(self.report - self.trainer) <= max(ABSOLUTE, DISAGREE.limit * abs(self.trainer))


@dataclass(frozen=True, slots=True)
class SaeFacts:
    """The result of one trainer for one hook point that it selects."""

    trainer: str
    exported: bool
    finite: bool = True
    """Whether every number in the export is finite."""
    why: str = ""
    """Why there is no SAE, or no FVU."""
    fvu: float | None = None
    """On held-out content tokens; measured by the report if possible, otherwise by the trainer."""
    fvu_without: float | None = None
    """The same without the outlier rows."""
    constant: bool = False
    """Whether the held-out activations do not vary."""
    agreement: Agreement | None = None
    given: int | None = None
    """Rows that reached the trainer and are included in its result, over all attempts; None if unknown."""
    trained: int | None = None
    """How many of these it trained on, None if unknown; the others were held out or unusable."""


@dataclass(frozen=True, slots=True)
class PointFacts:
    """Measurements at one hook point over all attempts."""

    path: str
    seen: int = 0
    kept: int = 0
    """Rows offered to the consumers."""
    lapped: Mapping[str, float] = field(default_factory=dict)
    """Share of rows lost by overwriting, 0..1, by consumer."""
    not_finite: int = 0
    """Rows with NaN or infinity that anybody met."""
    saturated: int = 0
    """Values that int8 stored as the end of their channel's range."""
    unpaired: int = 0
    """Gradient rows whose activation was missing."""
    outlier: Outlier | None = None
    """The group of rows that holds most of the variance; None if it could not be determined."""
    saes: tuple[SaeFacts, ...] = ()
    """Results of every trainer that selects the hook point."""

    def missed(self, sae: SaeFacts) -> float:
        """Return the share of kept rows that a trainer did not receive, 0..1; 0 if unknown."""
        return max(0.0, 1 - sae.given / self.kept) if self.kept and sae.given is not None else 0.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Measurements of a run."""

    points: tuple[PointFacts, ...] = ()
    documents: int | None = None
    truncated: int | None = None
    """Documents that were truncated."""
    steps: int = 0
    interrupted: bool = False
    """Whether the user ended the run early."""
    problems: tuple[str, ...] = ()
    """Failures of the analysis, one sentence each."""
    unknown: tuple[str, ...] = ()
    """What could not be measured, one sentence each."""


@dataclass(frozen=True, slots=True)
class VerdictFinding:
    """One problem with the data."""

    level: Level
    reason: str
    text: str
    """Human-readable description, one or two sentences."""
    points: tuple[str, ...] = ()
    """Affected hook points; empty if it affects the whole run."""


@dataclass(frozen=True, slots=True)
class VerdictCondition:
    """A verdict as a condition of the experiment's status."""

    status: str
    """True | False | Unknown."""
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class DataVerdict:
    """The verdict on the data."""

    findings: tuple[VerdictFinding, ...]
    """The worst first."""

    @property
    def level(self) -> Level:
        """The worst of the findings."""
        return max((finding.level for finding in self.findings), default=Level.OK)

    @property
    def condition(self) -> VerdictCondition:
        """The condition `DataSound`: also False for a warning; the phase tells whether the run failed."""
        if not self.findings:
            return VerdictCondition("True", SOUND, "Every check of the data has passed.")
        worst = self.findings[0]
        others = len(self.findings) - 1
        more = f" ({others} more finding{'s' if others > 1 else ''} in the report)" if others else ""
        status = "Unknown" if worst.level is Level.UNKNOWN else "False"
        return VerdictCondition(status, worst.reason, worst.text + more)


def judge(facts: Facts) -> DataVerdict:
    """Return every finding about the data, the most severe first; none means that the data is sound."""
    found = [finding for look in _LOOKS for finding in look(facts)]
    return DataVerdict(tuple(sorted(found, key=lambda finding: -finding.level)))


def _no_result(facts: Facts) -> Iterator[VerdictFinding]:
    lacking = [
        (point, sae)
        for point in facts.points
        for sae in point.saes
        if not sae.exported or sae.constant
    ]  # fmt: skip
    for why, group in _grouped(lacking, lambda pair: pair[1].why).items():
        paths = [point.path for point, _ in group]
        trainers = ", ".join(dict.fromkeys(sae.trainer for _, sae in group))
        text = f"Trainer {trainers} has no result at {_named(paths)}: {why or 'the cause is unknown'}."
        if facts.interrupted and not any(point.seen for point, _ in group):
            yield VerdictFinding(Level.UNKNOWN, NOT_MEASURED.reason, text, tuple(paths))
        else:
            yield VerdictFinding(NO_RESULT.level, NO_RESULT.reason, text, tuple(paths))


def _exports(facts: Facts) -> Iterator[VerdictFinding]:
    broken = [point.path for point in facts.points if any(s.exported and not s.finite for s in point.saes)]
    if broken:
        text = f"The exported SAE of {_named(broken)} holds numbers that are not finite: it is unusable."
        yield VerdictFinding(EXPORT.level, EXPORT.reason, text, tuple(broken))


def _disagreement(facts: Facts) -> Iterator[VerdictFinding]:
    pairs = [
        (point.path, sae.agreement)
        for point in facts.points
        for sae in point.saes
        if sae.agreement is not None and not sae.agreement.holds
    ]
    if pairs:
        path, worst = max(pairs, key=lambda pair: abs(pair[1].report - pair[1].trainer))
        text = (
            f"At {_named([one for one, _ in pairs])} the report and the trainer do not see the same rows: "
            f"on the same {count(worst.rows)} held-out rows of {path} FVU is {percent(worst.trainer)} for "
            f"the trainer and {percent(worst.report)} for the report."
        )
        yield VerdictFinding(DISAGREE.level, DISAGREE.reason, text, tuple(one for one, _ in pairs))


def _problems(facts: Facts) -> Iterator[VerdictFinding]:
    return (VerdictFinding(ANALYSIS.level, ANALYSIS.reason, problem) for problem in facts.problems)


def _outliers(facts: Facts) -> Iterator[VerdictFinding]:
    found = [
        (point, point.outlier)
        for point in facts.points
        if point.outlier is not None and point.outlier.share > OUTLIERS.limit
    ]
    if not found:
        return
    point, worst = max(found, key=lambda pair: pair[1].share)
    sae = next((one for one in point.saes if one.fvu is not None and one.fvu_without is not None), None)
    instead = (
        "; data.tokens.prependBos puts a token that is not data in that position"
        if worst.name == "position 0"
        else ""
    )
    effect = "" if sae is None else (
        f" An FVU of {percent(sae.fvu)} is mostly about {worst.them}; without {worst.them}, FVU is "
        f"{percent(sae.fvu_without)}."
    )  # fmt: skip
    text = (
        f"{_at([one.path for one, _ in found], point.path)} {worst.name}, {percent(worst.rows)} of the rows, "
        f"holds {percent(worst.share)} of the variance.{effect} data.tokens.maxNormMultiple leaves such rows "
        f"out of training{instead}."
    )
    yield VerdictFinding(OUTLIERS.level, OUTLIERS.reason, text, tuple(one.path for one, _ in found))


def _lapped(facts: Facts) -> Iterator[VerdictFinding]:
    found = [
        (share, name, point.path)
        for point in facts.points
        for name, share in point.lapped.items()
        if share > LAPPED.limit
    ]
    for name, group in _grouped(found, lambda one: one[1]).items():
        share, _, path = max(group)
        paths = [one for _, _, one in group]
        text = (
            f"{_at(paths, path)} {name} lost {percent(share)} of the rows that were kept for it: they were "
            "overwritten before it had read them. It was too slow for the sampling rate, or stalled."
        )
        yield VerdictFinding(LAPPED.level, LAPPED.reason, text, tuple(paths))


def _missed(facts: Facts) -> Iterator[VerdictFinding]:
    """Find rows missed by training, except those already reported as lapped."""
    found = [
        (point.missed(sae), sae.trainer, point, sae.given)
        for point in facts.points
        for sae in point.saes
        if point.missed(sae) > MISSED.limit and not _only_lapped(point, sae)
    ]
    for name, group in _grouped(found, lambda one: one[1]).items():
        share, _, point, given = max(group, key=lambda one: one[0])
        paths = [one.path for _, _, one, _ in group]
        text = (
            f"{_at(paths, point.path)} trainer {name} was given {count(given or 0)} of the "
            f"{count(point.kept)} rows kept, {percent(share)} fewer: the others were overwritten, or lost "
            "with a worker that was killed or had no room for its checkpoint. The SAE was not trained on "
            "them."
        )
        yield VerdictFinding(MISSED.level, MISSED.reason, text, tuple(paths))


def _only_lapped(point: PointFacts, sae: SaeFacts) -> bool:
    lapped = point.lapped.get("sae", 0.0)
    return lapped > LAPPED.limit and point.missed(sae) - lapped < _ABOUT


_ABOUT = 0.01


def _not_finite(facts: Facts) -> Iterator[VerdictFinding]:
    found = [point for point in facts.points if point.not_finite]
    if found:
        worst = max(found, key=lambda point: point.not_finite)
        text = (
            f"{_at([point.path for point in found], worst.path)} {count(worst.not_finite)} rows hold NaN or "
            f"infinity, of {count(worst.kept)} kept. They are excluded from training and from all metrics."
        )
        yield VerdictFinding(NOT_FINITE.level, NOT_FINITE.reason, text, tuple(point.path for point in found))


def _saturated(facts: Facts) -> Iterator[VerdictFinding]:
    found = [point for point in facts.points if point.saturated > SATURATED.limit * max(1, point.kept)]
    if found:
        worst = max(found, key=lambda point: point.saturated / max(1, point.kept))
        text = (
            f"{_at([point.path for point in found], worst.path)} {count(worst.saturated)} values of "
            f"{count(worst.kept)} rows lay outside the ranges that int8 froze on the first rows, and are "
            "stored as the ends of these: the data changed, or has rare large values. Take fp8 or bf16."
        )
        yield VerdictFinding(SATURATED.level, SATURATED.reason, text, tuple(point.path for point in found))


def _unpaired(facts: Facts) -> Iterator[VerdictFinding]:
    found = [point for point in facts.points if point.unpaired > UNPAIRED.limit * max(1, point.kept)]
    if found:
        worst = max(found, key=lambda point: point.unpaired / max(1, point.kept))
        text = (
            f"{_at([point.path for point in found], worst.path)} {count(worst.unpaired)} of "
            f"{count(worst.kept)} rows missed the activation of their token: it was dropped, did not fit the "
            "hook worker's window, or was lost with a worker that was killed. They have no ΔSC."
        )
        yield VerdictFinding(UNPAIRED.level, UNPAIRED.reason, text, tuple(point.path for point in found))


def _truncated(facts: Facts) -> Iterator[VerdictFinding]:
    if facts.documents and facts.truncated and facts.truncated / facts.documents > TRUNCATED.limit:
        text = (
            f"{count(facts.truncated)} of {count(facts.documents)} documents "
            f"({percent(facts.truncated / facts.documents)}) were cut at data.tokens.contextLength: nothing "
            "was captured after it."
        )
        yield VerdictFinding(TRUNCATED.level, TRUNCATED.reason, text)


def _never_called(facts: Facts) -> Iterator[VerdictFinding]:
    silent = [point.path for point in facts.points if not point.seen and not point.saes and facts.steps]
    without = [path for path in silent if split_account(path)[1] is not Kind.ACTIVATION]
    if without:
        text = f"No backward pass reached {_named(without)}: it has no rows."
        yield VerdictFinding(NEVER_CALLED.level, NEVER_CALLED.reason, text, tuple(without))
    silent = [path for path in silent if path not in without]
    if silent:
        text = f"The model never called {_named(silent)}: it has no rows."
        yield VerdictFinding(NEVER_CALLED.level, NEVER_CALLED.reason, text, tuple(silent))


def _unknown(facts: Facts) -> Iterator[VerdictFinding]:
    return (VerdictFinding(Level.UNKNOWN, NOT_MEASURED.reason, text) for text in facts.unknown)


_LOOKS: tuple[Callable[[Facts], Iterator[VerdictFinding]], ...] = (
    _no_result, _exports, _disagreement, _problems, _outliers, _lapped, _missed, _not_finite,
    _saturated, _unpaired, _truncated, _never_called, _unknown,
)  # fmt: skip


_T = TypeVar("_T")


def _grouped(items: Iterable[_T], key: Callable[[_T], str]) -> dict[str, list[_T]]:
    groups: dict[str, list[_T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


_FEW = 3


def _named(paths: Sequence[str]) -> str:
    """Return the hook points as text; if there are many, the first ones and the number of the others."""
    known = list(dict.fromkeys(paths))
    if len(known) <= _FEW:
        return ", ".join(known)
    return f"{', '.join(known[:_FEW])} and {len(known) - _FEW} more hook points"


def _at(paths: Sequence[str], worst: str) -> str:
    others = len(set(paths)) - 1
    return f"At {worst}" + (f" (worst of {others + 1} hook points)" if others else "")


def ledger_condition(
    *, balanced: bool, complete: bool, rows: int, attempts: int, without: Sequence[int], failing: str
) -> VerdictCondition:
    """Return the condition `LedgerBalanced`.

    Args:
        balanced: whether every equation holds in every attempt with known counters.
        complete: whether the stream of the last attempt ended normally.
        rows: rows seen in the attempts with complete counters.
        attempts: number of attempts.
        without: attempts whose counters are missing or incomplete.
        failing: description of the failing equations.
    """
    if not balanced:
        return VerdictCondition("False", NOT_BALANCED, failing)
    if not complete:
        return VerdictCondition(
            "Unknown", NOT_ENDED, "The stream did not end; what was seen until then is accounted for."
        )  # fmt: skip
    if without:
        named = ", ".join(map(str, without))
        word = "attempt" if len(without) == 1 else "attempts"
        return VerdictCondition(
            "Unknown", NO_BOOKS,
            f"What {word} {named} saw is not known in full: the ledger was not closed before the end. "
            f"The {count(rows)} rows seen otherwise are accounted for.",
        )  # fmt: skip
    of = f" of {attempts} attempts" if attempts > 1 else ""
    return VerdictCondition("True", BALANCED, f"All {count(rows)} rows seen{of} are accounted for.")


def overall(ledger: VerdictCondition, data: DataVerdict) -> Level:
    """Return the level of the run: the worse of both verdicts."""
    if ledger.status == "False" or ledger.reason == NOT_ENDED:
        return Level.FAIL
    return max(data.level, Level.OK if ledger.status == "True" else Level.UNKNOWN)


_WORDS = {
    Level.OK: ", and its data is sound",
    Level.UNKNOWN: "; not everything about its data is known",
    Level.WARNING: ", but its data needs attention",
    Level.FAIL: ", but its results are not sound",
}


def sentence(ledger: VerdictCondition, data: DataVerdict, *, interrupted: bool) -> str:
    """Return both verdicts as one or two sentences."""
    ended = "The run was ended early" if interrupted else "The run is complete"
    if ledger.reason == BALANCED:
        rows = ledger.message[:1].lower() + ledger.message[1:].rstrip(".")
        return f"{ended} and its ledger balances ({rows}){_WORDS[data.level]}."
    if ledger.reason == NO_BOOKS:
        return f"{ended}{_WORDS[data.level]}. {ledger.message}"
    return ledger.message
