"""`asysi weights run`: writes down its plan, skips what is verified, downloads, analyses, exports, checks."""

import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from asysi.contract.errors import ConfigError
from asysi.files import write_atomic
from asysi.weights.analysis import Analysis, Identity, Selection, Settings, analyze
from asysi.weights.checkpoint import Checkpoint, open_checkpoint
from asysi.weights.columns import COLUMNS, NAMES, ORIGINAL, Row
from asysi.weights.download import Download, default_folder, download, read_record
from asysi.weights.export import META_FILE, Format, read_table, run_meta, write_meta, write_table
from asysi.weights.places import cache_identity, resolve_cache
from asysi.weights.report import WeightsPage, build

log = logging.getLogger("asysi.weights")

PLAN_FILE = "plan.json"
CHECK_FILE = "check.json"
JOURNAL_FILE = ".params.journal.jsonl"
REPORT_FILE = "report.html"
SPOT_CHECKS = 5
_SPOT_ELEMENTS = 1 << 24
"""Elements of a tensor that is checked again at most: numpy computes it anew as a whole."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the plan, as it stands."""

    name: str
    does: str
    """What it does, and what it produces."""
    done_when: str
    """What must hold for it to be done."""
    state: str = "planned"
    """planned | skipped | done | failed."""
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has come to."""

    passed: bool
    rows: int
    problems: list[str]
    failures: list[str]
    """Checks that failed."""
    folder: Path


STEPS = (
    Step("download", "fetches the checkpoint into {models}", "every file has the hash that its source says"),
    Step(
        "read",
        "opens every file of the checkpoint and reads its header",
        "every tensor has a place, none is lost",
    ),
    Step("analyze", "computes statistics, ranks and spectra of every tensor", "every tensor has its row"),
    Step("export", "writes {table}, run_meta.json and report.html", "the files are there"),
    Step(
        "check",
        "reads the table back",
        "rows, columns, missing values and {spots} spot checks against numpy hold",
    ),
)


class Plan:
    """The plan of a run in `plan.json`, written before anything is done and after every step."""

    def __init__(self, file: Path, head: Mapping[str, Any], steps: Sequence[Step]) -> None:
        self._file, self._head, self.steps = file, dict(head), list(steps)
        self._write()

    def settle(self, name: str, state: str, began: float, note: str = "") -> None:
        """Say how the step `name` ended."""
        seconds = round(time.monotonic() - began, 3)
        self.steps = [
            replace(one, state=state, seconds=seconds, note=note) if one.name == name else one
            for one in self.steps
        ]
        log.info("%s: %s in %.1f s%s", name, state, seconds, f" ({note})" if note else "")
        self._write()

    def _write(self) -> None:
        content = {**self._head, "steps": [asdict(step) for step in self.steps]}
        write_atomic(self._file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def run(
    model: str,
    out: Path,
    *,
    models: Path,
    revision: str | None = None,
    form: Format = "csv",
    settings: Settings | None = None,
    workers: int | None = None,
    offline: bool = False,
    endpoint: str | None = None,
    say: Callable[[str], None] = lambda _line: None,
    progress: Callable[[str, int], None] = lambda _name, _bytes: None,
) -> Outcome:
    """Download, analyse, export and check a model; run again, it does only what is not verified yet.

    Args:
        model: `owner/name` on the hub, or a folder on this machine (which is read where it is).
        out: folder of the results.
        models: folder that hub models are fetched into.
        revision: branch, tag or commit.
        form: format of the table.
        settings: of the analysis.
        workers: files and tensors at once.
        offline: fetch nothing.
        endpoint: address of a mirror.
        say: told each step in a line.
        progress: told each tensor that is done.

    Raises:
        ConfigError: the model cannot be had, or nothing of it can be read.
    """
    settings = settings or Settings()
    table = out / f"params.{form}"
    words = {"models": str(models), "table": table.name, "spots": str(SPOT_CHECKS)}
    head = {
        "goal": f"a table of every parameter of {model}, checked",
        "inputs": {
            "model": model,
            "revision": revision,
            "device": "cpu",
            "settings": asdict(settings),
            "offline": offline,
        },
        "outputs": [str(file) for file in (table, out / META_FILE, out / REPORT_FILE, out / CHECK_FILE)],
        "columns": list(NAMES),
        "fallbacks": [
            "a failed download is tried again and goes on where it ended; --endpoint takes a mirror",
            "a tensor that cannot be read is listed, the others are analysed",
            "an analysis that was stopped goes on behind the rows in " + JOURNAL_FILE,
        ],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(out / PLAN_FILE, head, [_worded(step, words) for step in STEPS])
    say(f"plan in {out / PLAN_FILE}")

    def step(name: str, action: Callable[[], tuple[Any, str, str]]) -> Any:
        began = time.monotonic()
        try:
            result, state, note = action()
        except Exception as error:
            plan.settle(name, "failed", began, str(error))
            raise
        plan.settle(name, state, began, note)
        say(f"{name:<9} {state}{f': {note}' if note else ''}")
        return result

    found: Download | None = step(
        "download", lambda: _downloaded(model, models, revision, workers, endpoint, offline=offline)
    )
    folder = found.folder if found else Path(model).expanduser()
    identity = identity_of(folder, found)
    with open_checkpoint(folder) as checkpoint:
        step("read", lambda: (None, "done", _opening(checkpoint)))
        analysis: Analysis = step(
            "analyze",
            lambda: _analysed(
                checkpoint, identity, settings, workers=workers, journal=out / JOURNAL_FILE, progress=progress
            ),
        )
        step("export", lambda: _exported(analysis, out, table, form))
        failures: list[str] = step("check", lambda: _checked(table, checkpoint, analysis, out / CHECK_FILE))
    problems = [problem.listed for problem in analysis.problems]
    return Outcome(not problems and not failures, len(analysis.rows), problems, failures, out)


def identity_of(folder: Path, found: Download | None = None, *, model_id: str | None = None,
                revision: str | None = None) -> Identity:  # fmt: skip
    """Return where a checkpoint comes from: as told, as its download recorded, or its folder's name."""
    folder = resolve_cache(folder, revision)
    record = read_record(folder) if folder.is_dir() else {}
    named = default_folder(Path(), str(folder)).name if folder.is_dir() else folder.stem
    cached = cache_identity(folder) or (named, revision or "local")
    return Identity(
        str(folder),
        model_id or (found.model_id if found else None) or str(record.get("model_id") or cached[0]),
        (found.revision if found else None) or str(record.get("revision") or "") or cached[1],
    )


