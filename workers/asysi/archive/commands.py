"""`asysi mscan`: inspect, verify, repair, print, merge and export archives."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asysi.contract.errors import ConfigError
from asysi.locations import given, local_folder

if TYPE_CHECKING:
    from asysi.archive.dataset import MScanDataset, Range
    from asysi.archive.follow import MScanFollower

app = typer.Typer(
    help="Inspect, verify, repair, print, merge and export .mscan archives.", no_args_is_help=True
)

_Path = Annotated[
    Path,
    typer.Argument(
        help="A segment, a folder of segments, or an output folder with archive/ in it; info, cat, export "
        "and merge also take an address like s3://bucket/run.",
        metavar="PATH",
    ),
]


_Points = Annotated[str, typer.Option(help="Glob on hook points: * stops at a dot, ** crosses dots.")]
_Steps = Annotated[
    str, typer.Option(help="Steps a:b, from a (included) to b (excluded); either may be empty.")
]
_Samples = Annotated[str, typer.Option(help="Samples a:b, likewise.")]


class _Format(StrEnum):
    PARQUET = "parquet"
    ARROW = "arrow"
    SAFETENSORS = "safetensors"
    NPZ = "npz"


class _Content(StrEnum):
    METRICS = "metrics"
    TENSORS = "tensors"


class _Compression(StrEnum):
    NONE = "none"
    ZSTD = "zstd"
    LZ4 = "lz4"


class _Dtype(StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"


@app.command()
def info(path: _Path) -> None:
    """Show segments and hook points: rows, steps, samples, time, size, bytes per row."""
    from rich.console import Console  # noqa: PLC0415 - not needed to show the help

    from asysi.archive.summary import points_table, retired_lines, segments_table  # noqa: PLC0415

    dataset = _open(path, scan=True)
    console = Console() if sys.stdout.isatty() else Console(width=140)  # wide enough for full names
    console.print(segments_table(dataset))
    console.print(points_table(dataset))
    for line in retired_lines(path):
        console.print(line, highlight=False)


@app.command()
def verify(path: _Path) -> None:
    """Check every checksum and every count; exit code 1 names what is wrong and where."""
    from asysi.archive.verify import verify as check  # noqa: PLC0415 - numpy is not needed to show the help

    files = _files(path)
    wrong = 0
    for file in files:
        with _progress("verifying", file.stat().st_size) as step:
            problems = check(file, step)
        wrong += bool(problems)
        for problem in problems:
            typer.echo(f"{type(problem).__name__.removesuffix('Error').lower()}: {problem}", err=True)
        if not problems:
            typer.echo(f"{file}: whole{_lost(file)}")
    if wrong:
        typer.echo(
            f"{wrong} of {len(files)} segments are not whole; `asysi mscan recover {path}` keeps what is",
            err=True,
        )
        raise typer.Exit(1)


@app.command()
def recover(path: _Path) -> None:
    """Rebuild the index of torn or damaged segments from their chunks; every intact chunk is kept."""
    from asysi.archive.errors import MScanError  # noqa: PLC0415
    from asysi.archive.recover import recover as mend  # noqa: PLC0415 - numpy is not needed to show the help

    failed = False
    for file in _files(path):
        try:
            with _progress("recovering", 2 * file.stat().st_size) as step:
                done = mend(file, step)
        except (MScanError, OSError) as error:
            typer.echo(f"{error}: not recovered", err=True)
            failed = True
            continue
        typer.echo(f"{file}: {f'recovered, {done.chunks} chunks kept' if done.changed else 'whole already'}")
        for problem in done.damage:
            typer.echo(f"  left out: {problem}")
        if done.original:
            typer.echo(f"  the damaged original is {done.original}")
    if failed:
        raise typer.Exit(1)


@app.command()
def export(  # noqa: PLR0917 - each is an option of the command
    output_format: Annotated[
        _Format, typer.Argument(help="Format of the files.", metavar="parquet|arrow|safetensors|npz")
    ],
    path: _Path,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files, one per hook point.")],
    content: Annotated[
        _Content, typer.Option(help="Metrics of every row, or the rows themselves with their lineage.")
    ] = _Content.METRICS,
    points: _Points = "**",
    steps: _Steps = ":",
    samples: _Samples = ":",
    dtype: Annotated[_Dtype, typer.Option(help="Type of exported activations.")] = _Dtype.FLOAT32,
) -> None:
    """Write the archive as Parquet, Arrow, safetensors or npz, one file per hook point.

    asysi mscan export parquet runs/minilm -o rows --content tensors --points "encoder.layer.*"
    """
    from asysi.archive.errors import MScanError  # noqa: PLC0415
    from asysi.archive.export import export as write  # noqa: PLC0415
    from asysi.archive.export import exported_bytes  # noqa: PLC0415

    dataset = _open(path)
    chosen = {"steps": _range("steps", steps), "samples": _range("samples", samples)}
    try:
        with _progress("exporting", exported_bytes(dataset, content.value, points)) as step:
            files = write(
                dataset,
                output,
                output_format=output_format.value,
                content=content.value,
                points=points,
                dtype=dtype.value,
                progress=step,
                **chosen,
            )
    except MScanError as error:
        raise _failed(error) from None
    for file in files:
        typer.echo(f"{file} ({file.stat().st_size:,} bytes)")
    if not files:
        typer.echo("no row lies in these steps and samples; nothing was written", err=True)


@app.command()
def cat(  # noqa: PLR0917 - each is an option of the command
    path: _Path,
    content: Annotated[
        _Content, typer.Option(help="Metrics of every row, or the rows themselves with their lineage.")
    ] = _Content.METRICS,
    points: _Points = "**",
    steps: _Steps = ":",
    samples: _Samples = ":",
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="Rows at most; 0 prints all.")] = 0,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Wait for more rows while the archive is written; stop with Ctrl-C."
        ),
    ] = False,
) -> None:
    """Print rows as JSON, one per line; a number that is not finite is null.

    Segments that are still being written, or were torn by a kill, are printed up to their last intact chunk.

    asysi mscan cat runs/minilm --points "*.output" -n 5 | jq .l2
    """
    import json  # noqa: PLC0415 - not needed to show the help
    from itertools import islice  # noqa: PLC0415

    from asysi.archive.errors import MScanError  # noqa: PLC0415
    from asysi.archive.follow import MScanFollower  # noqa: PLC0415
    from asysi.archive.format import ChunkKind  # noqa: PLC0415
    from asysi.archive.lines import rows_of  # noqa: PLC0415
    from asysi.model.globs import compile_glob  # noqa: PLC0415

    kind = ChunkKind.METRICS if content is _Content.METRICS else ChunkKind.TENSOR
    chosen = {"steps": _range("steps", steps), "samples": _range("samples", samples)}
    wanted = compile_glob(points).fullmatch
    try:
        if follow:
            follower = MScanFollower(path)
            chunks = follower.follow(_missed_reporter(follower))
        else:
            dataset = _open(path, scan=True)
            if not any(map(wanted, dataset.points)):
                held = ", ".join(dataset.points) or "none"
                raise ConfigError(f"no hook point matches {points!r}; the archive holds {held}")
            chunks = dataset.chunks(kind, steps=chosen["steps"], samples=chosen["samples"])
        rows = rows_of(chunks, kind, lambda point: wanted(point) is not None, **chosen)
        for row in islice(rows, limit or None):
            typer.echo(json.dumps(row, ensure_ascii=True))
    except MScanError as error:
        raise _failed(error) from None


def _missed_reporter(follower: "MScanFollower") -> Callable[[], bool]:
    """Return a function that reports what was deleted before it was read, and never ends the loop."""
    said = 0

    def report() -> bool:
        nonlocal said
        missed = follower.missed()
        if (count := sum(one.segments for one in missed)) > said:
            said, rows = count, sum(one.rows for one in missed)
            typer.echo(
                f"{count:,} segments ({rows:,} rows) were deleted to keep to archive.maxSize before they "
                "were read: these rows are missing here",
                err=True,
            )
        return False

    return report


@app.command()
def merge(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Segments, or folders of segments, of one experiment.", metavar="PATH..."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the segments.")],
    rotate: Annotated[
        str, typer.Option(help="Size at which a segment is closed and the next begun, like 4Gi.")
    ] = "16Gi",
    compression: Annotated[_Compression, typer.Option(help="Compression of chunks.")] = _Compression.NONE,
) -> None:
    """Join segments into fewer and larger ones; also compresses, or decompresses, an archive.

    Packets and records are copied bit for bit, and attempts stay separate. The originals are not changed.

    asysi mscan merge runs/minilm -o merged --compression zstd
    """
    from asysi.archive.errors import MScanError  # noqa: PLC0415
    from asysi.archive.merge import merge as join  # noqa: PLC0415
    from asysi.contract.quantity import parse_bytes  # noqa: PLC0415

    try:
        size = parse_bytes(rotate)
    except ValueError as error:
        raise ConfigError(f"--rotate {rotate}: {error}") from None
    datasets = [_open(path) for path in paths]
    total = sum(int(s.entries["raw_bytes"].sum()) for dataset in datasets for s in dataset.segments)
    try:
        with _progress("merging", total) as step:
            files = join(datasets, output, rotate=size, compression=compression.value, progress=step)
    except MScanError as error:
        raise _failed(error) from None
    for file in files:
        typer.echo(f"{file} ({file.stat().st_size:,} bytes)")


@contextmanager
def _progress(what: str, total: int) -> "Iterator[Callable[[int], None]]":
    """Show a progress bar in bytes on a terminal; yields the function that advances it."""
    from rich.console import Console  # noqa: PLC0415 - not needed to show the help
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda size: bar.advance(task, size)


def _files(path: Path) -> list[Path]:
    from asysi.archive.dataset import find_segments  # noqa: PLC0415 - numpy is not needed to show the help

    try:
        return find_segments(local_folder(path, "PATH", "segments in a store are read, not changed"))
    except FileNotFoundError as error:
        raise _nothing(error) from None


def _open(path: Path, *, scan: bool = False) -> "MScanDataset":
    from asysi.archive.dataset import MScanDataset  # noqa: PLC0415 - numpy is not needed to show the help
    from asysi.archive.errors import MScanError  # noqa: PLC0415

    address = given(path)
    try:
        return MScanDataset(address, scan=scan and isinstance(address, Path))
    except FileNotFoundError as error:
        raise _nothing(error) from None
    except MScanError as error:
        raise _failed(error) from None


def _nothing(error: FileNotFoundError) -> ConfigError:
    return ConfigError(f"{error}: give a segment, a folder of segments, or an experiment's output")


def _failed(error: Exception) -> typer.Exit:
    typer.echo(str(error), err=True)
    return typer.Exit(1)


def _lost(file: Path) -> str:
    from asysi.archive.segment import open_segment  # noqa: PLC0415 - numpy is not needed to show the help

    counts = open_segment(file).counts
    assert counts is not None
    chunks, rows = int(counts["lost_chunks"][0]), int(counts["lost_rows"][0])
    return (
        f" ({chunks} damaged chunks with {rows} records were left out when it was recovered)"
        if chunks
        else ""
    )


def _range(name: str, text: str) -> "Range | None":
    first, colon, last = text.partition(":")
    try:
        bounds = (int(first or 0), int(last or 2**64 - 1))
    except ValueError:
        bounds = (-1, -1)
    if not colon or not 0 <= bounds[0] <= bounds[1]:
        raise ConfigError(f"--{name} {text} is not a range: write a:b, like 0:100, 100: or :50")
    return bounds if text != ":" else None
