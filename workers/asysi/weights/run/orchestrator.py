"""`asysi weights run`: writes its plan, skips verified steps, downloads, analyses, exports and checks."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.files import write_atomic
from asysi.weights.reading.checkpoint import Checkpoint, open_checkpoint
from asysi.weights.reading.places import cache_identity, resolve_cache
from asysi.weights.reading.storage import Backend, is_remote
from asysi.weights.reporting.report import WeightsPage, build
from asysi.weights.run.download import Download, default_folder, download, read_record
from asysi.weights.run.export_checks import CHECK_FILE, SPOT_CHECKS, check_export
from asysi.weights.run.plan import Done, WorkPlan, WorkStep
from asysi.weights.statistics.analysis import (
    DEVICE,
    CheckpointAnalysis,
    CheckpointOrigin,
    Progress,
    Selection,
    Settings,
    analyze,
)
from asysi.weights.tables.columns import NAMES, Row
from asysi.weights.tables.export import (
    ERRORS_FILE,
    META_FILE,
    Format,
    run_meta,
    write_errors,
    write_meta,
    write_table,
)

log = logging.getLogger("asysi.weights")

PLAN_FILE = "plan.json"
JOURNAL_FILE = ".params.journal.jsonl"
REPORT_FILE = "report.html"
FETCHING = "a failed download is resumed, then tried at the next --mirror"
Begin = Callable[[int], Progress]
"""Called with the number of bytes to analyse; returns the callback for finished tensors."""


@dataclass(frozen=True, slots=True)
class AnalysisOutcome:
    """The result of a run."""

    passed: bool
    rows: int
    problems: list[str]
    failures: list[str]
    """Checks that failed."""
    folder: Path
    notes: list[str] = field(default_factory=list)
    """Files that were not read, and why."""
    reused: int = 0
    """Number of rows reused from the last run."""
    seconds: float = 0.0
    """Duration of the analysis."""


DOWNLOAD_STEP = WorkStep(
    "download", "fetches the checkpoint into {models}", "every file has the hash that its source says"
)
STEPS = (
    WorkStep(
        "read",
        "opens every file of the checkpoint and reads its header",
        "every tensor can be located, none is lost",
    ),
    WorkStep("analyze", "computes statistics, ranks and spectra of every tensor", "every tensor has its row"),
    WorkStep("export", "writes {files}", "the files are there"),
    WorkStep(
        "check",
        "reads the table back",
        "rows, columns, missing values and {spots} spot checks against numpy hold",
    ),
)


@dataclass(frozen=True, slots=True)
class Job:
    """A table to create from a checkpoint, and its settings."""

    table: Path
    form: Format = "csv"
    settings: Settings = field(default_factory=Settings)
    selection: Selection = field(default_factory=Selection)
    model_id: str | None = None
    """Name to write into the table; unset uses the download's record, or the folder's name."""
    revision: str | None = None
    """Requested branch, tag or commit."""
    workers: int | None = None
    backend: Backend = "pread"
    report: bool = False
    """Whether the page is also written."""

    @property
    def files(self) -> list[Path]:
        """Files that the job writes."""
        names = (META_FILE, *([REPORT_FILE] if self.report else []), CHECK_FILE)
        return [self.table, *(self.table.with_name(name) for name in names)]


def run(
    model: str,
    job: Job,
    *,
    models: Path,
    offline: bool = False,
    endpoint: str | None = None,
    mirrors: Sequence[str] = (),
    fallback_revisions: Sequence[str] = (),
    say: Callable[[str], None] = lambda _line: None,
    begin: Begin = lambda _bytes: lambda _name, _size: None,
) -> AnalysisOutcome:
    """Download, analyse, export and check a model; run again, it does only what is not verified yet.

    Args:
        model: `owner/name` on the hub, a folder on this machine, or the address of a store (which is read in
            place).
        job: the table to create.
        models: folder that hub models are fetched into.
        offline: fetch nothing.
        endpoint: address of a mirror.
        mirrors: addresses tried when the endpoint fails.
        fallback_revisions: revisions tried if the job's does not exist.
        say: called with one line per step.
        begin: called with the number of bytes to analyse.

    Raises:
        ConfigError: the model cannot be fetched, or nothing in it can be read.
    """
    plan = _planned(model, job, (DOWNLOAD_STEP, *STEPS), say, models=str(models), offline=offline)
    found: Download | None = plan.carry_out(
        "download",
        lambda: _downloaded(
            model, models, job, offline=offline, endpoint=endpoint, mirrors=mirrors,
            fallback_revisions=fallback_revisions,
        ),
    )  # fmt: skip
    return _table_made(str(found.folder) if found else model, job, plan, begin, found)


def analyze_into(
    model: str,
    job: Job,
    *,
    say: Callable[[str], None] = lambda _line: None,
    begin: Begin = lambda _bytes: lambda _name, _size: None,
) -> AnalysisOutcome:
    """Analyse, export and check a checkpoint on this machine or at an address.

    Raises:
        ConfigError: nothing could be read.
    """
    return _table_made(model, job, _planned(model, job, STEPS, say), begin)


def _planned(
    model: str, job: Job, steps: Sequence[WorkStep], say: Callable[[str], None], *,
    models: str = "", **inputs: Any,
) -> WorkPlan:  # fmt: skip
    """Write the plan of a job next to its table."""
    table = job.table
    words = {
        "models": models,
        "files": ", ".join(file.name for file in job.files if file.name != CHECK_FILE),
        "spots": str(SPOT_CHECKS),
    }
    head = {
        "goal": f"a table of every parameter of {model}, checked",
        "inputs": {
            "model": model,
            "revision": job.revision,
            "device": DEVICE,
            "precision": "as stored; figures are computed in float64",
            "settings": asdict(job.settings),
            "filter": asdict(job.selection),
            **inputs,
        },
        "outputs": [str(file) for file in job.files],
        "columns": list(NAMES),
        "fallbacks": [
            *([FETCHING] if DOWNLOAD_STEP in steps else []),
            f"a tensor that cannot be read is listed, also in {ERRORS_FILE}; the others are analysed",
            "an analysis that was stopped continues after the rows in " + JOURNAL_FILE,
        ],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    table.parent.mkdir(parents=True, exist_ok=True)
    plan = WorkPlan(table.with_name(PLAN_FILE), head, [step.worded(words) for step in steps], say)
    say(f"plan in {plan.file}")
    return plan


def _table_made(
    source: str, job: Job, plan: WorkPlan, begin: Begin, found: Download | None = None
) -> AnalysisOutcome:
    """Carry out the steps from reading to checking."""
    checkpoint, names = plan.carry_out("read", lambda: _read(source, job))
    with checkpoint:
        checkpoint.notes.extend(found.notes if found else ())
        identity = identity_of(checkpoint.source, found, model_id=job.model_id, revision=job.revision)
        analysis = plan.carry_out("analyze", lambda: _analysed(checkpoint, identity, job, names, begin))
        plan.carry_out("export", lambda: _exported(analysis, checkpoint, job))
        failures = plan.carry_out("check", lambda: check_export(job.table, checkpoint, analysis, names))
    problems = [problem.listed for problem in analysis.problems]
    return AnalysisOutcome(
        not problems and not failures, len(analysis.rows), problems, failures, job.table.parent,
        list(checkpoint.notes), analysis.reused, analysis.seconds,
    )  # fmt: skip


def identity_of(source: str | Path, found: Download | None = None, *, model_id: str | None = None,
                revision: str | None = None) -> CheckpointOrigin:  # fmt: skip
    """Return the origin of a checkpoint: as given, as its download recorded, or from its folder's name."""
    if is_remote(str(source)):
        name = str(source).rstrip("/").rpartition("/")[2]
        return CheckpointOrigin(str(source), model_id or name, revision or "local")
    folder = resolve_cache(Path(source).expanduser(), revision)
    record = read_record(folder) if folder.is_dir() else {}
    named = default_folder(Path(), str(folder)).name if folder.is_dir() else folder.stem
    cached = cache_identity(folder) or (named, revision or "local")
    return CheckpointOrigin(
        str(folder),
        model_id or (found.model_id if found else None) or str(record.get("model_id") or cached[0]),
        (found.revision if found else None) or str(record.get("revision") or "") or cached[1],
    )


