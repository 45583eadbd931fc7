"""`asysi mscan replay`: the archive's packets train the same SAEs again, and every bit is compared.

A trainer's state depends on the packets of each hook point, in their order, and on its settings; both are in
the checkpoint. So the replay of an archive that holds every packet of its log ends in the same tensors.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asysi.archive.errors import MScanError
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import CHECKPOINT_FOLDER, SAE_FOLDER
from asysi.contract.spec import SaeTrain
from asysi.sae.denormals import flushed_denormals

if TYPE_CHECKING:
    from asysi.archive.dataset import MScanDataset
    from asysi.sae.checkpoint import TrainerCheckpoint
    from asysi.sae.trainer import Trainer

Address = tuple[int, int, int]
app = typer.Typer()


@dataclass
class ReplayResult:
    """What a replay of one trainer found."""

    trainer: str
    packets: int
    rows: int
    points: int
    differing: list[str] = field(default_factory=list)
    """What is not bit for bit the same: `hook point/tensor`."""


def logged(ranges: dict[str, list[list[int]]]) -> Iterator[Address]:
    """Yield attempt, shard and sequence of each packet of a log, each shard in the order of consumption."""
    for key, pairs in ranges.items():
        attempt, shard = map(int, key.split("/"))
        for first, last in pairs:
            yield from ((attempt, shard, sequence) for sequence in range(first, last + 1))


def missing_packets(dataset: "MScanDataset", log: Iterable[Address]) -> list[Address]:
    """Return the packets of a log that the archive does not hold."""
    held = dataset.addresses()
    return [address for address in log if address not in held]


def replay_trainer(
    file: Path, dataset: "MScanDataset", output: Path, progress: Callable[[int], None] = lambda _packets: None
) -> ReplayResult:
    """Train again what a checkpoint says was trained; compare it with checkpoint and exported SAEs.

    Args:
        file: the trainer's checkpoint.
        dataset: the archive of the same run.
        output: folder of the run; exported SAEs in it are compared as well.
        progress: is called with the packets that were replayed since the last call.

    Raises:
        ConfigError: there is no checkpoint.
        MScanError: the archive lacks packets of the log, or is damaged.
    """
    import torch  # noqa: PLC0415 - takes seconds

    from asysi.archive.dataset import replay  # noqa: PLC0415
    from asysi.sae.checkpoint import read_checkpoint  # noqa: PLC0415

    checkpoint = read_checkpoint(file)
    if checkpoint is None:
        raise ConfigError(f"{file} does not exist: give the output folder of a run that trained SAEs")
    config = SaeTrain.model_validate(checkpoint.words["trainer"])
    log = list(logged(checkpoint.words["log"]))
    if missing := missing_packets(dataset, log):
        raise MScanError(
            f"{len(missing):,} of the {len(log):,} packets that {config.name} consumed are not archived "
            f"(first: attempt {missing[0][0]}, shard {missing[0][1]}, sequence {missing[0][2]}): "
            "they lapped the archiver, or their segments were deleted, so a replay cannot be exact"
        )
    spec = _spec(dataset)
    sae = spec.get("sae") or {}
    torch.set_num_threads(max(1, int(sae.get("cpus", 1))))
    multiple = ((spec.get("data") or {}).get("tokens") or {}).get("maxNormMultiple")
    result = ReplayResult(config.name, len(log), 0, len(checkpoint.words["points"]))
    with flushed_denormals(), torch.inference_mode():
        trainer = _fresh(config, file, multiple, checkpoint)
        steps = {p: w["progress"]["steps_total"] for p, w in checkpoint.words["points"].items()}
        for address, packet in zip(log, replay(dataset, log), strict=True):
            trainer.receive(packet, (), steps.get(packet.point, 0), address[1])
            result.rows += len(packet.rows)
            progress(1)
        result.differing = [*_state_differences(trainer, checkpoint), *_export_differences(trainer, output)]
    return result


def _spec(dataset: "MScanDataset") -> dict[str, Any]:
    spec = dataset.segments[0].metadata.get("spec")
    return spec if isinstance(spec, dict) else {}


def _fresh(
    config: SaeTrain, file: Path, multiple: float | None, checkpoint: "TrainerCheckpoint"
) -> "Trainer":
    from asysi.sae.trainer import Trainer  # noqa: PLC0415

    memory = {point: int(words["memory"]) for point, words in checkpoint.words["points"].items()}

    class ReplayTrainer(Trainer):
        """Gives each mixing buffer what the live run gave it; an archive does not name every hook point."""

        def _share(self, point: str, row_bytes: int, points: Iterable[str]) -> int:
            return memory.get(point) or super()._share(point, row_bytes, points)

    return ReplayTrainer(config, file, multiple)


def _state_differences(trainer: "Trainer", checkpoint: "TrainerCheckpoint") -> Iterator[str]:
    """Yield what of the state differs from the checkpoint; figures evaluated by the clock do not count."""
    states: dict[str, dict[str, Any]] = {}
    words: dict[str, dict[str, Any]] = {}
    for point, training in trainer.trainings.items():
        states[point], words[point] = training.state()
    for point, saved in checkpoint.words["points"].items():
        if point not in states:
            yield f"{point}: not trained"
            continue
        prefix = f"{point}/"
        live = {n.removeprefix(prefix): t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}
        yield from (
            f"{point}/{name}" for name in sorted(live) if not _same(live[name], states[point].get(name))
        )
        yield from (f"{point}/{name}" for name in ("counts", "rng") if saved[name] != words[point][name])


def _export_differences(trainer: "Trainer", output: Path) -> Iterator[str]:
    """Yield what differs from the exported SAEs, which were trained on what the buffers held at the end."""
    from safetensors.torch import load_file  # noqa: PLC0415

    from asysi.sae.export import WEIGHTS_FILE, folder_of  # noqa: PLC0415

    trainer.end()
    while trainer.train():
        pass
    for of, trainings in trainer.results().items():
        for point, training in trainings.items():
            file = folder_of(output / SAE_FOLDER / of, point) / WEIGHTS_FILE
            if not file.exists():
                continue
            own, live = training.frozen().exported()[1], load_file(file)
            yield from (
                f"{file}: {name}"
                for name in sorted({*own, *live})
                if not _same(live.get(name), own.get(name))
            )


def _same(one: Any, other: Any) -> bool:
    import torch  # noqa: PLC0415

    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(
        one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8)
    )


@app.callback()
def _group() -> None:
    """Commands that need both the archive and the trainers."""


@app.command()
def replay(
    output: Annotated[
        Path, typer.Argument(help="Output folder of a run, with archive/ and checkpoints/.", metavar="OUTPUT")
    ],
    trainer: Annotated[
        str | None, typer.Option(help="Name of one trainer; without it all of them are replayed.")
    ] = None,
) -> None:
    """Train the run's SAEs again from its archive, and compare them bit for bit.

    Exit code 0: every tensor of the checkpoint and of the exported SAEs is the same. Exit code 1: the archive
    lacks packets that the run trained on, which are counted, or something differs. Use the machine of the
    run: other processors round differently.
    """
    from rich.progress import Progress  # noqa: PLC0415 - not needed to show the help

    from asysi.archive.dataset import MScanDataset  # noqa: PLC0415

    files = sorted((output / CHECKPOINT_FOLDER).glob(f"{trainer or '*'}.ckpt"))
    if not files:
        raise ConfigError(
            f"{output / CHECKPOINT_FOLDER} has no checkpoint{f' {trainer}.ckpt' if trainer else ''}: give "
            "the output folder of a run that trained SAEs and archived with archive.tensors"
        )
    failed = False
    for file in files:
        try:
            dataset = MScanDataset(output)
            with Progress(transient=True, disable=not sys.stderr.isatty()) as bar:
                step = partial(bar.advance, bar.add_task(f"replaying {file.stem}", total=None))
                found = replay_trainer(file, dataset, output, step)
        except FileNotFoundError as error:
            raise ConfigError(str(error)) from None
        except MScanError as error:
            typer.echo(f"{file.stem}: {error}", err=True)
            failed = True
            continue
        for name in found.differing:
            typer.echo(f"{found.trainer}: {name} differs", err=True)
        failed |= bool(found.differing)
        same = "differs" if found.differing else "bit for bit the same"
        typer.echo(
            f"{found.trainer}: {found.packets:,} packets, {found.rows:,} rows, {found.points} hook points: "
            f"{same}"
        )
    if failed:
        raise typer.Exit(1)
