"""The loss: `config.yaml` names it, another one may stand here."""

from asysi.train.loss import CrossEntropy

__all__ = ["CrossEntropy"]
