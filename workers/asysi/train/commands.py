"""The commands of `asysi train`."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from asysi.contract.errors import ConfigError, import_lazily

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Project = Annotated[
    Path, typer.Option("--project", metavar="DIR", help="Folder of the project, by default this one.")
]
Config = Annotated[
    str, typer.Option("--config", metavar="FILE", help="Configuration, relative to the project.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override one field of the configuration: train.epochs=3."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder of the run: runs/train of the project."),
]


@app.command("new")
def new(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to make; it must not exist or be empty.")
    ],
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="digits or text.")] = "digits",
) -> None:
    """Write a training project: modules, configuration, documents, tests, train.sh and test.sh.

    \b
    Examples:
      asysi train new digits && cd digits && sh train.sh cpu
      asysi train new topics --task text
    """
    for line in import_lazily("asysi.train.scaffold", "write_project")(folder, task):
        typer.echo(line)


@app.command("run")
def run(  # noqa: PLR0917 - each is an option of the command
    devices: Annotated[
        str | None,
        typer.Argument(
            metavar="DEVICES", help="cpu, cpu:2 (two processes), or GPUs such as 0,1; the same as --gpus."
        ),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="DEVICES", help="Devices, as the argument.")
    ] = None,
    config: Config = "config.yaml",
    settings: Settings = None,
    output: Output = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in that folder.")] = False,
    project: Project = Path(),
) -> None:
    """Train a project, evaluate it, and compare it with its baseline.

    A run that was killed or stopped resumes from its last checkpoint, with bit-identical results. Exit codes:
    0 done, 1 the baseline or a threshold is missed, 2 invalid configuration or data, 143 after SIGTERM.

    \b
    Examples:
      asysi train run cpu
      asysi train run --gpus 0,1 --config big.yaml
      asysi train run cpu --set train.epochs=3 --output runs/short
    """
    _log()
    if devices and gpus:
        raise typer.BadParameter("name the devices once: as the argument or with --gpus")
    asked = import_lazily("asysi.train.launch", "Launch")(
        project, config, settings or [],
        import_lazily("asysi.train.launch", "parse_devices")(devices or gpus or "cpu"),
        output or project / "runs" / "train", overwrite,
    )  # fmt: skip
    raise typer.Exit(int(import_lazily("asysi.train.launch", "launch")(asked)))


@app.command("baseline")
def baseline(
    devices: Annotated[str, typer.Argument(metavar="DEVICES", help="As for run.")] = "cpu",
    seeds: Annotated[str, typer.Option("--seeds", metavar="LIST", help="One run per seed.")] = "0,1,2",
    config: Config = "config.yaml",
    settings: Settings = None,
    project: Project = Path(),
) -> None:
    """Train once per seed and write the figures to baseline.json, which later runs are compared with.

    \b
    Example:
      asysi train baseline cpu --seeds 0,1,2
    """
    _log()
    numbers = seeds.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise typer.BadParameter(f"{seeds} is not a list of seeds such as 0,1,2", param_hint="'--seeds'")
    asked = import_lazily("asysi.train.launch", "Launch")(
        project, config, settings or [],
        import_lazily("asysi.train.launch", "parse_devices")(devices), project / "runs" / "baseline", True,
    )  # fmt: skip
    measure = import_lazily("asysi.train.launch", "measure_baseline")
    typer.echo(measure(asked, [int(number) for number in numbers]))


@app.command("sources")
def sources(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 1 on a difference.")
    ] = False,
    project: Project = Path(),
) -> None:
    """Write the tables of TECH_SPEC.md and the tasks from docs/sources.yaml.

    \b
    Examples:
      asysi train sources
      asysi train sources --check
    """
    changed = import_lazily("asysi.train.sources", "render_sources")(project, check=check)
    for name in changed:
        typer.echo(f"{name}: {'differs' if check else 'written'}")
    if changed and check:
        raise typer.Exit(1)


@app.command("test")
def predict_rows(  # noqa: PLR0917 - each is an option of the command
    table: Annotated[Path, typer.Argument(metavar="INPUT", help="Table of the rows; labels are not needed.")],
    result: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Table that is written.")],
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="cpu or the number of a GPU.")] = "cpu",
    config: Config = "config.yaml",
    settings: Settings = None,
    output: Output = None,
    project: Project = Path(),
) -> None:
    """Predict every row of a table: writes its rows and columns plus prediction, probability and error.

    Rows that cannot be used are kept, with the reason in the column `error`.

    \b
    Example:
      asysi train test data/test.csv predictions.csv cpu
    """
    _log()
    lines = import_lazily("asysi.train.predicting", "predict_table")(
        project, config, settings or [], output or project / "runs" / "train", table, result, device
    )
    typer.echo(lines)


@app.command("predict")
def predict(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="An image, or a text file in a text project.")],
    config: Config = "config.yaml",
    settings: Settings = None,
    output: Output = None,
    project: Project = Path(),
) -> None:
    """Predict one file: prints the label and its probability.

    \b
    Example:
      asysi train predict data/images/0007.png
    """
    _log()
    typer.echo(
        import_lazily("asysi.train.predicting", "predict_file")(
            project, config, settings or [], output or project / "runs" / "train", path
        )
    )


def _log() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")


def main_of(project: Path, arguments: list[str]) -> int:
    """Run `python -m train PATH` for a project; returns the exit code."""
    _log()
    if len(arguments) != 1 or arguments[0] in {"-h", "--help"}:
        sys.stderr.write("usage: python -m train PATH\nPredicts one file with the weights of runs/train.\n")
        return 0 if arguments in (["-h"], ["--help"]) else 2
    from asysi.train.predicting import predict_file  # noqa: PLC0415 - imports torch

    try:
        print(predict_file(project, "config.yaml", [], project / "runs" / "train", Path(arguments[0])))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0
