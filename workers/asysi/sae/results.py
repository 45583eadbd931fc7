"""What a trainer leaves: one folder per hook point with the SAE; `training.json` with metrics and curve."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asysi.contract.runtime import TRAINING_FILE
from asysi.files import write_atomic
from asysi.sae.export import export, folder_of
from asysi.sae.trainer import Trainer
from asysi.sae.training import Training

CURVE = ["trained", "loss", "fvu", "l0", "dead"]
"""Columns of a training curve in `training.json`."""
Describe = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Returns the metadata of an export, from its hook point and its metrics."""

log = logging.getLogger("asysi")


def write_results(
    trainer: Trainer,
    parent: Path,
    attempt: int,
    describe: Describe,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Export the SAEs of a trainer, and write metrics, curves, and why an SAE is missing.

    Args:
        trainer: its training has ended.
        parent: receives a folder for each of its autoencoders.
        attempt: the attempt that ended it.
        describe: see `Describe`.
        beat: called between two SAEs.
    """
    for name, trainings in trainer.results().items():
        for point, training in trainings.items():
            _export_one(name, parent / name, point, training, describe)
            beat()
        points = {
            point: {
                **training.report(),
                "why": training.why_nothing(),
                "curve": [[_finite(value) for value in one] for one in training.progress.curve],
            }
            for point, training in trainings.items()
        }
        record = {"attempt": attempt, "curve": CURVE, "points": points}
        write_atomic(parent / name / TRAINING_FILE, json.dumps(record, allow_nan=False))


def _export_one(name: str, folder: Path, point: str, training: Training, describe: Describe) -> None:
    if why := training.why_nothing():
        log.warning("%s exports nothing at %s: %s", name, point, why)
        return
    numbers = {**training.report(), "trainer": training.config.model_dump(mode="json", by_alias=True)}
    export(folder_of(folder, point), training.frozen(), describe(point, numbers))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
