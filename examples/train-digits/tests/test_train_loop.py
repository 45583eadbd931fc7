"""The training loop: it learns, and an interruption changes no bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train.callbacks import Callback
from train.trainer import SupervisedTrainer

from asysi.train.project import Project


class Stop(Callback):
    """Asks for the end after the second step."""

    def on_step_end(self, trainer, loss: float) -> None:
        if trainer.step == 2:
            trainer.stop = 143


def test_an_interruption_changes_no_bit(short: Project, tmp_path: Path) -> None:
    """A run that is stopped and continued ends with the weights of one that was not."""
    SupervisedTrainer(short, tmp_path / "whole").fit()
    with pytest.raises(Exception, match="143"):
        SupervisedTrainer(short, tmp_path / "parts", callbacks=[Stop()]).fit()
    SupervisedTrainer(short, tmp_path / "parts").fit()
    whole, parts = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_loss_falls(short: Project, tmp_path: Path) -> None:
    """The second epoch over 64 rows has a lower mean loss than the first."""
    losses: list[float] = []

    class Keep(Callback):
        def on_step_end(self, trainer, loss: float) -> None:
            losses.append(loss)

    SupervisedTrainer(short, tmp_path / "run", callbacks=[Keep()]).fit()
    half = len(losses) // 2
    assert sum(losses[half:]) < sum(losses[:half])