def _read(source: str, job: Job) -> Done[tuple[Checkpoint, list[str]]]:
    if not is_remote(source):
        source = str(resolve_cache(Path(source).expanduser(), job.revision))
    checkpoint = open_checkpoint(source, backend=job.backend)
    try:
        names = job.selection.of(checkpoint.tensors)
    except ConfigError:
        checkpoint.close()
        raise
    count, files, problems = len(checkpoint.tensors), len(checkpoint.files), len(checkpoint.problems)
    chosen = f"{len(names)} of {count}" if len(names) < count else f"{count}"
    return Done(
        (checkpoint, names),
        note=f"{chosen} tensors in {files} files, {problems} problems, {len(checkpoint.notes)} notes",
    )


def _downloaded(model: str, models: Path, job: Job, **options: Any) -> Done[Download | None]:
    if is_remote(model):
        return Done(None, "skipped", f"{model} is read where it is")
    if Path(model).expanduser().exists():
        return Done(None, "skipped", f"{model} is on this machine")
    folder = default_folder(models, model)
    done = download(model, folder, job.revision, workers=job.workers or 4, **options)
    state = "done" if done.fetched else "skipped"
    note = "; ".join([f"{len(done.files)} files at {done.revision}, verified", *done.notes])
    return Done(done, state, note)


