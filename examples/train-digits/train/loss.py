"""The loss: selected by `config.yaml`; define a custom one here."""

from asysi.train.loss import CrossEntropy

__all__ = ["CrossEntropy"]
