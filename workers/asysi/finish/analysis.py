"""Analyses the latents: runs the model on part of the text again and applies the frozen autoencoders."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asysi.bus.ranges import Frozen, read_ranges
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import CHECKPOINT_FOLDER, MODEL_FILE, POINTS_FILE, RANGES_FILE, SAE_FOLDER
from asysi.contract.spec import ScanExperiment, Tokens
from asysi.contract.workloads import text_of
from asysi.finish import features, logits, sample, splice
from asysi.finish.agreement import HeldOutRows, compare
from asysi.finish.budget import ReadBudget, ReadWatch
from asysi.finish.features import LayerResult, MeasureOptions
from asysi.finish.host_rows import GRACE, await_rows
from asysi.finish.reread_tokens import PointRows
from asysi.finish.rereading import Extent, Reread, read_for_report
from asysi.finish.status import TrainerGauges
from asysi.finish.survey import VarianceByPlace, find_outlier_rows
from asysi.finish.token_text import vocabulary
from asysi.finish.verdict import Agreement
from asysi.model.loading import LoadedModel, ResolvedModel, load_model, read_resolved
from asysi.model.points import read_points
from asysi.report.data import Browser, Comparison, LayerRow
from asysi.text.tokens import make_policy

SEED = 0
log = logging.getLogger("asysi")


@dataclass(frozen=True, slots=True)
class Export:
    """An exported autoencoder."""

    trainer: str
    point: str
    folder: Path


@dataclass(frozen=True, slots=True)
class LatentView:
    """The analysis of one export."""

    finite: bool
    """Whether every parameter is finite; an export with other values is not analysed."""
    layer: LayerRow | None = None
    agreement: Agreement | None = None
    """None if the report and the trainer share too few rows."""


@dataclass
class RunAnalysis:
    """The results of the analysis; partial if a step failed."""

    points: list[str] = field(default_factory=list)
    """Hook points that prepare resolved."""
    places: dict[str, VarianceByPlace] = field(default_factory=dict)
    """Variance of the activations, by hook point."""
    saes: dict[tuple[str, str], LatentView] = field(default_factory=dict)
    """Every export, by trainer and hook point."""
    layers: list[LayerRow] = field(default_factory=list)
    browser: Browser | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    model: str = ""
    exports: list[str] = field(default_factory=list)
    """Folders of the exported autoencoders, relative to the output."""
    extent: Extent | None = None
    """How much text was read again; None where none was."""
    parameters: str = ""
    """Summary of the parameter analysis; empty if it was not requested."""
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_exports(output: Path) -> list[Export]:
    """Return the exported autoencoders, sorted by trainer, then naturally by hook point."""
    found = [
        Export(folder.parent.name, unquote(folder.name), folder)
        for folder in (output / SAE_FOLDER).glob("*/*")
        if (folder / "cfg.json").is_file() and (folder / "sae_weights.safetensors").is_file()
    ]
    return sorted(found, key=lambda export: (export.trainer, _natural(export.point)))


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def analyse(
    experiment: ScanExperiment,
    output: Path,
    workspace: Path,
    gauges: tuple[TrainerGauges, ...],
    watch: ReadWatch,
    *,
    attempt: int = 0,
) -> RunAnalysis:
    """Read text again and look at every exported autoencoder; what fails is said in the result, never
    raised.

    Args:
        experiment: what was asked for.
        output: the results.
        workspace: what prepare and the host left.
        gauges: the trainers' figures.
        watch: is told how far it is.
        attempt: number of this attempt.
    """
    result = RunAnalysis()
    spec = experiment.spec
    result.points = _points(workspace)
    exports = find_exports(output)
    result.exports = [str(export.folder.relative_to(output)) for export in exports]
    text = text_of(spec)
    if spec.data is None or text is None:
        result.missing.append("The features: this workload has no text that could be read again.")
        _analyse_without_text(result, exports)
        return result
    if spec.sae is None:
        result.missing.append("The features: the experiment trains no autoencoder (spec.sae is null).")
    elif not exports:
        result.missing.append("The features: no autoencoder was exported; see the log of the sae worker.")
    if not exports and not spec.archive.enabled:
        return result
    try:
        torch.set_num_threads(max(1, int(spec.resources.finish.cpus)))
        points = read_points(workspace / POINTS_FILE)
        resolved = read_resolved(workspace / MODEL_FILE)
        loaded = load_model(resolved, spec.model.dtype)
        result.model = _describe(loaded, resolved, spec.model.dtype, len(points))
        again = _left_by_host(experiment, workspace, attempt, result, watch) or read_for_report(
            experiment, output, loaded, points, watch=watch
        )
        watch.show(None)
        result.extent = again.extent
        result.places = {
            path: _called(find_outlier_rows(rows, again.sheet), again)
            for path, rows in again.activations.items()
        }
        _compare_norms(result, again, output)
        head = _Head(logits.unembedding(loaded.module), partial(vocabulary, loaded.tokenizer))
        ranges = read_ranges(output / RANGES_FILE)
        gauged = {one.path: one for one in gauges}
        _analyse(result, experiment, exports, again, head, gauges=gauged, ranges=ranges, beat=watch.beat)
        budget = ReadBudget(spec.finish.splice_tokens, spec.finish.splice_seconds)
        _splice(result, exports, again, loaded, budget=budget, watch=watch)
        watch.show(None)
    except Exception as error:  # the report is still written and lists what is missing
        log.exception("the analysis failed")
        result.problems.append(f"The analysis of the latents failed: {type(error).__name__}: {error}")
    return result


def _left_by_host(
    experiment: ScanExperiment, workspace: Path, attempt: int, result: RunAnalysis, watch: ReadWatch
) -> Reread | None:
    """Return what a host with a GPU has read for the report, None where it has no GPU or left nothing."""
    spec = experiment.spec
    if not spec.resources.host.gpus:
        return None
    found, why = await_rows(workspace, attempt, spec.finish.max_seconds + GRACE, watch)
    if found is None:
        log.warning("the report's documents are read on the CPU: %s", why)
        result.missing.append(f"The rows that the host's GPU should have read: {why}; finish read its own.")
    return found


def _analyse_without_text(result: RunAnalysis, exports: list[Export]) -> None:
    """Check the autoencoders as far as possible without data: whether every parameter is finite."""
    from asysi.sae.export import load  # noqa: PLC0415 - not needed without autoencoders

    for export in exports:
        try:
            finite = bool(load(export.folder).parameters.isfinite().all())
        except Exception as error:  # one damaged file must not prevent the check of the others
            log.exception("%s cannot be read", export.folder)
            result.problems.append(
                f"The autoencoder of {export.trainer} at {export.point} cannot be read: {error}"
            )
        else:
            result.saes[export.trainer, export.point] = LatentView(finite)


def _describe(loaded: LoadedModel, resolved: ResolvedModel, dtype: str, points: int) -> str:
    parameters = sum(parameter.numel() for parameter in loaded.module.parameters())
    stored = f"GGUF of {resolved.stored}, dequantised to {dtype}" if resolved.stored else dtype
    return (
        f"{type(loaded.module).__name__}, {parameters / 1e6:.1f}M parameters, {stored}; {points} hook points"
    )


def _points(workspace: Path) -> list[str]:
    try:
        return [point.path for point in read_points(workspace / POINTS_FILE)]
    except ConfigError:  # the counters still name the captured ones
        return []


def _called(place: VarianceByPlace, again: Reread) -> VarianceByPlace:
    """Return `place`; if its outlier is a token, the name shows the token's text."""
    outlier = place.outlier
    if outlier is None or outlier.by != "token":
        return place
    number = int(outlier.name.rpartition(" ")[2])
    text = again.pieces[int(np.flatnonzero(again.sheet.tokens == number)[0])]
    named = dataclasses.replace(outlier, name=f"the token {text.strip()!r} ({number})")
    return dataclasses.replace(place, outlier=named)


