"""Extensions of a training run: callbacks invoked at fixed points, in the order given."""

import json
from pathlib import Path
from typing import Any, Protocol

import torch

from asysi.files import write_atomic, write_atomically
from asysi.train.ranks import Ranks


class TrainingRun(Protocol):
    """The trainer, as seen by callbacks."""

    model: torch.nn.Module
    out: Path
    ranks: Ranks
    step: int
    epoch: int
    microbatch: int
    learning_rate: float
    stop: int
    history: list[dict[str, float]]

    @property
    def global_samples(self) -> int:
        """Number of samples of the current step, over all ranks."""

    @property
    def loss_scale(self) -> float:
        """Factor of the loss against underflow in float16; 1 without."""

    def tell(self, joint: str, *values: Any) -> None:
        """Call a method of every callback."""


class Callback:
    """Base class whose methods do nothing; override those needed. An exception ends the run."""

    def on_run_begin(self, trainer: TrainingRun) -> None:
        """Before the first step of this process; also called when a run resumes."""

    def on_step_begin(self, trainer: TrainingRun) -> None:
        """Before a step; also before a step repeated after running out of memory."""

    def on_forward(self, trainer: TrainingRun, indices: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        """Before a forward pass, with the samples of a microbatch."""

    def on_step_end(self, trainer: TrainingRun, loss: float) -> None:
        """After a step; `loss` is the mean over the global batch."""

    def on_evaluation_begin(self, trainer: TrainingRun) -> None:
        """Before the model is evaluated: forward passes from here on are not training."""

    def on_evaluation_end(self, trainer: TrainingRun) -> None:
        """After the evaluation, before training continues."""

    def on_epoch_end(self, trainer: TrainingRun, figures: dict[str, float]) -> None:
        """After the evaluation of an epoch."""

    def on_checkpoint(self, trainer: TrainingRun) -> None:
        """After a checkpoint has been written to disk."""

    def on_run_end(self, trainer: TrainingRun) -> None:
        """After the last step, or when the run stops early."""


class History(Callback):
    """Writes the figures of all epochs to `history.json`."""

    def on_epoch_end(self, trainer: TrainingRun, figures: dict[str, float]) -> None:
        """Write the file."""
        if trainer.ranks.first:
            write_atomic(trainer.out / "history.json", json.dumps(trainer.history, indent=1))


class LayerDrift(Callback):
    """Compares layer outputs for a fixed batch with those before training, by linear CKA.

    Kornblith et al. 2019 (arXiv:1905.00414): CKA is 1 for features that differ only by rotation and scale.
    The reference is kept in `drift.pt`, so that a resumed run uses the same one.

    Args:
        layers: names of modules; each returns a tensor with the batch first.
        batch: inputs of the model, at most a few hundred samples.
    """

    def __init__(self, layers: list[str], batch: dict[str, torch.Tensor]) -> None:
        self.layers, self._batch = layers, batch
        self._reference: dict[str, torch.Tensor] = {}

    def on_run_begin(self, trainer: TrainingRun) -> None:
        """Measure the reference, or read the one of an earlier process."""
        file = trainer.out / "drift.pt"
        if file.is_file():
            self._reference = torch.load(file, weights_only=True)
            return
        trainer.tell("on_evaluation_begin")
        self._reference = features(trainer.model, self.layers, self._batch)
        trainer.tell("on_evaluation_end")
        if trainer.ranks.first:
            write_atomically(file, lambda temporary: torch.save(self._reference, temporary))

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """Return `drift/<layer>`: 1 - CKA between the reference and the current output."""
        now = features(model, self.layers, self._batch)
        return {f"drift/{name}": 1 - linear_cka(self._reference[name], now[name]) for name in self.layers}


def features(
    model: torch.nn.Module, layers: list[str], batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the outputs of modules for a batch, [samples, features], float32 on the CPU."""
    found: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    training = model.training

    def keep(name: str) -> Any:
        def hook(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            found[name] = tensor.detach().float().flatten(1).cpu()

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        model.eval()
        with torch.inference_mode():
            model(**batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return {name: tensor.clone() for name, tensor in found.items()}


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the linear CKA of two sets of features, [samples, features]; 0 if one of them is constant."""
    first, second = first.double() - first.double().mean(0), second.double() - second.double().mean(0)
    gram_first, gram_second = first @ first.T, second @ second.T
    norm = gram_first.norm() * gram_second.norm()
    return float((gram_first * gram_second).sum() / norm) if norm > 0 else 0.0
