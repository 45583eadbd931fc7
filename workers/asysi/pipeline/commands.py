"""`asysi pipeline`: run, resume, redrive, merge and status."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Exit

if TYPE_CHECKING:
    from asysi.contract.pipeline import PipelineFile
    from asysi.pipeline.run.telemetry import Report
    from asysi.pipeline.run.unified_pipeline import UnifiedPipeline

app = typer.Typer(help="Run operators over rows, exactly once.", no_args_is_help=True)

_File = Annotated[Path, typer.Argument(metavar="FILE", help="The pipeline's YAML file.")]
_Target = Annotated[
    Path, typer.Argument(metavar="FILE|DIR", help="The pipeline's YAML file, or its folder of results.")
]
_Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Set one field, overriding the file: batchSize=10."),
]
_Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Only part I of N, from 0; N alone takes I from JOB_COMPLETION_INDEX.",
    ),
]
_Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of the live table.")]
_Accept = Annotated[bool, typer.Option("--accept-changes", help="Continue even if operators have changed.")]


@app.command("run")
def run_command(  # noqa: PLR0917 - each is an option of the command
    file: _File,
    settings: _Settings = None,
    shard: _Shard = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an earlier run if there is one, for repeated commands.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the state and output of an earlier run.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show files, columns, calls and expected cost; run and pay nothing."),
    ] = False,
    plain: _Plain = False,
) -> None:
    """Run a pipeline from its beginning.

    Ctrl-C ends it cleanly: what was begun is finished and committed, and `resume` goes on there. A second
    Ctrl-C ends it at once.

    \b
    Examples:
      asysi pipeline run clean.yaml
      asysi pipeline run clean.yaml --dry-run
      asysi pipeline run clean.yaml --set parallelSize=20
      asysi pipeline run clean.yaml --shard 3/8
    """
    spec, part = _spec(file, settings), _part(shard)
    if dry_run:
        _preview(spec)
    elif part is None and spec.shards > 1:
        _run_shards(spec, resume=resume, overwrite=overwrite, plain=plain)
    else:
        _end(_run(spec, part, resume=resume, overwrite=overwrite, plain=plain))


@app.command("resume")
def resume_command(
    target: _Target,
    settings: _Settings = None,
    shard: _Shard = None,
    accept_changes: _Accept = False,
    plain: _Plain = False,
) -> None:
    """Go on where a pipeline ended, whatever ended it.

    Its image says what is read and written; the file may have another budget and cap of dead letters. From a
    folder of results, operators are made anew as the image tells them.

    \b
    Examples:
      asysi pipeline resume clean.yaml
      asysi pipeline resume tmp/clean
    """
    part = _part(shard)
    spec = _spec(target, settings) if target.is_file() else None
    if spec is not None and part is None and spec.shards > 1:
        _run_shards(spec, resume=True, accept_changes=accept_changes, plain=plain)
        return
    pipeline = _pipeline(target, spec, part, plain=plain)
    pipeline.resume(spec.pipeline_id if spec else None, accept_changes=accept_changes)
    _end(pipeline.run)


@app.command("redrive")
def redrive_command(
    target: _Target,
    settings: _Settings = None,
    shard: _Shard = None,
    accept_changes: _Accept = False,
    plain: _Plain = False,
) -> None:
    """Put dead letters through again, from the node that they failed in, under their ids.

    What they become is merged into the output where it belongs; what fails again stays a dead letter. May be
    ended and started again like a run.

    \b
    Example:
      asysi pipeline redrive clean.yaml --accept-changes
    """
    spec, part = _spec(target, settings) if target.is_file() else None, _part(shard)
    name = spec.pipeline_id if spec else None
    if spec is None or part is not None or spec.shards == 1:
        pipeline = _pipeline(target, spec, part, plain=plain)
        _end(lambda: pipeline.redrive(name, accept_changes=accept_changes))
    else:
        _redrive_shards(spec, accept_changes=accept_changes, plain=plain)


@app.command("merge")
def merge_command(target: _Target, settings: _Settings = None) -> None:
    """Put the outputs of all shards together, as one run would have written them.

    \b
    Example:
      asysi pipeline merge clean.yaml
    """
    from asysi.pipeline.run.shards import merge  # noqa: PLC0415 - not needed for the help

    seal = merge(_folder(target, settings))
    typer.echo(f"{seal.rows:,} rows, {seal.bytes:,} bytes, digest {seal.digest}")


@app.command("status")
def status_command(
    target: _Target,
    settings: _Settings = None,
    form: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say how far a pipeline is, while it runs or afterwards.

    \b
    Examples:
      asysi pipeline status clean.yaml
      watch asysi pipeline status tmp/clean
    """
    from asysi.pipeline.run.overview import overview  # noqa: PLC0415 - not needed for the help

    images = overview(_folder(target, settings))
    if form:
        typer.echo(json.dumps(images if len(images) > 1 else images[0], indent=2, ensure_ascii=False))
        return
    _show(images)