def _compare_norms(result: RunAnalysis, again: Reread, output: Path) -> None:
    try:
        if found := sample.by_norm(again, output):
            result.comparisons.append(found)
        else:
            result.missing.append("Seen against kept by norm: there is no archive with norms.")
    except Exception as error:  # a damaged archive must not cost the features
        log.exception("the archive cannot be read")
        result.problems.append(f"The archive cannot be read: {error}")


@dataclass(frozen=True, slots=True)
class _Head:
    """The model's unembedding and vocabulary."""

    weight: Tensor | None
    """[vocabulary, width]; None if the model has no unembedding."""
    spell: Callable[[NDArray[np.int64]], dict[int, str]]
    """Maps token ids to their text."""


def _analyse(
    result: RunAnalysis,
    experiment: ScanExperiment,
    exports: list[Export],
    again: Reread,
    head: "_Head",
    *,
    gauges: dict[str, TrainerGauges],
    ranges: Mapping[str, Frozen],
    beat: Callable[[], None],
) -> None:
    sheet = again.sheet
    if exports and not (sheet.held_tokens & sheet.content).any():
        result.missing.append(
            "The features: no held-out document fits what finish reads again (spec.data.holdout.share), "
            "so nothing can be measured."
        )
    several = len({export.trainer for export in exports}) > 1
    measured: list[LayerResult] = []
    for export in exports:
        asked = MeasureOptions(
            k=_k(export.folder),
            quantization=experiment.spec.capture.quantization,
            seed=SEED,
            shown=features.SHOWN // len(exports),
            sentence=features.sentence_of(sheet, SEED),
            unembedding=head.weight,
            ranges=ranges[export.point].table if export.point in ranges else None,
        )
        name = f"{export.trainer}/{export.point}" if several else export.point
        one = _measure(result, export, again, asked, name=name)
        if one is not None:
            one = _with_training(one, gauges.get(export.point))
            measured.append(one)
            result.saes[export.trainer, export.point] = dataclasses.replace(
                result.saes[export.trainer, export.point], layer=one.layer
            )
        beat()
    if measured:
        result.layers = [one.layer for one in measured]
        result.browser = features.browser(measured, sheet, again.pieces, SEED, head.spell)