def _opening(checkpoint: Checkpoint) -> str:
    count, files, problems = len(checkpoint.tensors), len(checkpoint.files), len(checkpoint.problems)
    return f"{count} tensors in {files} files, {problems} problems"


def _worded(step: Step, words: Mapping[str, str]) -> Step:
    return replace(step, does=step.does.format(**words), done_when=step.done_when.format(**words))


def _downloaded(
    model: str,
    models: Path,
    revision: str | None,
    workers: int | None,
    endpoint: str | None,
    *,
    offline: bool,
) -> tuple[Download | None, str, str]:
    if Path(model).expanduser().exists():
        return None, "skipped", f"{model} is on this machine"
    done = download(
        model,
        default_folder(models, model),
        revision,
        workers=workers or 4,
        endpoint=endpoint,
        offline=offline,
    )
    state = "done" if done.fetched else "skipped"
    return done, state, f"{len(done.files)} files at {done.revision}, verified"


def _analysed(
    checkpoint: Checkpoint, identity: Identity, settings: Settings, *, workers: int | None, journal: Path,
    progress: Callable[[str, int], None],
) -> tuple[Analysis, str, str]:  # fmt: skip
    analysis = analyze(checkpoint, identity, settings, workers=workers, journal=journal, progress=progress)
    if not analysis.rows:
        raise ConfigError(
            *(problem.listed for problem in analysis.problems),
            f"{identity.model_path}: nothing could be read",
        )
    fresh = len(analysis.rows) - analysis.reused
    return (
        analysis,
        "done" if fresh else "skipped",
        f"{fresh} analysed, {analysis.reused} unchanged since the last time",
    )


def _exported(analysis: Analysis, out: Path, table: Path, form: Format) -> tuple[Path, str, str]:
    write_table(analysis.rows, table, form)
    meta = meta_of(analysis)
    write_meta(meta, out)
    write_atomic(out / REPORT_FILE, build(page_of(analysis, meta)))
    return table, "done", f"{len(analysis.rows)} rows in {table.name}"


