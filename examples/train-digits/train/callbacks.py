"""Callbacks invoked at fixed points of a run: derive from `Callback`."""

from asysi.train.callbacks import Callback, History
from asysi.train.tensorboard import TensorBoard

__all__ = ["Callback", "History", "TensorBoard"]