def _splice(
    result: RunAnalysis,
    exports: list[Export],
    again: Reread,
    loaded: LoadedModel,
    *,
    budget: ReadBudget,
    watch: ReadWatch,
) -> None:
    """Measure the cross-entropy with each SAE spliced in, if the model is a language model."""
    from asysi.sae.export import load  # noqa: PLC0415 - not needed without autoencoders

    chosen = [one for one in exports if (look := result.saes.get((one.trainer, one.point))) and look.layer]
    chosen = [one for one in chosen if "#" not in one.point]  # one call only: all would be replaced
    what = "Cross-entropy with the SAE spliced in"
    if not chosen or not budget.tokens:
        return
    if why := splice.why_not(loaded.module):
        result.missing.append(f"{what}: {why}.")
        return
    targets = [splice.Target(one.point, load(one.folder), _norm_limit(one.folder)) for one in chosen]
    padding = make_policy(Tokens(), loaded.tokenizer).padding
    try:
        measured = splice.measure(loaded.module, again.sheet, targets, budget, padding=padding, watch=watch)
    except Exception as error:  # a custom forward may raise anything; the page is complete without this
        log.exception("the autoencoders cannot be spliced in")
        result.missing.append(f"{what}: {type(error).__name__}: {error}")
        return
    found = measured.figures
    if without := sum(one is None for one in found):
        result.missing.append(
            f"{what}: {without} of {len(chosen)} SAEs are without it: {_why_not_spliced(measured, budget)}."
        )
    for export, one in zip(chosen, found, strict=True):
        key = (export.trainer, export.point)
        look = result.saes[key]
        assert look.layer is not None
        layer = dataclasses.replace(look.layer, spliced=None if one is None else dataclasses.astuple(one))
        result.saes[key] = dataclasses.replace(look, layer=layer)
        result.layers = [layer if old.name == layer.name else old for old in result.layers]