def _show(images: Sequence[dict[str, Any]]) -> None:
    from asysi.pipeline.run.progress import line, spent, table  # noqa: PLC0415

    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - only for a terminal

        Console().print(table(images))
    for image in images:
        shard = f" {image['shard'][0]}/{image['shard'][1]}" if image.get("shard") else ""
        typer.echo(
            f"{image['pipeline_id']}{shard}: {image['status']}, {image['settled']:,} source rows settled,"
            f" {image['dead']:,} dead letters"
        )
        if not sys.stdout.isatty():
            for node in image["nodes"]:
                typer.echo(f"  {line(image, node)}")
        if image["error"]:
            typer.echo(f"  {image['error']}")
    if used := spent(images):
        typer.echo("spent: " + ", ".join(f"{name} {value:,.6g}" for name, value in used.items()))


def _spec(file: Path, settings: list[str] | None) -> "PipelineFile":
    from asysi.pipeline.run.pipeline_file import add_search_path, load  # noqa: PLC0415 - not needed for the help

    add_search_path(file.parent)
    return load(file, settings or [])


def _folder(target: Path, settings: list[str] | None) -> Path:
    from asysi.pipeline.run.pipeline_file import results_dir  # noqa: PLC0415 - not needed for the help

    return target if target.is_dir() else results_dir(_spec(target, settings))


def _part(shard: str | None) -> tuple[int, int] | None:
    """Parse `i/n`, or `n` with the completion index of an Indexed Job, into (i, n).

    Raises:
        ConfigError: it is neither.
    """
    if shard is None:
        return None
    index, slash, count = shard.rpartition("/")
    index = index if slash else os.environ.get("JOB_COMPLETION_INDEX", "")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(
            f"--shard {shard}: give I/N with I from 0 to N-1, like 0/8; N alone needs JOB_COMPLETION_INDEX"
            " in the environment"
        )
    return int(index), int(count)


def _pipeline(
    target: Path, spec: "PipelineFile | None", part: tuple[int, int] | None, *, plain: bool
) -> "UnifiedPipeline":
    """Return the pipeline of a file, or of a results folder."""
    from asysi.pipeline.run.pipeline_file import add_search_path, build  # noqa: PLC0415
    from asysi.pipeline.run.progress import ProgressLines  # noqa: PLC0415
    from asysi.pipeline.run.unified_pipeline import UnifiedPipeline  # noqa: PLC0415 - not needed for the help

    live = sys.stderr.isatty() and not plain
    hooks = None if live else ProgressLines()
    if spec is not None:
        return build(spec, shard=part, hooks=hooks, progress=live)
    if not target.is_dir():
        raise ConfigError(f"{target} is neither a pipeline's file nor its folder of results")
    add_search_path(Path())
    return UnifiedPipeline(results_dir=target, hooks=hooks, progress=live, shard=part)


def _preview(spec: "PipelineFile") -> None:
    """Print what a run would read, call and cost."""
    from asysi.pipeline.run.pipeline_file import build  # noqa: PLC0415
    from asysi.pipeline.run.preview import lines, preview  # noqa: PLC0415 - not needed for the help

    pipeline = build(spec, progress=False).outline(spec.pipeline_id)
    for line in lines(preview(pipeline), spec.budget):
        typer.echo(line)


