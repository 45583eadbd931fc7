"""`asysi sae train`: trains SAEs from an archive, with the loop that trains them on the live stream."""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from asysi.archive.errors import MScanError
from asysi.contract.errors import ConfigError
from asysi.contract.rules import trainer_problems
from asysi.contract.runtime import CHECKPOINT_FOLDER, SAE_FOLDER
from asysi.contract.spec import API_VERSION, KIND, SaeTrain, ScanExperiment
from asysi.model.globs import match_globs
from asysi.sae.denormals import flushed_denormals

if TYPE_CHECKING:
    from asysi.archive.dataset import MScanDataset
    from asysi.sae.trainer import Trainer

app = typer.Typer()
_ATTEMPT = 0


def train_archive(
    dataset: "MScanDataset",
    configs: list[SaeTrain],
    output: Path,
    steps_total: int | None = None,
    progress: Callable[[int], None] = lambda _rows: None,
) -> "list[Trainer]":
    """Train SAEs on the packets of an archive, in the order in which they were published.

    A trainer's state depends only on the packets of each hook point, in their order, on its settings, and on
    the length of the run. So this ends with the SAEs of the live run if that lost no packet. It continues
    from checkpoints in `output` if there are any, and writes them as often as the settings say.

    Args:
        dataset: the archive, with payloads.
        configs: settings of the trainers.
        output: folder of checkpoints and SAEs.
        steps_total: steps of the host's run, for the learning rate; None takes the last archived step.
        progress: called with the number of rows read since the last call.

    Raises:
        ConfigError: settings do not match the archive or a checkpoint.
        MScanError: the archive is damaged.
        FloatingPointError: training diverged.
    """
    from asysi.sae.trainer import Trainer  # noqa: PLC0415 - torch is slow to import

    for number, config in enumerate(configs):
        match_globs(
            config.hook_points, dataset.points, f"trainer {number} ({config.name}): hookPoints", calls=False
        )
    multiple = _experiment(dataset).spec.data
    trainers = [
        Trainer(
            config, output / CHECKPOINT_FOLDER / f"{config.name}.ckpt",
            multiple.tokens.max_norm_multiple if multiple else None,
        )
        for config in configs
    ]  # fmt: skip
    done = [_Consumed(trainer.log.ranges) for trainer in trainers if trainer.load(_ATTEMPT) or True]
    length = steps_total or _last_step(dataset) + 1
    every, saved_at = min(config.checkpoint_seconds for config in configs), monotonic()
    for address, packet in dataset.ordered():
        for trainer, consumed in zip(trainers, done, strict=True):
            if address not in consumed:
                trainer.receive(packet, dataset.points, length, address.shard)
        progress(len(packet.rows))
        if monotonic() - saved_at >= every:
            _save(trainers)
            saved_at = monotonic()
    _save(trainers)
    for trainer in trainers:
        for training in trainer.trainings.values():
            training.complete()
    return trainers


class _Consumed:
    """The packets that a checkpoint contains."""

    def __init__(self, ranges: Mapping[str, list[list[int]]]) -> None:
        self._ranges = {key: [tuple(pair) for pair in pairs] for key, pairs in ranges.items()}

    def __contains__(self, address: tuple[int, int, int]) -> bool:
        attempt, shard, sequence = address
        pairs = self._ranges.get(f"{attempt}/{shard}", [])
        return any(first <= sequence <= last for first, last in pairs)


def _save(trainers: "list[Trainer]") -> None:
    for trainer in trainers:
        trainer.save(_ATTEMPT)


def _last_step(dataset: "MScanDataset") -> int:
    return max((int(s.entries["step_last"].max()) for s in dataset.segments if len(s.entries)), default=0)


