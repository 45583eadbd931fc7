"""Checkpoints and weights."""

from asysi.train.checkpoint import load, load_weights, save, save_weights

__all__ = ["load", "load_weights", "save", "save_weights"]
