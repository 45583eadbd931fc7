"""Sparse representation of latents: only those that fire."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True, slots=True)
class SparseLatents:
    """Firings of latents in sparse coordinate (COO) format: n firings, sorted by row.

    The number of firing latents can differ between rows, and can be 0.
    """

    row: Tensor
    """[n] int64, ascending."""
    latent: Tensor
    """[n] int64, each latent at most once per row, in any order."""
    value: Tensor
    """[n] > 0; NaN if weights or activations are NaN, so that errors propagate."""
    rows: int
    """Number of encoded rows, including rows without firings."""
    latents: int
    """Total number of latents."""

    @classmethod
    def from_dense(cls, dense: Tensor) -> "SparseLatents":
        """Create from dense latents [rows, latents], in which 0 means that a latent does not fire."""
        row, latent = dense.nonzero(as_tuple=True)
        return cls(row, latent, dense[row, latent], *dense.shape)

    @classmethod
    def from_columns(cls, values: Tensor, columns: Tensor, latents: int) -> "SparseLatents":
        """Create from nonzero `values` [rows, k] of the latents `columns` [rows, k]."""
        fires = values != 0
        return cls(fires.nonzero()[:, 0], columns[fires], values[fires], len(values), latents)

    def dense(self) -> Tensor:
        """Return dense latents [rows, latents]; 0 if a latent does not fire."""
        dense = self.value.new_zeros(self.rows, self.latents)
        dense[self.row, self.latent] = self.value
        return dense

    def of(self, rows: Tensor) -> "SparseLatents":
        """Return the firings of the rows selected by the mask `rows` [rows], with renumbered rows."""
        keep = rows[self.row]
        number = rows.cumsum(0) - 1
        return SparseLatents(
            number[self.row[keep]], self.latent[keep], self.value[keep], int(rows.sum()), self.latents
        )

    def decode(self, decoder: Tensor) -> Tensor:
        """Return Σ value · decoder[latent] of each row, [rows, width], for a decoder [latents, width]."""
        return embedding_bag(self.latent, decoder, self._offsets(), per_sample_weights=self.value, mode="sum")

    def along(self, rows: Tensor, decoder: Tensor) -> Tensor:
        """Return ⟨rows[row], decoder[latent]⟩ of each firing, [n], for rows [rows, width]."""
        return inner_products(rows, decoder, self.row, self.latent, self._offsets())

    def _offsets(self) -> Tensor:
        """Return the offset of each row, [rows]."""
        counts = torch.bincount(self.row, minlength=self.rows)
        return counts.cumsum(0) - counts


def inner_products(rows: Tensor, decoder: Tensor, row: Tensor, latent: Tensor, offsets: Tensor) -> Tensor:
    """Return ⟨rows[row], decoder[latent]⟩ of each pair, [n], without copies of the vectors.

    Args:
        rows: [rows, width].
        decoder: [latents, width].
        row: [n] int64, ascending.
        latent: [n] int64.
        offsets: [rows] offset of each row's first pair.
    """
    products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows, decoder, latent, offsets, row, 0
    )
    return products