def _why_not_spliced(measured: splice.SpliceResult, budget: ReadBudget) -> str:
    match measured.ended:
        case "tokens":
            return f"{budget.tokens:,} tokens (spec.finish.spliceTokens) are too few"
        case "seconds":
            return f"{budget.seconds:.0f} s (spec.finish.spliceSeconds) were over"
        case _:
            return "a loss is not finite"


def _measure(
    result: RunAnalysis, export: Export, again: Reread, asked: MeasureOptions, *, name: str
) -> LayerResult | None:
    """Measure one export and record it in `result`; return None if nothing can be measured."""
    from asysi.sae.export import load  # noqa: PLC0415 - not needed without autoencoders

    key = (export.trainer, export.point)
    rows = again.activations.get(export.point)
    sae = load(export.folder)
    finite = bool(sae.parameters.isfinite().all())
    result.saes[key] = LatentView(finite)
    limit, place, outliers = _norm_limit(export.folder), result.places.get(export.point), 0
    if rows is not None and limit is not None:
        outliers, rows = len(rows.values), rows.within(limit)
        outliers -= len(rows.values)
        place = find_outlier_rows(rows, again.sheet)  # of the remaining rows, without the outliers
        result.places[export.point] = _called(place, again)
    if rows is None or not features.measurable(rows, again.sheet):
        _say_why(result, export, rows)
        return None
    if not finite:
        return None
    held = None if again.joined else _held(export)
    result.saes[key] = LatentView(
        finite, agreement=None if held is None else compare(sae, rows, again.sheet, held)
    )
    one = features.measure_sae(name, sae, rows, again.sheet, asked, place=place)
    return dataclasses.replace(one, layer=dataclasses.replace(one.layer, outliers=outliers))


def _say_why(result: RunAnalysis, export: Export, rows: PointRows | None) -> None:
    """Record why an exported autoencoder is missing from the page."""
    where = f"The features of {export.trainer}/{export.point}"
    if rows is None:
        result.missing.append(f"{where}: the module is not called on the text that finish reads again.")
        return
    lost = sum(rows.dropped.values())
    result.missing.append(
        f"{where}: finish found no row of a held-out token with finite activations "
        f"({rows.not_finite} rows are not finite, {lost} have no token)."
    )


def _held(export: Export) -> HeldOutRows | None:
    """Return the rows on which the trainer evaluated itself; None if its checkpoint does not record them."""
    from asysi.sae.checkpoint import read_held  # noqa: PLC0415 - not needed without autoencoders

    folder = export.folder.parents[2] / CHECKPOINT_FOLDER
    found = read_held(folder / f"{export.trainer}.ckpt", export.point)
    if found is None:
        return None
    rows, origin = found
    sample, position, call = (origin[:, column].contiguous().numpy().view(np.uint64) for column in range(3))
    return HeldOutRows(rows.float().numpy(), sample, position, call)


def _with_training(measured: LayerResult, gauge: TrainerGauges | None) -> LayerResult:
    """Add the metrics that only the trainer has."""
    if gauge is None or not gauge.trained > 0:
        return measured
    layer = dataclasses.replace(measured.layer, dead_training=gauge.dead, trained=int(gauge.trained))
    return dataclasses.replace(measured, layer=layer)


def _k(folder: Path) -> int | None:
    k = _config(folder).get("k")
    return k if isinstance(k, int) else None


def _norm_limit(folder: Path) -> float | None:
    """Return the norm above which the trainer finally excluded rows; None if it had no limit."""
    limit = _config(folder).get("metadata", {}).get("asysi", {}).get("norm_limit")
    return float(limit) if isinstance(limit, (int, float)) else None


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "cfg.json").read_text())
    return config
