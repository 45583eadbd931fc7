"""Losses: from logits and labels to a value to minimise."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class CrossEntropy(nn.Module):
    """Cross-entropy in nats, the mean over the batch.

    Args:
        label_smoothing: share of each label that is spread over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, [].

        Args:
            logits: [batch, classes].
            labels: class indices [batch], or shares [batch, classes].
        """
        return functional.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)


class Distillation(nn.Module):
    """Cross-entropy mixed with the divergence from a teacher's logits (Hinton et al. 2015, arXiv:1503.02531).

    Args:
        temperature: softens both distributions.
        weight: weight of the teacher's term, from 0 to 1.
    """

    def __init__(self, temperature: float = 2.0, weight: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.weight = temperature, weight

    def forward(self, logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        """Return the loss, []; without a teacher's logits [batch, classes], only the cross-entropy."""
        own = functional.cross_entropy(logits.float(), labels)
        if teacher is None:
            return own
        soft = torch.log_softmax(logits.float() / self.temperature, -1)
        target = torch.log_softmax(teacher.float() / self.temperature, -1)
        divergence = functional.kl_div(soft, target, log_target=True, reduction="batchmean")
        return (1 - self.weight) * own + self.weight * self.temperature**2 * divergence
