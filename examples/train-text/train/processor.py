"""From a text to the tensors of a sample."""

from asysi.train.processor import TextProcessor

__all__ = ["TextProcessor"]
