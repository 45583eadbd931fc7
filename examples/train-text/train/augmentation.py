"""Augmentation of training texts: a callable from text to text; `config.yaml` chooses."""

import torch


class WordDropout:
    """Leaves out words at random.

    Args:
        share: probability that a word is left out.
    """

    def __init__(self, share: float = 0.1) -> None:
        self.share = share

    def __call__(self, text: str) -> str:
        """Return the text without some of its words, with at least one."""
        words = text.split()
        kept = [
            word for word, drawn in zip(words, torch.rand(len(words)), strict=True) if drawn >= self.share
        ]
        return " ".join(kept) or text
