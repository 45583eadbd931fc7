"""`asysi mscan`: look at archives, check them, mend them, turn them into other formats."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asysi.contract.errors import ConfigError

if TYPE_CHECKING:
    from asysi.archive.dataset import MScanDataset, Range

app = typer.Typer(help="Inspect, verify, repair and export .mscan archives.", no_args_is_help=True)

_Path = Annotated[
    Path,
    typer.Argument(
        help="A segment, a folder of segments, or an output folder with archive/ in it.", metavar="PATH"
    ),
]


class _Format(StrEnum):
    PARQUET = "parquet"
    ARROW = "arrow"
    SAFETENSORS = "safetensors"
    NPZ = "npz"


class _Content(StrEnum):
    METRICS = "metrics"
    TENSORS = "tensors"


class _Dtype(StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"


@app.command()
def info(path: _Path) -> None:
    """Show segments and hook points: rows, steps, samples, time, size, bytes per row."""
    from rich.console import Console  # noqa: PLC0415 - not needed to show the help

    from asysi.archive.summary import points_table, segments_table  # noqa: PLC0415

    dataset = _open(path, scan=True)
    console = Console() if sys.stdout.isatty() else Console(width=140)  # a file has room for whole names
    console.print(segments_table(dataset))
    console.print(points_table(dataset))


@app.command()
def verify(path: _Path) -> None:
    """Check every checksum and every count; exit code 1 names what is wrong and where."""
    from asysi.archive.verify import verify as check  # noqa: PLC0415 - numpy is not needed to show the help

    files = _files(path)
    wrong = 0
    for file in files:
        problems = check(file)
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
            done = mend(file)
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
    path: _Path,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files, one per hook point.")],
    output_format: Annotated[
        _Format, typer.Option("--format", help="Format of the files.")
    ] = _Format.PARQUET,
    content: Annotated[
        _Content, typer.Option(help="Metrics of every row, or the rows themselves with their lineage.")
    ] = _Content.METRICS,
    points: Annotated[
        str, typer.Option(help="Glob on hook points: * stops at a dot, ** crosses dots.")
    ] = "**",
    steps: Annotated[
        str, typer.Option(help="Steps a:b, from a (included) to b (excluded); either may be empty.")
    ] = ":",
    samples: Annotated[str, typer.Option(help="Samples a:b, likewise.")] = ":",
    dtype: Annotated[_Dtype, typer.Option(help="Type of exported activations.")] = _Dtype.FLOAT32,
) -> None:
    """Write the archive as Parquet, Arrow, safetensors or npz."""
    from rich.progress import Progress  # noqa: PLC0415 - not needed to show the help

    from asysi.archive.errors import MScanError  # noqa: PLC0415
    from asysi.archive.export import export as write  # noqa: PLC0415
    from asysi.archive.export import exported_bytes  # noqa: PLC0415

    dataset = _open(path)
    chosen = {"steps": _range("steps", steps), "samples": _range("samples", samples)}
    try:
        total = exported_bytes(dataset, content.value, points)
        with Progress(transient=True) as bar:
            task = bar.add_task("exporting", total=total)
            files = write(
                dataset,
                output,
                output_format=output_format.value,
                content=content.value,
                points=points,
                dtype=dtype.value,
                progress=lambda size: bar.advance(task, size),
                **chosen,
            )
    except MScanError as error:
        raise _failed(error) from None
    for file in files:
        typer.echo(f"{file} ({file.stat().st_size:,} bytes)")
    if not files:
        typer.echo("no row lies in these steps and samples; nothing was written", err=True)


def _files(path: Path) -> list[Path]:
    from asysi.archive.dataset import find_segments  # noqa: PLC0415 - numpy is not needed to show the help

    try:
        return find_segments(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{error}: give a segment, a folder of segments, or an experiment's output"
        ) from None


def _open(path: Path, *, scan: bool = False) -> "MScanDataset":
    from asysi.archive.dataset import MScanDataset  # noqa: PLC0415 - numpy is not needed to show the help
    from asysi.archive.errors import MScanError  # noqa: PLC0415

    _files(path)
    try:
        return MScanDataset(path, scan=scan)
    except MScanError as error:
        raise _failed(error) from None


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
