"""The `weights` part of an experiment: the parameters before and after the run, and the difference.

It writes to `weights/` in the output: before.csv, after.csv, difference.csv, report.html and run_meta.json.
`after` exists only if the run left a model: a scan changes no parameters, so it has no `after` and no
difference.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from asysi.contract.runtime import MODEL_FOLDER
from asysi.contract.spec import Weights
from asysi.files import write_atomic
from asysi.report.words import count
from asysi.weights.comparing.compare import DIFFERENCE_COLUMNS, Difference, compare, said_in_short, totals
from asysi.weights.reading.checkpoint import Checkpoint, open_checkpoint
from asysi.weights.reading.tensors import Tensor
from asysi.weights.reporting.formatting import short_number
from asysi.weights.run.orchestrator import JOURNAL_FILE, REPORT_FILE, meta_of, page_of
from asysi.weights.statistics.analysis import CheckpointAnalysis, CheckpointOrigin, analyze
from asysi.weights.tables.export import write_meta, write_table

log = logging.getLogger("asysi")
SOURCES = ("before", "after")
NO_MODEL = (
    f" The run left no model in {MODEL_FOLDER}/, so there is no after and no difference: a scan changes no"
    " parameter, and another workload writes there what it trained."
)


@dataclass(frozen=True, slots=True)
class Source:
    """A state of the model, and the location of its parameters."""

    open: Callable[[], Checkpoint]
    identity: CheckpointOrigin
    said: str
    """Where they were read from, for the report."""


@dataclass
class Parameters:
    """The result of the analysis, for the run's report."""

    summary: str = ""
    """One or two sentences."""
    problems: list[str] = field(default_factory=list)


def analyse_weights(
    wanted: Weights,
    sources: Mapping[str, Source],
    folder: Path,
    *,
    memory: int | None = None,
    workers: int | None = None,
    beat: Callable[[], None] = lambda: None,
) -> Parameters:
    """Analyse the states in `wanted.when` and compare them if it names both; errors are reported, not raised.

    Run again, it resumes after the tensors that are done: tensors that the run did not change are read, but
    not analysed again.

    Args:
        wanted: the spec's `weights`.
        sources: `before`, and `after` if the run left a model.
        folder: where the tables and the page are written.
        memory: maximum bytes held at once.
        workers: tensors processed concurrently.
        beat: called at least once per second.
    """
    result = Parameters()
    try:
        _analyse(result, wanted, sources, folder, memory=memory, workers=workers, beat=beat)
    except Exception as error:  # the run's report is written anyway and names what is missing
        log.exception("the analysis of the parameters failed")
        result.problems.append(f"The analysis of the parameters failed: {type(error).__name__}: {error}")
    return result


def _analyse(
    result: Parameters, wanted: Weights, sources: Mapping[str, Source], folder: Path, *,
    memory: int | None, workers: int | None, beat: Callable[[], None],
) -> None:  # fmt: skip
    done: dict[str, CheckpointAnalysis] = {}
    notes: list[str] = []
    missing = "after" in wanted.when and "after" not in sources
    for when in [one for one in SOURCES if one in sources and (one in wanted.when or missing)]:
        with sources[when].open() as checkpoint:
            done[when] = analyze(
                checkpoint,
                sources[when].identity,
                workers=workers,
                memory=memory,
                journal=folder / JOURNAL_FILE,
                beat=beat,
            )
            notes = list(checkpoint.notes)
        write_table(done[when].rows, folder / f"{when}.csv", "csv")
        result.problems += [f"Parameters {when} the run: {one.listed}" for one in done[when].problems]
    if not done:
        result.summary = "Not analysed: spec.weights.when names neither before nor after."
        return
    last = done[max(done, key=SOURCES.index)]
    difference = None
    if len(done) == len(SOURCES):
        with sources["before"].open() as first, sources["after"].open() as second:
            difference = compare(first, second, workers=workers, memory=memory, beat=beat)
        write_table(difference.rows, folder / "difference.csv", "csv", DIFFERENCE_COLUMNS)
    read = {when: {**asdict(sources[when].identity), "said": sources[when].said} for when in done}
    meta = {**meta_of(last, notes=notes), "sources": read}
    write_meta(meta, folder)
    against = f"{sources['after'].said}, against {sources['before'].said}:" if difference else ""
    page = page_of(last, meta, differences=difference.rows if difference else (), against=against)
    write_atomic(folder / REPORT_FILE, build_page(page))
    result.summary = _summary(done, difference, folder.name) + (NO_MODEL if missing else "")


def build_page(page: Any) -> str:
    """Return the page on the parameters."""
    from asysi.weights.reporting.report import build  # noqa: PLC0415 - the template engine, once it is needed

    return build(page)


def _summary(done: Mapping[str, CheckpointAnalysis], difference: Difference | None, folder: str) -> str:
    parts = [f"{count(len(analysis.rows))} parameters {when} the run" for when, analysis in done.items()]
    text = f"{' and '.join(parts)} analysed: see {folder}/{REPORT_FILE}."
    if difference is None:
        return text
    found = totals(difference.rows)
    relative = short_number(found["delta_relative"])
    counts = said_in_short(found)
    return f"{text} {counts}; ‖ΔW‖/‖W‖ = {relative}."


def sources_of(resolved: Any, output: Path, load: Callable[[], Any]) -> dict[str, Source]:
    """Return where the parameters are before a run, and after it if it left a model in its output.

    Args:
        resolved: the model resolved by prepare: `uri`, `path`, `revision`.
        output: the run's output; a trained model is in its folder `model`.
        load: returns the model as a module, for models that do not come from files.
    """
    revision = resolved.revision or "local"
    identity = CheckpointOrigin(resolved.path or resolved.uri, resolved.uri, revision)
    before = Source(
        (lambda: open_checkpoint(resolved.path))
        if resolved.path
        else (lambda: checkpoint_of(load(), resolved.uri)),
        identity,
        "the files that the model was loaded from" if resolved.path else f"a new model of {resolved.uri}",
    )
    trained = output / MODEL_FOLDER
    if not any(trained.glob("*.safetensors")):
        return {"before": before}
    after = Source(
        lambda: open_checkpoint(trained),
        CheckpointOrigin(str(trained), resolved.uri, "trained"),
        "the model that the run left",
    )
    return {"before": before, "after": after}


def checkpoint_of(module: Any, source: str) -> Checkpoint:
    """Return the parameters and buffers of a torch module as an open checkpoint; nothing is copied.

    Args:
        module: a torch.nn.Module on the CPU.
        source: its name.
    """
    return Checkpoint(
        source, {name: _tensor(name, _array(value), source) for name, value in module.state_dict().items()}
    )


def _tensor(name: str, array: np.ndarray[Any, Any], source: str) -> Tensor:
    flat = array.reshape(-1)
    return Tensor(name, array.dtype, array.shape, source, "pt", lambda start, stop, _: flat[start:stop])


def _array(value: Any) -> np.ndarray[Any, Any]:
    import torch  # noqa: PLC0415 - there is a module, so it is here

    value = value.detach().cpu().contiguous()
    if value.dtype == torch.bfloat16:
        return np.asarray(value.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(value.numpy())
