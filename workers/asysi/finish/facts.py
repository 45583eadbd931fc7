"""Gathers the facts for the verdict: counters of all attempts, records of the trainers, the analysis."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asysi.bus.accounts import Consumed, Produced
from asysi.bus.packet import Kind, split_account
from asysi.contract.grid import members
from asysi.contract.runtime import SAE_FOLDER, TRAIN_FOLDER, TRAINING_FILE
from asysi.contract.spec import ScanExperiment
from asysi.finish.analysis import RunAnalysis
from asysi.finish.ledger import AttemptCounts, points_of
from asysi.finish.sample import read_any_json, read_json
from asysi.finish.verdict import Facts, PointFacts, SaeFacts
from asysi.model.globs import compile_glob
from asysi.sae.fvu import CONSTANT


@dataclass(frozen=True, slots=True)
class Records:
    """The records that the workers wrote to the output volume."""

    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By trainer, then by hook point: its part of `training.json`."""
    seen: Mapping[str, Any] = field(default_factory=dict)
    """Contents of `host/seen.json`."""
    progress: Mapping[str, Any] = field(default_factory=dict)
    """Contents of `host/progress.json`."""
    epochs: object = None
    """Contents of `train/history.json`, if the workload trains the model."""


def read_records(experiment: ScanExperiment, output: Path) -> Records:
    """Return the records of the workers; missing or damaged ones are empty."""
    sae = experiment.spec.sae
    trainers = [one.name for trainer in sae.train for one in members(trainer)] if sae else []
    files = {name: read_json(output / SAE_FOLDER / name / TRAINING_FILE) for name in trainers}
    return Records(
        {name: _part(record, "points") for name, record in files.items()},
        read_json(output / "host" / "seen.json"),
        read_json(output / "host" / "progress.json"),
        read_any_json(output / TRAIN_FOLDER / "history.json"),
    )


def gather(
    experiment: ScanExperiment,
    books: AttemptCounts,
    records: Records,
    analysis: RunAnalysis,
    *,
    steps: int,
    interrupted: bool,
) -> Facts:
    """Return the facts of a run.

    Args:
        experiment: the experiment.
        books: sum of the known counters of all attempts.
        records: records of the workers.
        analysis: results of the analysis.
        steps: steps that the model ran, in all attempts.
        interrupted: whether the user stopped the run early.
    """
    captured = analysis.points if "activations" in experiment.spec.capture.kinds else ()
    paths = list(dict.fromkeys([*captured, *points_of(books)]))
    points = tuple(_point(path, experiment, books, records, analysis) for path in paths)
    documents, truncated = _count(records.seen, "documents"), _count(records.seen, "truncated")
    return Facts(
        points=points,
        documents=documents,
        truncated=truncated,
        steps=steps,
        interrupted=interrupted,
        problems=tuple(analysis.problems),
        unknown=tuple(_unknown(points, analysis, truncated)),
    )


def _point(
    path: str, experiment: ScanExperiment, books: AttemptCounts, records: Records, analysis: RunAnalysis
) -> PointFacts:
    captured, bus = books.capture.get(path, Produced()), books.bus.get(path, Produced())
    lapped = {"hook": _share(books.hook.get(path, Consumed()).lapped, captured.published)}
    for name, rows in books.consumers.items():
        lapped[name] = _share(rows.get(path, Consumed()).lapped, bus.published)
    place = analysis.places.get(path)
    met = [_count(points.get(path), "not_finite") or 0 for points in records.training.values()]
    met.append(books.not_finite.get(path, 0))
    sae = experiment.spec.sae
    trained = sae is not None and sae.enabled and split_account(path)[1] is Kind.ACTIVATION
    training = [t for t in sae.train if _names(t.hook_points, path)] if sae and trained else []
    trainers = [one.name for trainer in training for one in members(trainer)]
    return PointFacts(
        path=path,
        seen=captured.seen,
        kept=bus.published,
        lapped=lapped,
        not_finite=max(met) or (place.not_finite if place else 0),
        saturated=books.saturated.get(path, 0),
        unpaired=books.unpaired.get(path, 0),
        outlier=None if place is None else place.outlier,
        saes=tuple(_sae(name, path, captured.seen, records, analysis) for name in trainers),
    )


def _sae(trainer: str, path: str, seen: int, records: Records, analysis: RunAnalysis) -> SaeFacts:
    record = records.training.get(trainer, {}).get(path) or {}
    look = analysis.saes.get((trainer, path))
    if look is None:
        why = record.get("why") or (
            "it exported no SAE, see its log" if seen else "the model never called it"
        )  # fmt: skip
        return SaeFacts(
            trainer, exported=False, why=str(why), given=_count(record, "received"),
            trained=_count(record, "trained"),
        )  # fmt: skip
    layer = look.layer
    measured = None if layer is None else layer.fvu_content
    fvu = measured if measured is not None else _number(record, "fvu")
    tried = bool(_count(record, "fvu_rows")) or (layer is not None and layer.fvu_undefined is not None)
    constant = fvu is None and look.finite and tried
    return SaeFacts(
        trainer,
        exported=True,
        finite=look.finite,
        why=((layer.fvu_undefined if layer else None) or CONSTANT) if constant else "",
        fvu=fvu,
        fvu_without=None if layer is None else layer.fvu_without,
        constant=constant,
        agreement=look.agreement,
        given=_count(record, "received"),
        trained=_count(record, "trained"),
    )


def _unknown(points: Sequence[PointFacts], analysis: RunAnalysis, truncated: int | None) -> Iterator[str]:
    unmeasured = [
        point.path
        for point in points
        if any(one.exported and one.finite and one.fvu is None and not one.constant for one in point.saes)
    ]
    if unmeasured:
        yield f"The FVU at {', '.join(unmeasured)} is unknown: there was no held-out row to measure it on."
    if points and not analysis.places:
        yield "Whether a few rows hold most of the variance is unknown: finish did not reread any text."
    if points and truncated is None:
        yield "The number of truncated documents is unknown: the host wrote no counts."


def _names(globs: Sequence[str], path: str) -> bool:
    return any(compile_glob(glob).fullmatch(path) for glob in globs)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def _number(record: Any, key: str) -> float | None:
    value = record.get(key) if isinstance(record, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(record: Any, key: str) -> int | None:
    number = _number(record, key)
    return None if number is None else int(number)