def _run(
    spec: "PipelineFile", part: tuple[int, int] | None, *, resume: bool, overwrite: bool, plain: bool
) -> Callable[[], "Report"]:
    """Create the pipeline, or load it to resume if it has started."""
    pipeline = _pipeline(Path(), spec, part, plain=plain)
    pipeline.pipeline_id = spec.pipeline_id
    if resume and pipeline.has_begun():
        pipeline.resume(spec.pipeline_id)
    else:
        pipeline.create(spec.pipeline_id, overwrite=overwrite)
    return pipeline.run


def _run_shards(
    spec: "PipelineFile",
    *,
    resume: bool = False,
    overwrite: bool = False,
    accept_changes: bool = False,
    plain: bool = False,
) -> None:
    """Run every shard in its own process, then merge."""
    from asysi.pipeline.run.pipeline_file import build, results_dir  # noqa: PLC0415
    from asysi.pipeline.run.shard_processes import run_all  # noqa: PLC0415 - not needed for the help
    from asysi.pipeline.run.shards import merge  # noqa: PLC0415

    def one(index: int) -> int:
        pipeline = build(spec, shard=(index, spec.shards), progress=False)
        pipeline.pipeline_id = spec.pipeline_id
        if resume and pipeline.has_begun():
            pipeline.resume(spec.pipeline_id, accept_changes=accept_changes)
        else:
            pipeline.create(spec.pipeline_id, overwrite=overwrite)
        return _code(pipeline.run().status)

    folder = results_dir(spec)
    code = run_all(spec.shards, one, folder, live=sys.stderr.isatty() and not plain)
    if code == Exit.OK:
        seal = merge(folder)
        typer.echo(f"{spec.output_uri}: {seal.rows:,} rows of {spec.shards} shards, digest {seal.digest}")
    raise typer.Exit(code)


def _redrive_shards(spec: "PipelineFile", *, accept_changes: bool, plain: bool) -> None:
    """Redrive the shards sequentially, then merge again."""
    from asysi.pipeline.run.pipeline_file import results_dir  # noqa: PLC0415
    from asysi.pipeline.run.shards import merge  # noqa: PLC0415 - not needed for the help

    for index in range(spec.shards):  # check all before changing one
        pipeline = _pipeline(Path(), spec, (index, spec.shards), plain=plain)
        pipeline.check_redrive(spec.pipeline_id, accept_changes=accept_changes)
    for index in range(spec.shards):
        pipeline = _pipeline(Path(), spec, (index, spec.shards), plain=plain)
        code = _said(partial(pipeline.redrive, spec.pipeline_id, accept_changes=accept_changes))
        if code != Exit.OK:
            raise typer.Exit(code)
    seal = merge(results_dir(spec))
    typer.echo(f"{spec.output_uri}: {seal.rows:,} rows of {spec.shards} shards, digest {seal.digest}")


def _end(run: Callable[[], "Report"]) -> None:
    """Run, print the outcome, and exit with its code."""
    raise typer.Exit(_said(run))


def _said(run: Callable[[], "Report"]) -> int:
    """Run, print the outcome, and return its exit code."""
    from asysi.pipeline.nodes.lifecycle import TooManyDeadLettersError  # noqa: PLC0415 - not needed for the help
    from asysi.pipeline.rows.blocks import RowError  # noqa: PLC0415

    try:
        report = run()
    except (RowError, TooManyDeadLettersError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return Exit.FAILED
    if report.new_inputs:
        from asysi.pipeline.streams.input_files import say_new  # noqa: PLC0415 - not needed for the help

        sys.stderr.write(f"{say_new('the input', report.new_inputs)}\n")
    made = list(report.nodes.values())[-1].made
    dead = f", {report.dead:,} dead letters" if report.dead else ""
    used = "".join(f", {name} {value:,.6g}" for name, value in report.usage.items())
    typer.echo(
        f"{report.pipeline_id}: {report.status}, {report.settled:,} source rows settled, {made:,} rows"
        f" made{dead}{used}, {report.seconds:.1f} s"
    )
    return _code(report.status)


def _code(status: str) -> int:
    """Return the exit code for the status of a run."""
    return {"completed": Exit.OK, "canceled": Exit.INTERRUPTED}.get(status, Exit.FAILED)
