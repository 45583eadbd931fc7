"""Evaluation: the predictions of a model for a data set, in one pass and bounded memory."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from asysi.train.data_loader import BatchLoader
from asysi.train.metrics import METRICS, Counts, Floats, confusion

_BINS = 20


@dataclass
class EvalResult:
    """Sums over a data set; probabilities are those of the predicted class."""

    matrix: Counts
    """[true class, predicted class]"""
    loss_sum: float = 0.0
    """Cross-entropy in nats, summed over the samples."""
    calibration: Floats = field(default_factory=lambda: np.zeros((3, _BINS)))
    """[3, bins of the probability]: samples, summed probability, correct predictions"""
    worst: list[tuple[float, int, int, float]] = field(default_factory=list)
    """The samples with the highest loss: loss, index, predicted class, its probability."""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.matrix.sum())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / max(1, self.samples)

    def figure(self, name: str) -> float:
        """Return `loss`, or a metric of METRICS."""
        return self.loss if name == "loss" else float(METRICS[name](self.matrix.astype(np.float64)))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error over 20 bins of equal width (Guo et al. 2017, arXiv:1706.04599)."""
        _, probability, right = self.calibration
        return float(np.abs(probability - right).sum() / max(1, self.samples))


def evaluate(
    model: nn.Module, loader: BatchLoader, classes: int, device: str = "cpu", worst: int = 0
) -> EvalResult:
    """Evaluate a model on a loader's data set; the model's mode is restored.

    Args:
        model: returns `logits` [batch, classes].
        loader: in the order of the table.
        classes: number of classes.
        device: device of the model.
        worst: number of examples with the highest loss to keep.
    """
    result = EvalResult(np.zeros((classes, classes), np.int64))
    for indices, labels, logits in predictions(model, loader, device):
        losses = functional.cross_entropy(logits, labels, reduction="none")
        probability, predicted = logits.softmax(-1).max(-1)
        result.matrix += confusion(labels.numpy(), predicted.numpy(), classes)
        result.loss_sum += float(losses.double().sum())
        bins = (probability * _BINS).long().clamp(max=_BINS - 1).numpy()
        for row, values in enumerate(
            (np.ones(len(bins)), probability.numpy(), (predicted == labels).numpy())
        ):
            np.add.at(result.calibration[row], bins, values)
        rows = zip(losses.tolist(), indices.tolist(), predicted.tolist(), probability.tolist(), strict=True)
        result.worst = heapq.nlargest(worst, [*result.worst, *rows])
    return result


def predictions(
    model: nn.Module, loader: BatchLoader, device: str = "cpu"
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield indices, labels and float32 logits of each batch, on the CPU; the model's mode is restored."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for indices, batch in loader.batches(0):
                inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
                yield indices, batch["labels"], model(**inputs)["logits"].float().cpu()
    finally:
        model.train(training)
