"""Histograms of tokens seen and kept, by sequence length and by position."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from asysi.bus.packet import RowFlag, document_positions
from asysi.text.grid import StepTokens

_BINS = 64


class Seen:
    """Histograms of content tokens.

    Args:
        context_length: maximum tokens per sequence; it is divided into at most 64 bins of equal width.
    """

    def __init__(self, context_length: int) -> None:
        self._width = -(-(context_length + 1) // _BINS)
        bins = context_length // self._width + 1
        self.by_length = np.zeros((2, bins), np.int64)
        """[seen | kept, bins]"""
        self.by_position = np.zeros((2, bins), np.int64)
        """[seen | kept, bins]: position in the sequence."""
        self.by_document_position = np.zeros((2, bins), np.int64)
        """[seen | kept, bins]: position in the document; the last bin includes all further positions. Zeros
        if every sequence is one document."""

    def add(self, tokens: StepTokens, kept: NDArray[np.int64]) -> None:
        """Count a step: its content tokens, and those at the indices `kept`."""
        concatenated = bool((tokens.rows["flags"] & RowFlag.IN_DOCUMENT).any())
        in_document = document_positions(tokens.rows) if concatenated else None
        lengths = tokens.content.reshape(tokens.batch, tokens.length).sum(axis=1)
        for row, index in enumerate((np.flatnonzero(tokens.content), kept)):
            position, sequence = index % tokens.length, index // tokens.length
            bins = self.by_position.shape[1]
            self.by_position[row] += np.bincount(position // self._width, minlength=bins)[:bins]
            if in_document is not None:
                place = np.minimum(in_document[index] // self._width, bins - 1)
                self.by_document_position[row] += np.bincount(place, minlength=bins)
            self.by_length[row] += np.bincount(lengths[sequence] // self._width, minlength=bins)[:bins]

    def to_dict(self) -> dict[str, object]:
        """Return the histograms: lower bounds of the bins, and content tokens seen and kept."""
        edges = [number * self._width for number in range(self.by_length.shape[1])]
        return {
            name: {"edges": edges, "seen": table[0].tolist(), "kept": table[1].tolist()}
            for name, table in self._tables().items()
        }

    def _tables(self) -> dict[str, NDArray[np.int64]]:
        tables = {"by_length": self.by_length, "by_position": self.by_position}
        if self.by_document_position.any():
            tables["by_document_position"] = self.by_document_position
        return tables


class Beginnings:
    """Counts the sequences that begin with a BOS or CLS token.

    Args:
        openers: the BOS and CLS tokens.
        sequences: sequences counted by earlier attempts.
        opened: how many of these began with such a token.
    """

    def __init__(self, openers: Sequence[int], sequences: int = 0, opened: int = 0) -> None:
        self._openers = np.array(openers, np.int64)
        self.sequences, self.opened = sequences, opened

    def add(self, ids: NDArray[np.int64]) -> None:
        """Count the sequences of a step, [batch, length]."""
        self.sequences += len(ids)
        self.opened += int(np.isin(ids[:, 0], self._openers).sum())
