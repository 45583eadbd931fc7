"""Augmentation of training images: `config.yaml` chooses."""

from asysi.train.augmentation import MixUp, RandAugment

__all__ = ["MixUp", "RandAugment"]
