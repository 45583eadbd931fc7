"""Trains an autoencoder on rows from an iterable, with the loop that trains on the live stream."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from asysi.bus.packet import ROW_DTYPE, RowFlag
from asysi.contract.errors import ConfigError
from asysi.contract.quantity import parse_bytes
from asysi.contract.rules import trainer_problems
from asysi.contract.spec import Grid, SaeTrain
from asysi.sae.denormals import flushed_denormals
from asysi.sae.export import export
from asysi.sae.training import Training
from asysi.sae.variants.base import SparseAutoencoder

Rows = Tensor | NDArray[Any]
"""[n, width] of a floating-point type."""
_POINT = "activations"
_STORED = (torch.float32, torch.bfloat16, torch.float16)
_GOLDEN = 2654435769
"""2³² divided by the golden ratio: multiples of it are spread evenly modulo 2³²."""


@dataclass(frozen=True)
class TrainedSae:
    """The result of a training."""

    sae: SparseAutoencoder
    """For plain activations: `encode`, `decode`, `forward`."""
    config: SaeTrain
    report: dict[str, Any]
    """Metrics and counts, as in `training.json`: fvu, l0, dead, trained, not_finite, …"""
    curve: list[list[float]]
    """Rows trained on, loss, held-out FVU, L0, share of dead latents."""

    def save(self, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the SAE to a folder in SAELens' layout."""
        export(Path(folder), self.sae, {"asysi": self.report, **(metadata or {})})


def train(
    rows: Rows | Iterable[Rows],
    config: SaeTrain | Mapping[str, Any] | None = None,
    *,
    holdout: float = 0.05,
    total: int | None = None,
) -> TrainedSae:
    """Train an autoencoder on rows, each once and in random order within the mixing buffer.

    Denormal numbers are flushed to zero in this process from then on: moments of dead latents decay to them,
    and they are slow.

    Args:
        rows: one tensor [n, width], or an iterable of them; float32, bfloat16 and float16 are kept as they
            are, other floating-point types become float32. Rows that then have NaN or infinity are counted
            and skipped.
        config: settings of a trainer, as in `spec.sae.train` (`hookPoints` has no effect, `grid` is refused).
        holdout: share of the rows that are never trained on; a sample of 4,096 of them is evaluated on.
        total: number of all rows, if `rows` is an iterator; without it the learning rate does not fall.

    Raises:
        ConfigError: the settings are invalid, the rows' width or type changes, or there are no rows to train
            on.
        FloatingPointError: training diverged.
    """
    entry = _entry(config)
    if not 0 <= holdout < 1:
        raise ConfigError(f"holdout is {holdout}, but must lie between 0 and 1")
    if total is None and isinstance(rows, list | tuple | Tensor | np.ndarray):
        total = len(rows) if isinstance(rows, Tensor | np.ndarray) else sum(map(len, rows))
    training: Training | None = None
    seen = 0
    with flushed_denormals(), torch.inference_mode():
        for block in _blocks(rows, entry.batch):
            values = _values(block, seen)
            if training is None:
                training = _begin(entry, values)
            _matches(values, training, seen)
            records = _records(seen, len(values), holdout)
            seen += len(values)
            # Rows take the place of steps: what is left of the run is what is left of the rows.
            training.progress.steps_total = total or 0
            kept = values.to(training.dtype)  # first: float64 can become infinite
            finite = kept.isfinite().all(1).numpy()
            training.receive(kept, finite, records, max(0, seen - 1))
            while training.train():
                pass
        if training is None:
            raise ConfigError("there are no rows to train on: the iterable is empty")
        training.complete()
        if why := training.why_nothing():
            raise ConfigError(f"nothing was trained: {why}")
        return TrainedSae(training.frozen(), entry, training.report(), training.progress.curve)


def _entry(config: SaeTrain | Mapping[str, Any] | None) -> SaeTrain:
    try:
        entry = config if isinstance(config, SaeTrain) else SaeTrain.model_validate(dict(config or {}))
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigError(*problems) from None
    if entry.grid != Grid():
        raise ConfigError("grid: train returns one autoencoder; leave grid out, and call it once per setting")
    if broken := trainer_problems([entry]):
        raise ConfigError(*broken)
    return entry


def _begin(entry: SaeTrain, first: Tensor) -> Training:
    try:
        return Training(entry, _POINT, first.shape[1], _kept_as(first), parse_bytes(entry.buffer.memory))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _kept_as(values: Tensor) -> torch.dtype:
    return values.dtype if values.dtype in _STORED else torch.float32


def _matches(values: Tensor, training: Training, seen: int) -> None:
    """Raise unless a block's rows are like those before."""
    where = f"rows {seen:,} and later"
    if values.shape[1] != training.sae.d_in:
        raise ConfigError(
            f"{where} have width {values.shape[1]}, but those before have {training.sae.d_in}: train one "
            "autoencoder per width"
        )
    if _kept_as(values) is not training.dtype:
        types = [str(one).removeprefix("torch.") for one in (values.dtype, training.dtype)]
        raise ConfigError(f"{where} are {types[0]}, but those before are {types[1]}: convert all to one type")


def _blocks(rows: Rows | Iterable[Rows], batch: int) -> Iterator[Rows]:
    """Yield the rows in blocks: those of the iterable, or of about a batch."""
    if isinstance(rows, Tensor | np.ndarray):
        for begin in range(0, len(rows), batch):
            yield rows[begin : begin + batch]
    else:
        yield from rows


def _values(block: Rows, seen: int) -> Tensor:
    values = (torch.from_numpy(block) if isinstance(block, np.ndarray) else block).detach().cpu()
    if values.ndim != 2 or not values.shape[1] or not values.is_floating_point():
        raise ConfigError(
            f"the block at row {seen:,} has shape {list(values.shape)} and type {values.dtype}: give "
            "floating-point tensors [rows, width]; flatten others with .reshape(-1, width)"
        )
    return values


def _records(first: int, count: int, holdout: float) -> NDArray[np.void]:
    """Return the origins of rows: each is a sequence of its own, and held-out ones are spread evenly."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    records = np.zeros(count, ROW_DTYPE)
    records["sample"] = numbers
    records["sequence"] = numbers % 2**31
    held = (numbers * np.uint64(_GOLDEN)) % np.uint64(2**32) < np.uint64(int(holdout * 2**32))
    records["flags"][held] = RowFlag.HOLDOUT
    return records
