"""The text that finish rereads: a bounded number of documents, as flat arrays over their tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RereadTokens:
    """Concatenated documents including special tokens; n tokens, d documents."""

    tokens: NDArray[np.int64]
    """[n] token ids."""
    document: NDArray[np.int64]
    """[n] document of each token."""
    content: NDArray[np.bool_]
    """[n] whether the token is data: not special, not excluded."""
    rows: NDArray[np.uint64]
    """[d] input row."""
    held_out: NDArray[np.bool_]
    """[d] whether the document was never trained on."""

    @property
    def held_tokens(self) -> NDArray[np.bool_]:
        """[n] whether the token belongs to a held-out document."""
        return self.held_out[self.document]

    @property
    def position(self) -> NDArray[np.int64]:
        """[n] position of the token in its sequence."""
        return np.arange(len(self.tokens)) - np.searchsorted(self.document, self.document)

    def of(self, documents: NDArray[np.bool_]) -> "RereadTokens":
        """Return those `documents` [d] bool alone, numbered from 0."""
        keep = documents[self.document]
        number = np.cumsum(documents) - 1
        return RereadTokens(
            self.tokens[keep],
            number[self.document[keep]],
            self.content[keep],
            self.rows[documents],
            self.held_out[documents],
        )

    def sequence(self, document: int) -> NDArray[np.int64]:
        """Return the token ids of a document."""
        start, stop = np.searchsorted(self.document, [document, document + 1])
        return self.tokens[start:stop]


@dataclass(frozen=True, slots=True)
class PointRows:
    """The activations of one hook point: one row per token and call; r rows, all finite."""

    values: NDArray[np.float32]
    """[r, width]"""
    token: NDArray[np.int64]
    """[r] index of the row's token in `RereadTokens`, ascending."""
    call: NDArray[np.int64]
    """[r] index of the module call within the forward pass, from 0."""
    not_finite: int = 0
    """Rows with NaN or infinite elements, excluded from `values`."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows that could not be captured, by reason."""

    def within(self, limit: float) -> "PointRows":
        """Return the rows whose L2 norm is at most `limit`."""
        norms = np.sqrt(np.einsum("ij,ij->i", self.values, self.values, dtype=np.float64))
        keep = norms <= limit
        return replace(self, values=self.values[keep], token=self.token[keep], call=self.call[keep])

    def of(self, tokens: NDArray[np.bool_]) -> "PointRows":
        """Return the rows of those `tokens` [n] of the sheet alone, numbered from 0; every row is of one."""
        number = np.cumsum(tokens) - 1
        return replace(self, token=number[self.token])

    @property
    def calls(self) -> list[int]:
        """Indices of the calls that produced rows, ascending."""
        return [int(number) for number in np.unique(self.call)]


def every_token(values: NDArray[np.float32]) -> PointRows:
    """Return `values` [n, width] as the rows of a module that was called once per token."""
    return PointRows(values, np.arange(len(values)), np.zeros(len(values), np.int64))


def tokens_that_fit(widths: list[int], memory: int) -> int:
    """Return how many tokens may be read again so that float32 activations of all points stay within
    `memory` bytes; 256 at least.
    """
    return max(256, memory // (4 * max(1, sum(widths))))


def select(
    lengths: NDArray[np.int64], held_out: NDArray[np.bool_], tokens: int, seed: int
) -> NDArray[np.int64]:
    """Choose the documents to reread, in input order: held-out ones first, at most 3/4 of the tokens.

    Args:
        lengths: [d] number of tokens of each document.
        held_out: [d] whether the document is held out.
        tokens: maximum number of tokens to choose.
        seed: seed of the random choice.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    others = not held_out.all()
    first = _within(order[held_out[order]], lengths, tokens * 3 // 4 if others else tokens)
    second = _within(order[~held_out[order]], lengths, tokens - int(lengths[first].sum()))
    return np.sort(np.concatenate([first, second]))


def _within(order: NDArray[np.int64], lengths: NDArray[np.int64], tokens: int) -> NDArray[np.int64]:
    order = order[lengths[order] <= tokens]
    return order[: int(np.searchsorted(np.cumsum(lengths[order]), tokens, side="right"))]