def _analysed(
    checkpoint: Checkpoint, identity: CheckpointOrigin, job: Job, names: Sequence[str], begin: Begin
) -> Done[CheckpointAnalysis]:
    progress = begin(sum(checkpoint.tensors[name].nbytes for name in names))
    analysis = analyze(
        checkpoint,
        identity,
        job.settings,
        workers=job.workers,
        journal=job.table.with_name(JOURNAL_FILE),
        progress=progress,
        names=names,
    )
    write_errors(analysis.problems, job.table.parent)
    if not analysis.rows:
        raise ConfigError(
            *(problem.listed for problem in analysis.problems),
            f"{identity.model_path}: nothing could be read",
        )
    fresh = len(analysis.rows) - analysis.reused
    return Done(
        analysis,
        "done" if fresh else "skipped",
        f"{fresh} analysed, {analysis.reused} unchanged since the last run",
    )


def _exported(analysis: CheckpointAnalysis, checkpoint: Checkpoint, job: Job) -> Done[Path]:
    write_table(analysis.rows, job.table, job.form)
    meta = meta_of(
        analysis, requested=job.revision, selection=job.selection, of=len(checkpoint.tensors),
        notes=checkpoint.notes,
    )  # fmt: skip
    write_meta(meta, job.table.parent)
    if job.report:
        write_atomic(job.table.with_name(REPORT_FILE), build(page_of(analysis, meta)))
    return Done(job.table, note=f"{len(analysis.rows)} rows in {job.table.name}")


def meta_of(
    analysis: CheckpointAnalysis,
    *,
    requested: str | None = None,
    selection: Selection | None = None,
    of: int | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return `run_meta.json` of an analysis.

    Args:
        analysis: the finished analysis.
        requested: requested revision, None if there was none.
        selection: which parameters were selected.
        of: number of parameters in the checkpoint.
        notes: files that were not read, and why.
    """
    identity, rows = analysis.identity, analysis.rows
    chosen = selection or Selection()
    return run_meta(
        model_id=identity.model_id, revision=identity.revision, model_path=identity.model_path,
        requested_revision=requested, resolved_revision=identity.revision, precision=precision_of(rows),
        filter={"include": chosen.include, "exclude": chosen.exclude,
                "parameters": f"{len(rows)} of {len(rows) if of is None else of} parameters"},
        settings=asdict(analysis.settings), problems=[problem.listed for problem in analysis.problems],
        notes=list(notes),
        seconds=analysis.seconds, rows=len(rows), reused=analysis.reused,
        seed=analysis.settings.seed,
    )  # fmt: skip


def precision_of(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Return the number of tensors and stored bytes per stored type."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        one = found.setdefault(str(row["dtype"]), {"tensors": 0, "bytes": 0})
        one["tensors"] += 1
        one["bytes"] += int(row["bytes"])
    return found


def page_of(analysis: CheckpointAnalysis, meta: Mapping[str, Any], **more: Any) -> WeightsPage:
    """Return the page on an analysis."""
    problems = [problem.listed for problem in analysis.problems]
    return WeightsPage(analysis.identity.model_id, analysis.rows, problems, meta, **more)
