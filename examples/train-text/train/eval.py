"""Evaluation of a model on a data set."""

from asysi.train.eval import EvalResult, evaluate

__all__ = ["EvalResult", "evaluate"]
