"""`asysi weights`: download, analyse, compare and report on what parameters say."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Exit
from asysi.locations import local_folder

if TYPE_CHECKING:
    from asysi.weights.reading.checkpoint import Checkpoint
    from asysi.weights.run.orchestrator import AnalysisOutcome
    from asysi.weights.statistics.analysis import Selection, Settings

app = typer.Typer(help="Analyse the parameters of a checkpoint.", no_args_is_help=True)


class _Form(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


class _Method(StrEnum):
    AUTO = "auto"
    SVD = "svd"
    GRAM = "gram"
    RANDOMIZED = "randomized"


class _Stats(StrEnum):
    FULL = "full"
    BASIC = "basic"


class _Backend(StrEnum):
    PREAD = "pread"
    MMAP = "mmap"


_Source = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Folder or file of safetensors, GGUF or npz, or an fsspec address."),
]


def _here(folder: Path | None) -> Path | None:
    """Return a local path; the address of a store is rejected instead of read as a folder named `s3:`."""
    return folder and local_folder(folder, "the path", "tables and models are written to a disk")


_Out = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="DIR", callback=_here, help="Folder of the results."),
]
_Forms = Annotated[_Form, typer.Option("--format", help="Format of the table.")]
_Methods = Annotated[
    _Method, typer.Option("--method", help="How singular values are found; auto chooses by size.")
]
_Backends = Annotated[_Backend, typer.Option("--backend", help="How local files are read.")]
_Epsilon = Annotated[float, typer.Option("--zero-epsilon", help="Elements up to this size count as zero.")]
_RankK = Annotated[
    int, typer.Option("--rank-k", help="Singular values that the randomized method looks for.")
]
_Spectra = Annotated[
    bool, typer.Option("--spectra/--no-spectra", help="Whether singular values are computed.")
]
_Statistics = Annotated[
    _Stats,
    typer.Option(
        "--stats",
        help="basic: mean, deviation, extremes, zeros, NaN; faster, without quantiles, spectra, hashes.",
    ),
]
_Seed = Annotated[int, typer.Option("--seed", help="Seed of the randomized method.")]
_Workers = Annotated[
    int | None, typer.Option("--workers", help="Tensors, or files, at once; unset takes all processors.")
]
_Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a model on the hub.")
]
_Endpoint = Annotated[
    str | None, typer.Option("--endpoint", metavar="URL", help="Address of a mirror of the hub.")
]
_Mirrors = Annotated[
    list[str] | None,
    typer.Option(
        "--mirror",
        metavar="URL",
        envvar="ASYSI_HUB_MIRRORS",
        help="Fallback address when the endpoint fails or sends unexpected bytes; repeatable.",
    ),
]
_Revisions = Annotated[
    list[str] | None,
    typer.Option("--fallback-revision", metavar="REV", help="Used if --revision does not exist; repeatable."),
]
_Offline = Annotated[bool, typer.Option("--offline", help="Fetch nothing; verify what is there.")]
_Exact = Annotated[int, typer.Option("--exact-side", help="Maximum shorter side for an exact spectrum.")]
_Include = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="GLOB", help="Only parameters whose names match; repeatable."),
]
_Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="GLOB", help="No parameters whose names match; repeatable."),
]


@app.command("download")
def download_command(  # noqa: PLR0917 - each is an option of the command
    model: Annotated[str, typer.Argument(metavar="MODEL", help="owner/name on the hub, or a folder.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", callback=_here, help="Folder that holds models.")
    ] = Path("data/models"),
    revision: _Revision = None,
    workers: Annotated[int, typer.Option("--workers", help="Files at once.")] = 4,
    retries: Annotated[
        int, typer.Option("--retries", help="Attempts after the first when the network fails.")
    ] = 5,
    endpoint: _Endpoint = None,
    mirror: _Mirrors = None,
    fallback_revision: _Revisions = None,
    offline: _Offline = False,
) -> None:
    """Fetch a model into DIR/owner/name and verify the hash of every file.

    Files that are already verified are not fetched again; an interrupted download resumes where it stopped.
    Next to the folder are NAME.plan.json, NAME.result.json (shards, bytes, hashes) and a log. Exit code 1:
    shards are missing.
    """
    from asysi.weights.run.download import default_folder, download  # noqa: PLC0415 - not needed for the help

    done = download(
        model,
        default_folder(output, model),
        revision,
        workers=workers,
        retries=retries,
        endpoint=endpoint,
        mirrors=mirror or (),
        fallback_revisions=fallback_revision or (),
        offline=offline,
    )
    state = "fetched" if done.fetched else "verified already"
    typer.echo(f"{done.folder}: {len(done.files)} files, {done.size:,} bytes at {done.revision}, {state}")
    _list([f"note: {note}" for note in done.notes])
    _list(done.problems)
    if done.problems:
        raise typer.Exit(Exit.FAILED)


@app.command("analyze")
def analyze_command(  # noqa: PLR0917 - each is an option of the command
    model: _Source,
    output: _Out = Path("data/outputs"),
    output_format: _Forms = _Form.CSV,
    method: _Methods = _Method.AUTO,
    zero_epsilon: _Epsilon = 1e-8,
    rank_k: _RankK = 128,
    exact_side: _Exact = 4096,
    spectra: _Spectra = True,
    stats: _Statistics = _Stats.FULL,
    seed: _Seed = 0,
    workers: _Workers = None,
    backend: _Backends = _Backend.PREAD,
    model_id: Annotated[str | None, typer.Option("--model-id", help="Name to write into the table.")] = None,
    revision: _Revision = None,
    include: _Include = None,
    exclude: _Exclude = None,
) -> None:
    """Compute statistics, ranks and spectra of every tensor: DIR/params.csv and run_meta.json.

    The plan, with the state of every step, is DIR/plan.json; the table is read back and checked against
    numpy, and the result is in DIR/check.json. Tensors that cannot be read are listed and written to
    DIR/errors.log; all others are analysed, and the exit code is 1. Run again, it skips tensors that are
    done and have not changed.
    """
    _require()
    from asysi.weights.run.orchestrator import Job, analyze_into  # noqa: PLC0415

    settings = _settings(zero_epsilon, method, rank_k, exact_side, seed, spectra=spectra, stats=stats)
    with _bar("analysing") as begin:
        done = analyze_into(
            model,
            Job(
                output / f"params.{output_format.value}", output_format.value, settings,
                _selection(include, exclude), model_id, revision, workers, backend.value,
            ),
            begin=begin,
        )  # fmt: skip
    _told(done, output / f"params.{output_format.value}")


@app.command("compare")
def compare_command(  # noqa: PLR0917 - each is an option of the command
    first: Annotated[str, typer.Argument(metavar="BEFORE", help="Checkpoint, as for analyze.")],
    second: Annotated[str, typer.Argument(metavar="AFTER", help="Checkpoint, as for analyze.")],
    output: _Out = Path("data/outputs"),
    output_format: _Forms = _Form.CSV,
    directions: Annotated[
        int, typer.Option("--directions", "-k", help="Singular directions that are compared.")
    ] = 16,
    exact_side: _Exact = 4096,
    spectra: _Spectra = True,
    workers: _Workers = None,
    backend: _Backends = _Backend.PREAD,
) -> None:
    """Compare two checkpoints: norms and spectra of the change, angles between directions, per tensor.

    AFTER may be a LoRA adapter of BEFORE. Tensors are paired by name, then by prefix, GGUF's names, equal
    bytes, or correlation; of a resized vocabulary the common rows are compared. Writes DIR/difference.csv
    and run_meta.json.
    """
    from asysi.weights.comparing.compare import DIFFERENCE_COLUMNS, compare, said_in_short, totals  # noqa: PLC0415
    from asysi.weights.reporting.formatting import short_number  # noqa: PLC0415
    from asysi.weights.tables.export import run_meta, write_meta, write_table  # noqa: PLC0415

    with (
        _opened(first, backend.value) as one,
        _opened(second, backend.value) as two,
        _bar("comparing") as begin,
    ):
        advance = begin(sum(tensor.nbytes for tensor in one.tensors.values()))
        done = compare(
            one, two, k=directions, spectra=spectra, exact_side=exact_side, workers=workers, progress=advance
        )
    problems = [problem.listed for problem in done.problems]
    file = write_table(
        done.rows, output / f"difference.{output_format.value}", output_format.value, DIFFERENCE_COLUMNS
    )
    meta = run_meta(
        model_id=second, revision="", model_path=second, problems=problems,
        settings={"k": directions, "spectra": spectra},
        seconds=done.seconds, compared_with=first,
    )  # fmt: skip
    write_meta(meta, output)
    found = totals(done.rows)
    typer.echo(f"{file}: {said_in_short(found)}; ‖Δ‖/‖W‖ {short_number(found['delta_relative'])}")
    _list(problems)
    if problems:
        raise typer.Exit(Exit.FAILED)


@app.command("report")
def report_command(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="params or difference, .csv, .jsonl or .parquet.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            callback=_here,
            help="Unset writes report.html beside the table.",
        ),
    ] = None,
    difference: Annotated[
        Path | None,
        typer.Option("--difference", metavar="TABLE", help="Table of compare, shown on the page."),
    ] = None,
) -> None:
    """Write one HTML page with plots per layer from a table."""
    import json  # noqa: PLC0415

    from asysi.files import write_atomic  # noqa: PLC0415
    from asysi.weights.comparing.compare import DIFFERENCE_COLUMNS  # noqa: PLC0415
    from asysi.weights.reporting.report import WeightsPage, build  # noqa: PLC0415
    from asysi.weights.tables.export import META_FILE, is_table_of, read_table  # noqa: PLC0415

    rows, differences = [], read_table(difference, DIFFERENCE_COLUMNS) if difference else []
    if difference is None and is_table_of(table, DIFFERENCE_COLUMNS):
        difference, differences = table, read_table(table, DIFFERENCE_COLUMNS)
    else:
        rows = read_table(table)
    if not rows and not differences:
        raise ConfigError(f"{table} holds no row: analyse a model first")
    beside = table.with_name(META_FILE)
    meta = json.loads(beside.read_text()) if beside.is_file() else {}
    page = WeightsPage(
        name=str(rows[0]["model_id"] if rows else meta.get("model_id", table.stem)),
        rows=rows,
        problems=meta.get("problems", []),
        meta=meta,
        differences=differences,
        against=f"As {difference} says:" if difference else "",
    )
    file = output or table.with_name("report.html")
    write_atomic(file, build(page))
    typer.echo(f"{file}")


@app.command("run")
def run_command(  # noqa: PLR0917 - each is an option of the command
    model: Annotated[str, typer.Argument(metavar="MODEL", help="owner/name on the hub, or a folder.")],
    output: _Out = Path("data/outputs"),
    models: Annotated[
        Path, typer.Option("--models", metavar="DIR", callback=_here, help="Folder that holds models.")
    ] = Path("data/models"),
    revision: _Revision = None,
    output_format: _Forms = _Form.CSV,
    method: _Methods = _Method.AUTO,
    zero_epsilon: _Epsilon = 1e-8,
    rank_k: _RankK = 128,
    exact_side: _Exact = 4096,
    spectra: _Spectra = True,
    stats: _Statistics = _Stats.FULL,
    seed: _Seed = 0,
    workers: _Workers = None,
    endpoint: _Endpoint = None,
    mirror: _Mirrors = None,
    fallback_revision: _Revisions = None,
    offline: _Offline = False,
    include: _Include = None,
    exclude: _Exclude = None,
) -> None:
    """Plan, download, analyse, export and check in one command; run again, it skips what is verified.

    The plan, with the state of every step, is DIR/plan.json; the checks are in DIR/check.json.
    """
    _require()
    from asysi.weights.run.orchestrator import Job, run  # noqa: PLC0415

    table = output / f"params.{output_format.value}"
    settings = _settings(zero_epsilon, method, rank_k, exact_side, seed, spectra=spectra, stats=stats)
    with _bar("analysing") as begin:
        done = run(
            model,
            Job(table, output_format.value, settings, _selection(include, exclude),
                revision=revision, workers=workers, report=True),
            models=models, offline=offline, endpoint=endpoint, mirrors=mirror or (),
            fallback_revisions=fallback_revision or (), say=typer.echo, begin=begin,
        )  # fmt: skip
    _told(done, table)


def _selection(include: list[str] | None, exclude: list[str] | None) -> "Selection":
    from asysi.weights.statistics.analysis import Selection  # noqa: PLC0415

    return Selection(tuple(include or ()), tuple(exclude or ()))


def _told(done: "AnalysisOutcome", table: Path) -> None:
    """Print the result of a table; notes and problems go to stderr.

    Raises:
        Exit: with code 1 if there are problems.
    """
    _list([f"note: {note}" for note in done.notes])
    again = f", {done.reused} of them unchanged since the last run" if done.reused else ""
    typer.echo(f"{table}: {done.rows} parameters{again}, {done.seconds:.1f} s")
    _list([*done.problems, *done.failures])
    if not done.passed:
        raise typer.Exit(Exit.FAILED)


def _settings(
    zero_epsilon: float,
    method: _Method,
    rank_k: int,
    exact_side: int,
    seed: int,
    *,
    spectra: bool,
    stats: _Stats,
) -> "Settings":
    from asysi.weights.statistics.analysis import Settings  # noqa: PLC0415

    if not 0 <= zero_epsilon < float("inf"):
        raise ConfigError(
            f"--zero-epsilon {zero_epsilon} is not a valid size: take 0 or a small positive number"
        )
    if rank_k < 1 or exact_side < 1:
        raise ConfigError(f"--rank-k {rank_k} and --exact-side {exact_side} must be at least 1")
    return Settings(zero_epsilon, spectra, method.value, rank_k, exact_side, seed, stats.value)


def _require() -> None:
    missing = [name for name in ("numpy", "ml_dtypes", "threadpoolctl", "xxhash") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"this command needs {', '.join(missing)}: pip install 'asysi[weights]'")


@contextmanager
def _opened(model: str, backend: str) -> Iterator["Checkpoint"]:
    _require()
    from asysi.weights.reading.checkpoint import open_checkpoint  # noqa: PLC0415

    with open_checkpoint(model, backend="mmap" if backend == "mmap" else "pread") as checkpoint:
        yield checkpoint


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int], Callable[[str, int], None]]]:
    """Show progress in bytes on stderr if it is a terminal; yields a callable that takes the total."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def begin(total: int) -> Callable[[str, int], None]:
            bar.update(task, total=total)
            return lambda name, size: bar.update(task, advance=size, description=name[-40:])

        yield begin


def _list(problems: Sequence[str]) -> None:
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