def _experiment(dataset: "MScanDataset") -> ScanExperiment:
    """Return the experiment that the archive says it is from."""
    about = dataset.segments[0].metadata
    name, spec = about.get("experiment") or "archive", about.get("spec")
    try:
        return ScanExperiment.model_validate(
            {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
        )
    except ValidationError:
        plain = {
            "model": {"uri": "unknown"}, "workload": {"scan": {}}, "capture": {"hookPoints": ["**"]},
            **({"data": spec["data"]} if isinstance(spec, dict) and spec.get("data") else {}),
        }  # fmt: skip
        return ScanExperiment.model_validate(
            {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": plain}
        )


def _configs(dataset: "MScanDataset", file: Path | None, settings: list[str]) -> list[SaeTrain]:
    """Return the settings of the trainers: of a file, or of the archived run; changed by `KEY=VALUE`."""
    entries: Any
    if file is not None:
        try:
            entries = yaml.safe_load(file.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{file} cannot be read: {error}") from None
        entries = entries if isinstance(entries, list) else [entries]
    else:
        sae = _experiment(dataset).spec.sae
        entries = [one.model_dump(by_alias=True) for one in sae.train] if sae else [{}]
    return [_validated(entry, settings, file) for entry in entries]


def _validated(entry: Any, settings: list[str], file: Path | None) -> SaeTrain:
    where = file or "the archive's spec.sae.train"
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected the settings of a trainer, like `latents: 4096`, not {entry!r}")
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write KEY=VALUE, like k=64 or auxk.deadAfter=50000")
        *parents, last = path.split(".")
        part = entry
        for name in parents:
            part[name] = dict(part.get(name) or {})
            part = part[name]
        part[last] = yaml.safe_load(value)
    try:
        return SaeTrain.model_validate(entry)
    except ValidationError as error:
        raise ConfigError(
            *(f"{where}: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        ) from None


def _run_length(path: str) -> int | None:
    """Return the steps of the archived run as its checkpoints know them; None without checkpoints."""
    from asysi.sae.checkpoint import read_checkpoint  # noqa: PLC0415 - torch is slow to import

    for file in sorted((Path(path) / CHECKPOINT_FOLDER).glob("*.ckpt")):
        checkpoint = read_checkpoint(file)
        known = (
            [one["progress"]["steps_total"] for one in checkpoint.words["points"].values()]
            if checkpoint
            else []
        )
        if any(known):
            return int(max(known))
    return None


@app.callback()
def _group() -> None:
    """Train sparse autoencoders."""


@app.command()
def train(
    archive: Annotated[
        str,
        typer.Argument(
            help="A segment, a folder of segments, an output folder with archive/ in it, or an address like "
            "s3://bucket/run.",
            metavar="ARCHIVE",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of checkpoints and SAEs.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="YAML with the settings of a trainer, or a list of them, as in spec.sae.train. Without it "
            "those of the archived run are used.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of every trainer: latents=8192."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default those of the run.")] = None,
) -> None:
    """Train SAEs from an archive, without the model.

    A run that is interrupted, by kill -9 too, continues from its last checkpoint when the command is
    repeated, and ends with the same bits. With the settings of the archived run and an archive that holds
    every packet, the SAEs are those of the run, bit for bit on the same kind of processor.
    """
    import torch  # noqa: PLC0415 - takes seconds
    from rich.progress import Progress  # noqa: PLC0415 - not needed to show the help

    from asysi.archive.dataset import MScanDataset  # noqa: PLC0415
    from asysi.sae.export import metadata_of  # noqa: PLC0415
    from asysi.sae.results import write_results  # noqa: PLC0415

    try:
        dataset = MScanDataset(archive)
    except (FileNotFoundError, MScanError) as error:
        raise ConfigError(str(error)) from None
    experiment = _experiment(dataset)
    sae = experiment.spec.sae
    torch.set_num_threads(threads or (max(1, int(sae.cpus)) if sae else 1))
    configs = _configs(dataset, config, settings or [])
    if broken := trainer_problems(configs):
        raise ConfigError(*broken)
    try:
        with (
            flushed_denormals(),
            torch.inference_mode(),
            Progress(transient=True, disable=not sys.stderr.isatty()) as bar,
        ):
            step = partial(bar.advance, bar.add_task("training", total=None))
            trainers = train_archive(dataset, configs, output, _run_length(archive), step)
            for trainer in trainers:
                write_results(
                    trainer, output / SAE_FOLDER, _ATTEMPT,
                    lambda point, numbers: metadata_of(experiment, {}, point, None, numbers),
                )  # fmt: skip
    except MScanError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    for line in _lines(trainers):
        typer.echo(line)
    if not any(training.progress.scale for trainer in trainers for training in trainer.trainings.values()):
        raise typer.Exit(1)


def _lines(trainers: "list[Trainer]") -> Iterator[str]:
    for trainer in trainers:
        if not trainer.trainings:
            yield f"{trainer.config.name}: the archive has no payloads (archive.tensors was false)"
        for point, training in trainer.trainings.items():
            report = training.report()
            fvu = "unknown" if report["fvu"] is None else f"{report['fvu']:.4f}"
            yield training.why_nothing() or (
                f"{trainer.config.name} {point}: FVU {fvu} on {report['fvu_rows']:,} held-out rows, "
                f"L0 {report['l0']:.1f}, {report['dead']:.1%} dead, trained on {report['trained']:,} rows"
            )
