"""The training loop."""

from asysi.train.trainer import SupervisedTrainer

__all__ = ["SupervisedTrainer"]
