"""The commands of `asysi`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asysi.cli.groups import Command, Commands, deferred
from asysi.contract.errors import import_lazily

if TYPE_CHECKING:
    from asysi.contract.spec import ScanExperiment

_STYLE: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}
app = typer.Typer(cls=Commands, **_STYLE)
profile = typer.Typer(**_STYLE)
ring = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(ring, name="ring", help="Inspect the rings of a run, or reset one.")
app.add_typer(
    typer.Typer(
        cls=deferred("asysi.archive.commands", "asysi.finish.replay"),
        no_args_is_help=True,
        rich_markup_mode=None,
    ),
    name="mscan",
    help="Read, verify, recover, export, merge and replay `.mscan` archives.",
)
app.add_typer(
    typer.Typer(
        cls=deferred("asysi.finish.sae_train", "asysi.sae.commands"),
        no_args_is_help=True,
        rich_markup_mode=None,
    ),
    name="sae",
    help="Train sparse autoencoders from an archive, and convert them.",
)
app.add_typer(
    typer.Typer(cls=deferred("asysi.weights.commands"), no_args_is_help=True, rich_markup_mode=None),
    name="weights",
    help="Analyse the parameters of a checkpoint.",
)
app.add_typer(
    typer.Typer(cls=deferred("asysi.pipeline.commands"), no_args_is_help=True, rich_markup_mode=None),
    name="pipeline",
    help="Run operators over rows, exactly once.",
)
app.add_typer(
    typer.Typer(cls=deferred("asysi.train.commands"), no_args_is_help=True, rich_markup_mode=None),
    name="train",
    help="Write and run supervised training projects.",
)
app.add_typer(
    typer.Typer(cls=deferred("asysi_operator.plugin.commands"), no_args_is_help=True, rich_markup_mode=None),
    name="cluster",
    help="Inspect experiments on a cluster, upload their inputs, download their results.",
)

Files = Annotated[list[Path] | None, typer.Argument(metavar="FILES", help="YAML files; later ones override.")]
Layers = Annotated[
    list[Path] | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="A YAML file; can be repeated, later ones take precedence.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override one field of the files: spec.workload.scan.passes=2."
    ),
]
OutputFolder = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder of the results, instead of spec.output.uri."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the results of an earlier run in that folder.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the unfinished run in that folder: after a kill, a full disk or an upgrade.",
    ),
]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of the live display.")]
KillOnce = Annotated[
    str | None,
    typer.Option(
        "--kill-once",
        metavar="WORKER",
        help="Kill this worker once on purpose (kill -9) after its first checkpoint, to see it recover.",
    ),
]


@app.callback(invoke_without_command=True)
def asysi(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """A microscope for PyTorch models in motion.

    One YAML file, a ScanExperiment, defines the model to observe, the hook points, and how to process the
    activations.

    \b
    Begin with:
      asysi check scan.yaml     show the matching hook points and any problems
      asysi run scan.yaml       run it; results and report.html in runs/<name>
      asysi render scan.yaml    print the same experiment as Kubernetes objects

    Exit codes: 0 success, 1 failure, 2 invalid configuration or input, 130 stopped by Ctrl-C.
    """
    if version:
        print_version()
        raise typer.Exit


@app.command()
def run(  # noqa: PLR0917 - options of the command
    files: Files = None,
    layers: Layers = None,
    settings: Settings = None,
    output: OutputFolder = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    plain: Plain = False,
    kill_once: KillOnce = None,
) -> None:
    """Run an experiment on this machine, with the containers of its pod as processes.

    Ctrl-C stops the run early and cleanly, with a report; a second Ctrl-C kills it. A run that was stopped
    early or killed can be continued with --resume.

    \b
    Examples:
      asysi run examples/minilm/scan.yaml
      asysi run -f base.yaml -f profile_hpc.yaml --output runs/today
      asysi run scan.yaml --set spec.workload.scan.passes=2
      asysi run scan.yaml --resume
    """
    _run(_load(files, layers, settings), output, plain, kill_once, overwrite=overwrite, resume=resume)


@profile.command(cls=Command)
def run_profile(  # noqa: PLR0917 - options of the command
    config: Annotated[
        Path, typer.Option("--config", metavar="PROFILE", help="The profile; base.yaml is next to it.")
    ],
    settings: Settings = None,
    output: OutputFolder = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    plain: Plain = False,
    kill_once: KillOnce = None,
) -> None:
    """Run a profile on top of the base.yaml next to it: `asysi run -f base.yaml -f PROFILE`.

    \b
    Example:
      asys-i-run --config configs/profile_hpc.yaml
    """
    base = config.with_name("base.yaml")
    _run(
        _load([config] if config.name == base.name else [base, config], None, settings),
        output,
        plain,
        kill_once,
        overwrite=overwrite,
        resume=resume,
    )


@app.command()
def check(files: Files = None, layers: Layers = None, settings: Settings = None) -> None:
    """Check an experiment without running it.

    Prints the matching hook points with alias, row shape and dtype, the data, the rings, and all problems; if
    there are any, the exit code is 2.

    \b
    Examples:
      asysi check examples/minilm/scan.yaml
      asysi check scan.yaml --set 'spec.capture.hookPoints=["encoder.layer.0.*"]'
    """
    report = import_lazily("asysi.hosts.check", "check")(_load(files, layers, settings))
    import_lazily("asysi.cli.tables", "print_check")(report)
    if report.problems:
        raise typer.Exit(2)


@app.command()
def render(
    files: Files = None,
    layers: Layers = None,
    settings: Settings = None,
    form: Annotated[
        str, typer.Option("--format", "-o", metavar="yaml|json", help="Output format of the objects.")
    ] = "yaml",
) -> None:
    """Print an experiment as Kubernetes objects, as the operator creates them.

    \b
    Examples:
      asysi render scan.yaml
      asysi render scan.yaml | kubectl apply -f -
      asysi render scan.yaml -o json
    """
    if form not in {"yaml", "json"}:
        raise typer.BadParameter(f"{form} is not a format: use yaml or json", param_hint="'--format'")
    objects: list[Any] = import_lazily("asysi_operator.manifests", "build")(_load(files, layers, settings))
    sys.stdout.write(import_lazily("asysi.cli.objects", f"as_{form}")(objects))


@app.command()
def upload(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of a run.")],
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="[ADDRESS]", help="Address like s3://bucket/prefix; by default that of spec.output.uri."
        ),
    ] = None,
) -> None:
    """Upload the results of a run to a store, or continue an upload that was interrupted.

    Sends what the store lacks: closed segments of the archive, then the other results, the report last.
    Credentials come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL.

    \b
    Examples:
      asysi upload runs/minilm
      asysi upload runs/minilm s3://bucket/minilm
    """
    import_lazily("asysi.finish.uploading", "upload_folder")(folder, address)


RingFolder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Folder of the ring, with `control` and `data` in it.")
]


@ring.command()
def inspect(folder: RingFolder) -> None:
    """Print the state of a ring, while it is in use or afterwards.

    Shows geometry and memory; the producer's generation; each reader's epoch, lag and pins; each shard's
    head, open claims and cursors, and how often claims of several chunks were not adjacent (scattered); the
    row counters of every hook point, with drops by reason. Read-only.

    \b
    Examples:
      asysi ring inspect /dev/shm/asysi-minilm-*/bus             (during `asysi run`)
      kubectl exec POD -c hook -- asysi ring inspect /dev/shm/asysi/bus
    """
    import_lazily("asysi.cli.rings", "print_ring")(folder)


@ring.command()
def reset(
    folder: RingFolder,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Empty an unused ring, keeping its geometry.

    Packets, counters, hook points and cursors are deleted. A ring with a live producer or reader is not
    modified.

    \b
    Example:
      asysi ring reset /dev/shm/asysi-minilm-0123abcd/bus
    """
    import_lazily("asysi.cli.rings", "reset_ring")(folder, yes)


