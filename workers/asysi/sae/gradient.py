"""Loss of a TopK autoencoder and its gradient, written out: only the k firing latents of a row cost anything.

    L = (Σ‖e‖² + α Σ‖ê − e‖²) / Σ‖x − mean(x)‖²,   e = x − reconstruction

The second sum is AuxK (Gao et al. 2024, arXiv 2406.04093, appendix A.2): ê decodes the k_aux largest dead
latents, and the residual e is a constant in it. The divisor is a constant too, so the first part is the
batch's FVU. Where all rows of a batch are the same, Σ‖x‖² takes the divisor's place.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from asysi.sae.fvu import RESOLUTION
from asysi.sae.model import SparseAutoencoder
from asysi.sae.selection import top_k


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch showed."""

    loss: float
    """The whole loss."""
    fvu: float
    """Its first part."""
    l0: float
    """Mean number of latents above 0."""
    fired: Tensor
    """[latents] bool: which latents were above 0 for at least one row."""


def differentiate(
    sae: SparseAutoencoder,
    x: Tensor,
    gradient: SparseAutoencoder,
    *,
    dead: Tensor | None = None,
    k_aux: int = 0,
    coefficient: float = 1 / 32,
    fast: bool = False,
) -> Outcome:
    """Put the loss's gradient over the rows of x [rows, d_in] into `gradient`, shaped like `sae`.

    Args:
        sae: the autoencoder.
        x: normalised activations, finite.
        gradient: is overwritten.
        dead: [n] int64, latents that count as dead; None or empty leaves AuxK out.
        k_aux: dead latents that rebuild the residual; 0 leaves AuxK out.
        coefficient: α.
        fast: multiply in bfloat16 where that decides which latents fire and how strongly.

    Raises:
        FloatingPointError: activations or weights are not finite.
    """
    variance = _divisor(x)
    seen = _look(sae, x, fast=fast)
    gradient.parameters.zero_()
    auxiliary = 0.0
    if dead is not None and len(dead) and k_aux:
        auxiliary = _auxk(sae, seen, gradient, dead, k=k_aux, scale=2 * coefficient / variance)
    _reconstruction(sae, seen, gradient, scale=2 / variance)
    # b_dec is added to the output and subtracted from the input.
    gradient.b_dec.add_(seen.error.sum(0), alpha=2 / variance).sub_(gradient.b_enc @ sae.encoder)
    firing = seen.values > 0
    fired = torch.zeros(sae.latents, dtype=torch.bool)
    fired[seen.columns[firing]] = True
    fvu = _squares(seen.error) / variance
    return Outcome(fvu + coefficient * auxiliary / variance, fvu, int(firing.sum()) / len(x), fired)


def _divisor(x: Tensor) -> float:
    variance, energy = float((x - x.mean(0)).square_().sum()), float(x.square().sum())
    return max(variance if variance > RESOLUTION * energy else energy, 1e-12)


def project(sae: SparseAutoencoder, gradient: SparseAutoencoder) -> None:
    """Remove what would lengthen or shorten decoder rows (arXiv 2406.04093, appendix A.1)."""
    along = (gradient.W_dec * sae.W_dec).sum(1, keepdim=True)
    gradient.W_dec.addcmul_(along, sae.W_dec, value=-1)


@dataclass(frozen=True, slots=True)
class _Seen:
    """The forward pass."""

    centred: Tensor
    """[rows, d_in] x − b_dec"""
    pre: Tensor
    """[rows, latents]"""
    values: Tensor
    """[rows, k]"""
    columns: Tensor
    """[rows, k]"""
    error: Tensor
    """[rows, d_in] reconstruction − x, which is −e"""


def _look(sae: SparseAutoencoder, x: Tensor, *, fast: bool) -> _Seen:
    centred = x - sae.b_dec
    pre = sae.preactivations(centred, fast=fast)
    values, columns = top_k(pre, sae.k)
    values.relu_()
    return _Seen(centred, pre, values, columns, sae.reconstruct(values, columns).sub_(x))


def _reconstruction(
    sae: SparseAutoencoder, seen: _Seen, gradient: SparseAutoencoder, *, scale: float
) -> None:
    """Add the gradient of Σ‖e‖² × scale / 2, through the k latents that a row fires."""
    rows, k = seen.columns.shape
    error = seen.error * scale
    flat = seen.columns.view(-1)
    offsets = torch.arange(0, rows * k, k)
    row_of = torch.arange(rows).repeat_interleave(k)
    # ⟨error of the row, decoder of the latent⟩ for every pair that fired
    slope = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        error, sae.W_dec, flat, offsets, row_of, 0
    )
    slope = slope.view(rows, k).mul_(seen.values > 0).view(-1)
    # The same pairs, sorted by latent: a latent's gradient is then a weighted sum of a bag of rows.
    keys = flat.numpy()
    if sae.latents < 2**15:
        keys = keys.astype(np.int16)  # numpy sorts these by radix
    order = torch.from_numpy(np.argsort(keys, kind="stable"))
    sizes = torch.bincount(flat, minlength=sae.latents)
    starts = sizes.cumsum(0).sub_(sizes)
    by_latent = row_of[order]
    gradient.W_dec.add_(_bags(by_latent, error, starts, seen.values.view(-1)[order]))
    gradient.encoder.add_(_bags(by_latent, seen.centred, starts, slope[order]))
    gradient.b_enc.index_add_(0, flat, slope)


def _bags(rows: Tensor, source: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Return Σ weights · source[rows] over each bag, [bags, width]."""
    return embedding_bag(rows, source, starts, per_sample_weights=weights, mode="sum")


def _auxk(
    sae: SparseAutoencoder, seen: _Seen, gradient: SparseAutoencoder, dead: Tensor, *, k: int, scale: float
) -> float:
    """Add the gradient of Σ‖ê − e‖² × scale / 2 and return Σ‖ê − e‖². Dense, for dead latents are few."""
    values, columns = top_k(seen.pre[:, dead], min(k, len(dead)))
    decoder = sae.W_dec[dead]
    latents = values.new_zeros(len(values), len(dead)).scatter_(1, columns, values.relu_())
    miss = torch.addmm(seen.error, latents, decoder)  # ê − e
    squares = _squares(miss)
    miss.mul_(scale)
    slope = (miss @ decoder.T).mul_(latents > 0)
    gradient.W_dec.index_add_(0, dead, latents.T @ miss)
    gradient.encoder.index_add_(0, dead, slope.T @ seen.centred)
    gradient.b_enc.index_add_(0, dead, slope.sum(0))
    return squares


def _squares(rows: Tensor) -> float:
    return float(torch.linalg.vector_norm(rows, dtype=torch.float64) ** 2)
