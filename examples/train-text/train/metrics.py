"""The metrics of the evaluation, by the names that `eval.metrics` uses."""

from asysi.train.metrics import METRICS, intervals

__all__ = ["METRICS", "intervals"]
