"""Scalars for TensorBoard: loss, learning rate and the figures of each epoch."""

import logging
from typing import Any

from asysi.train.callbacks import Callback, TrainingRun

log = logging.getLogger("asysi")
_EVERY = 10


class TensorBoard(Callback):
    """Writes to `tensorboard/` of the run; without the package it warns once and writes nothing."""

    def __init__(self) -> None:
        self._writer: Any = None

    def on_run_begin(self, trainer: TrainingRun) -> None:
        """Open the log; scalars written by an earlier process after its last checkpoint are hidden."""
        if not trainer.ranks.first:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra
        except ImportError:
            log.warning("no scalars for TensorBoard: pip install 'asysi[train]', or set tensorboard to false")
            return
        self._writer = SummaryWriter(str(trainer.out / "tensorboard"), purge_step=trainer.step)

    def on_step_end(self, trainer: TrainingRun, loss: float) -> None:
        """Write loss and learning rate of every tenth step."""
        if self._writer is not None and trainer.step % _EVERY == 0:
            self._writer.add_scalar("train/loss", loss, trainer.step)
            self._writer.add_scalar("train/learning_rate", trainer.learning_rate, trainer.step)

    def on_epoch_end(self, trainer: TrainingRun, figures: dict[str, float]) -> None:
        """Write the figures of an epoch."""
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name if "/" in name else f"val/{name}", value, trainer.step)
            self._writer.flush()

    def on_run_end(self, trainer: TrainingRun) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()