def meta_of(
    analysis: Analysis,
    *,
    requested: str | None = None,
    selection: Selection | None = None,
    of: int | None = None,
) -> dict[str, Any]:
    """Return `run_meta.json` of an analysis.

    Args:
        analysis: done.
        requested: revision that was asked for, None where none was.
        selection: which parameters were wanted.
        of: parameters that the checkpoint has.
    """
    identity, rows = analysis.identity, analysis.rows
    chosen = selection or Selection()
    return run_meta(
        model_id=identity.model_id, revision=identity.revision, model_path=identity.model_path,
        requested_revision=requested, resolved_revision=identity.revision, precision=precision_of(rows),
        filter={"include": chosen.include, "exclude": chosen.exclude,
                "parameters": f"{len(rows)} of {len(rows) if of is None else of} parameters"},
        settings=asdict(analysis.settings), problems=[problem.listed for problem in analysis.problems],
        seconds=analysis.seconds, rows=len(rows), reused=analysis.reused,
        seed=analysis.settings.seed,
    )  # fmt: skip


def precision_of(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Return tensors and stored bytes of each stored type."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        one = found.setdefault(str(row["dtype"]), {"tensors": 0, "bytes": 0})
        one["tensors"] += 1
        one["bytes"] += int(row["bytes"])
    return found


def page_of(analysis: Analysis, meta: Mapping[str, Any], **more: Any) -> WeightsPage:
    """Return what the page on an analysis shows."""
    problems = [problem.listed for problem in analysis.problems]
    return WeightsPage(analysis.identity.model_id, analysis.rows, problems, meta, **more)


def _checked(
    table: Path, checkpoint: Checkpoint, analysis: Analysis, file: Path
) -> tuple[list[str], str, str]:
    rows = read_table(table)
    failures = check_table(rows, checkpoint, analysis)
    spots, wrong = spot_checks(rows, checkpoint, analysis.settings)
    failures += wrong
    content = {
        "rows": len(rows),
        "columns": len(rows[0]) if rows else 0,
        "failures": failures,
        "spot_checks": spots,
    }
    write_atomic(file, json.dumps(content, indent=1) + "\n")
    return (
        failures,
        "failed" if failures else "done",
        "; ".join(failures[:3]) or f"{len(spots)} spot checks agree",
    )


def check_table(rows: Sequence[Row], checkpoint: Checkpoint, analysis: Analysis) -> list[str]:
    """Return what is wrong with an exported table: rows, columns and missing values."""
    failures = []
    lost = {name for problem in analysis.problems for name in problem.tensors}
    expected = [name for name in checkpoint.tensors if name not in lost]
    found = [str(row.get("param_name")) for row in rows]
    if sorted(found) != sorted(expected):
        failures.append(f"the table has {len(found)} rows, {len(expected)} tensors were to be analysed")
    if rows and tuple(rows[0])[: len(NAMES)] != NAMES:
        failures.append(f"the columns are not the {ORIGINAL} of the design and ours, in that order")
    required = [column.name for column in COLUMNS if column.required]
    for row in rows:
        if missing := [name for name in required if row.get(name) is None]:
            failures.append(f"{row.get('param_name')}: no {', '.join(missing)}")
        if row.get("finite") and row.get("mean") is None:
            failures.append(f"{row.get('param_name')}: no mean")
    return failures


def spot_checks(
    rows: Sequence[Row], checkpoint: Checkpoint, settings: Settings
) -> tuple[list[Row], list[str]]:
    """Compute a few rows again with numpy, in float64 and as a whole; return errors, and what disagrees."""
    able = [
        row
        for row in rows
        if row["elements"] and row["elements"] <= _SPOT_ELEMENTS and row["param_name"] in checkpoint.tensors
    ]
    chosen = random.Random(settings.seed).sample(able, min(SPOT_CHECKS, len(able)))  # noqa: S311 - no secret
    spots, wrong = [], []
    for row in chosen:
        whole = checkpoint.tensors[row["param_name"]].array().astype(np.float64)
        values = whole[np.isfinite(whole)]
        if not values.size:
            continue
        truth = {"mean": values.mean(), "std": values.std(), "var": values.var(),
                 "min": values.min(), "max": values.max(),
                 "sparsity": float((np.abs(whole) <= settings.zero_epsilon).mean())}  # fmt: skip
        scale = float(np.abs(values).max()) or 1.0
        errors = {name: abs(float(value) - row[name]) for name, value in truth.items()}
        spots.append({"param_name": row["param_name"], "errors": errors})
        wrong += [
            f"{row['param_name']}: {name} is {row[name]!r}, numpy says {float(truth[name])!r}"
            for name, error in errors.items()
            if error > 1e-9 * (scale**2 if name == "var" else 1.0 if name == "sparsity" else scale)
        ]
    return spots, wrong