@app.command("version")
def print_version() -> None:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - slow and rarely used

    try:
        typer.echo(f"asysi {version('asysi')}")
    except PackageNotFoundError:
        typer.echo("asysi (not installed: run from its source folder)")


def _load(
    files: list[Path] | None, layers: list[Path] | None, settings: list[str] | None
) -> "ScanExperiment":
    paths = [*(layers or []), *(files or [])]
    experiment: ScanExperiment = import_lazily("asysi.contract.loading", "load")(paths, settings or [])
    _find_modules_beside(paths)
    return experiment


def _find_modules_beside(files: list[Path]) -> None:
    """Let this process and its child processes import python:// modules next to the files."""
    from asysi.contract.runtime import Env  # noqa: PLC0415 - not needed for help

    folders = [os.environ.get(Env.MODULES, ""), *(str(file.absolute().parent) for file in files)]
    os.environ[Env.MODULES] = os.pathsep.join(dict.fromkeys(filter(None, folders)))


def _run(
    experiment: "ScanExperiment",
    output: Path | None,
    plain: bool,
    kill_once: str | None,
    *,
    overwrite: bool,
    resume: bool,
) -> None:
    if overwrite and resume:
        raise typer.BadParameter("--overwrite starts over and --resume continues: give only one of them")
    code = import_lazily("asysi_operator.local", "run")(
        experiment, output=output, overwrite=overwrite, resume=resume, plain=plain, kill_once=kill_once
    )
    raise typer.Exit(int(code))
