"""Predictions for tables and single files."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from asysi.contract.errors import ConfigError
from asysi.files import write_atomically
from asysi.train.batches import BatchContract
from asysi.train.checkpoint import BEST, load_weights
from asysi.train.data_loader import BatchLoader
from asysi.train.eval import predictions
from asysi.train.launch import parse_devices
from asysi.train.model import make_model
from asysi.train.project import Project, open_project
from asysi.train.table import Table

ADDED = ("prediction", "probability", "error")
"""Columns that a table of predictions has in addition to those of its input."""


def predict_table(  # noqa: PLR0917 - in the order of the command line
    folder: Path, config: str, settings: Sequence[str], run: Path, table: Path, result: Path, device: str
) -> str:
    """Write a table with predictions; returns a one-sentence summary.

    Args:
        folder: folder of the project.
        config: its configuration.
        settings: `path=value` pairs that override it.
        run: folder of the run whose best weights are used.
        table: input table.
        result: CSV file, written atomically.
        device: `cpu` or the number of a GPU.

    Raises:
        ConfigError: table, weights or device cannot be used.
    """
    project = open_project(folder, config, settings)
    place = _device(device)
    model = _trained(project, run).to(place)
    source = Table(table)
    header = _header(source, table)
    dataset = project.dataset_of(table, labels=False, max_missing=1.0, cache_bytes=0)
    loader = BatchLoader(dataset, BatchContract(project.config.contract), project.config.train.batch_size)
    counts = {"predicted": 0, "bad": 0}

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow([*header, *ADDED])
            found = _found(model, loader, project.config.classes, place)
            wanted = iter(dataset.rows)
            usable = next(wanted, None)
            for number, (_line, row) in enumerate(source.scan()):
                if number == usable:
                    label, probability = next(found)
                    added = [label, f"{probability:.6f}", ""]
                    usable = next(wanted, None)
                    counts["predicted"] += 1
                else:
                    added = ["", "", dataset.missing(row) or "cannot be used"]
                    counts["bad"] += 1
                writer.writerow([*(row.get(name, "") for name in header), *added])

    write_atomically(result, write)
    return f"{result}: {counts['predicted']} rows predicted, {counts['bad']} marked as bad"


def predict_file(folder: Path, config: str, settings: Sequence[str], run: Path, path: Path) -> str:
    """Return `label probability` for one file.

    Raises:
        ConfigError: the file or the weights cannot be used.
    """
    from asysi.train.factory import instantiated  # noqa: PLC0415

    project = open_project(folder, config, settings)
    model = _trained(project, run).eval()
    processor = instantiated(project.config.data.processor)
    sample = processor.preprocess(processor.read(path), img_aug=None)
    contract = BatchContract(project.config.contract)
    batch = {name: tensor.unsqueeze(0) for name, tensor in sample.items()}
    contract.check(batch)
    with torch.inference_mode():
        shares = model(**{name: batch[name] for name in contract.inputs})["logits"].float().softmax(-1)[0]
    probability, number = shares.max(-1)
    return f"{project.config.classes[int(number)]} {float(probability):.4f}"


def _found(
    model: Any, loader: BatchLoader, classes: Sequence[str], device: str
) -> Iterator[tuple[str, float]]:
    for _indices, _labels, logits in predictions(model, loader, device):
        probabilities, numbers = logits.softmax(-1).max(-1)
        for number, probability in zip(numbers.tolist(), probabilities.tolist(), strict=True):
            yield classes[number], probability


def _header(source: Table, table: Path) -> list[str]:
    header = source.header or list(next(source.scan(), (0, {}))[1])
    if taken := [name for name in ADDED if name in header]:
        raise ConfigError(
            f"{table} has a column {taken[0]} already: rename it, the result has one of that name"
        )
    return header


def _trained(project: Project, run: Path) -> torch.nn.Module:
    model = make_model(project.config)
    load_weights(run / BEST, model)
    return model


def _device(name: str) -> str:
    if parse_devices(name) == ["cpu"]:
        return "cpu"
    if not torch.cuda.is_available() or int(name) >= torch.cuda.device_count():
        raise ConfigError(f"there is no GPU {name} on this machine: take cpu")
    return f"cuda:{name}"
