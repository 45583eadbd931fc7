"""The TopK sparse autoencoder (Gao et al. 2024, arXiv 2406.04093, section 2.3), with AuxK.

    L = (Σ‖e‖² + α Σ‖ê − e‖²) / Σ‖x − mean(x)‖²,   e = x − reconstruction

The second sum is AuxK; see `AffineAutoencoder`. The first term is the batch's FVU.

The gradient is hand-written: only the k firing latents of a row contribute to its cost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from asysi.contract.spec import SaeTrain
from asysi.sae.selection import order_of, top_k
from asysi.sae.sparse import SparseLatents, inner_products
from asysi.sae.variants.affine import AffineAutoencoder, firing_number, largest
from asysi.sae.variants.base import StepContext, StepResult, spread, squares


class TopK(AffineAutoencoder):
    """Fires the k largest latents of a row that are above 0.

    latents = ReLU(TopK((x - b_dec) W_enc + b_enc)), reconstruction = latents W_dec + b_dec.

    Args:
        d_in: width of an activation.
        latents: number of latents.
        k: maximum number of latents that fire per row, 1 <= k <= latents.
        dtype: dtype of the parameters.
        common: see `AffineAutoencoder`.
    """

    architecture = "topk"

    def __init__(
        self, d_in: int, latents: int, k: int, dtype: torch.dtype = torch.float32, **common: Any
    ) -> None:
        if not 1 <= k <= latents:
            raise ValueError(f"k is {k}, but must lie between 1 and the {latents} latents")
        super().__init__(d_in, latents, dtype, **common)
        self.k = k

    @classmethod
    def _configured(cls, config: SaeTrain, d_in: int, **common: Any) -> Self:
        return cls(d_in, config.latents, config.k, **common)

    @classmethod
    def describe(cls, config: SaeTrain) -> str:
        """Return k."""
        return f"k {config.k}"

    def _first_reconstruction(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def _firing(self, context: StepContext) -> int:
        return firing_number(self.k, self.latents, self.d_in, context.sparsity)

    def fire(self, pre: Tensor, context: StepContext) -> Tensor:
        """Return the k largest of each row."""
        return largest(pre, self._firing(context))

    # Inference

    def activate(self, x: Tensor) -> SparseLatents:
        """Return the firing latents of x [rows, d_in], at most k per row."""
        values, columns = top_k(self.preactivations(x - self.b_dec), self.k)
        return SparseLatents.from_columns(values.relu_(), columns, self.latents)

    # Export

    def exported(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the configuration and tensors of a SAELens TopK SAE."""
        own, tensors = super().exported()
        return {**own, "k": self.k}, tensors

    @classmethod
    def _empty(cls, config: Mapping[str, Any]) -> Self:
        return cls(config["d_in"], config["d_sae"], config["k"])

    # Training

    def differentiate(self, x: Tensor, y: Tensor, gradient: Self, context: StepContext) -> StepResult:
        """Compute the gradient of the loss over the rows of x [rows, d_in]; see the base class."""
        variance = spread(y)
        seen = self._reconstruct(x, y, self._firing(context), fast=context.fast)
        gradient.parameters.zero_()
        auxiliary = 0.0
        if len(context.dead) and self._k_aux:
            auxiliary = self._add_auxk(seen, gradient, context.dead, scale=2 * self._coefficient / variance)
        self._add_reconstruction(seen, gradient, scale=2 / variance)
        # b_dec is added to the output and subtracted from the input.
        gradient.b_dec.add_(seen.error.sum(0), alpha=2 / variance).sub_(gradient.b_enc @ self.encoder)
        firing = seen.values > 0
        fired = torch.zeros(self.latents, dtype=torch.bool, device=x.device)
        fired[seen.columns[firing]] = True
        fvu = squares(seen.error) / variance
        loss = fvu + self._coefficient * auxiliary / variance
        return StepResult(loss, fvu, int(firing.sum()) / len(x), fired)

    def _reconstruct(self, x: Tensor, y: Tensor, k: int, *, fast: bool) -> "_Seen":
        centred = x - self.b_dec
        pre = self.preactivations(centred, fast=fast)
        values, columns = top_k(pre, k)
        values.relu_()
        rebuilt = embedding_bag(columns, self.W_dec, per_sample_weights=values, mode="sum").add_(self.b_dec)
        return _Seen(centred, pre, values, columns, rebuilt.sub_(y))

    def _add_reconstruction(self, seen: "_Seen", gradient: Self, *, scale: float) -> None:
        """Add the gradient of Σ‖e‖² × scale / 2 through the k firing latents of each row."""
        rows, k = seen.columns.shape
        error = seen.error * scale
        flat = seen.columns.view(-1)
        row_of = torch.arange(rows, device=flat.device).repeat_interleave(k)
        offsets = torch.arange(0, rows * k, k, device=flat.device)
        slope = inner_products(error, self.W_dec, row_of, flat, offsets)
        slope = slope.view(rows, k).mul_(seen.values > 0).view(-1)
        # Sort the pairs by latent: a latent's gradient is then a weighted sum over a bag of rows.
        order = order_of(flat, self.latents)
        sizes = torch.bincount(flat, minlength=self.latents)
        starts = sizes.cumsum(0).sub_(sizes)
        by_latent = row_of[order]
        gradient.W_dec.add_(_bags(by_latent, error, starts, seen.values.view(-1)[order]))
        gradient.encoder.add_(_bags(by_latent, seen.centred, starts, slope[order]))
        gradient.b_enc.index_add_(0, flat, slope)

    def _add_auxk(self, seen: "_Seen", gradient: Self, dead: Tensor, *, scale: float) -> float:
        """Add the gradient of Σ‖ê − e‖² × scale / 2 and return Σ‖ê − e‖². Dense, as dead latents are few."""
        values, columns = top_k(seen.pre[:, dead], min(self._k_aux, len(dead)))
        decoder = self.W_dec[dead]
        latents = values.new_zeros(len(values), len(dead)).scatter_(1, columns, values.relu_())
        miss = torch.addmm(seen.error, latents, decoder)  # ê − e
        total = squares(miss)
        miss.mul_(scale)
        slope = (miss @ decoder.T).mul_(latents > 0)
        gradient.W_dec.index_add_(0, dead, latents.T @ miss)
        gradient.encoder.index_add_(0, dead, slope.T @ seen.centred)
        gradient.b_enc.index_add_(0, dead, slope.sum(0))
        return total


@dataclass(frozen=True, slots=True)
class _Seen:
    """Intermediate results of the forward pass."""

    centred: Tensor
    """[rows, d_in] x − b_dec"""
    pre: Tensor
    """[rows, latents]"""
    values: Tensor
    """[rows, k]"""
    columns: Tensor
    """[rows, k]"""
    error: Tensor
    """[rows, d_in] reconstruction − target, which is −e"""


def _bags(rows: Tensor, source: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Return Σ weights · source[rows] over each bag, [bags, width]."""
    return embedding_bag(rows, source, starts, per_sample_weights=weights, mode="sum")
