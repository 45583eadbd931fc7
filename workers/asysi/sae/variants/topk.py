"""The TopK sparse autoencoder (Gao et al. 2024, arXiv 2406.04093, section 2.3), with AuxK.

    L = (Σ‖e‖² + α Σ‖ê − e‖²) / Σ‖x − mean(x)‖²,   e = x − reconstruction

The second sum is AuxK (appendix A.2): ê decodes the k_aux largest dead latents, and the residual e is treated
as a constant. So is the divisor; the first term is thus the batch's FVU; see `spread`.

The gradient is hand-written: only the k firing latents of a row contribute to its cost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from asysi.contract.spec import AuxK, SaeTrain
from asysi.sae.initial import directions
from asysi.sae.normalisation import geometric_median
from asysi.sae.selection import order_of, top_k
from asysi.sae.sparse import SparseLatents, inner_products
from asysi.sae.variants.base import Objective, SparseAutoencoder, StepContext, StepResult, spread, squares


class TopK(SparseAutoencoder):
    """Fires the k largest latents of a row that are above 0.

    latents = ReLU(TopK((x - b_dec) W_enc + b_enc)), reconstruction = latents W_dec + b_dec; rows of W_dec
    have norm 1.

    Args:
        d_in: width of an activation.
        latents: number of latents.
        k: maximum number of latents that fire per row, 1 <= k <= latents.
        dtype: dtype of the parameters.
        auxk: the auxiliary loss, or None.
    """

    architecture = "topk"
    devices = ("cpu", "cuda")

    encoder: Tensor
    """[latents, d_in]: W_enc transposed, so that a latent's weights are contiguous."""
    b_enc: Tensor
    """[latents]"""

    def __init__(
        self, d_in: int, latents: int, k: int, dtype: torch.dtype = torch.float32, *, auxk: AuxK | None = None
    ) -> None:
        if not 1 <= k <= latents:
            raise ValueError(f"k is {k}, but must lie between 1 and the {latents} latents")
        sizes = {"encoder": (latents, d_in), "b_enc": (latents,), "W_dec": (latents, d_in), "b_dec": (d_in,)}
        super().__init__(d_in, d_in, latents, sizes, dtype)
        self.k = k
        self._k_aux = 0 if auxk is None else d_in // 2 if auxk.k is None else auxk.k
        self._coefficient = 0.0 if auxk is None else auxk.coefficient

    @classmethod
    def from_spec(cls, config: SaeTrain, d_in: int, d_out: int) -> Self:
        """Create an autoencoder with all parameters 0; `k` and `auxk` are fields of the entry itself."""
        if d_in != d_out:
            raise ValueError(f"an autoencoder rebuilds what it reads, yet {d_in} is not {d_out}")
        return cls(d_in, config.latents, config.k, auxk=config.auxk)

    @classmethod
    def describe(cls, config: SaeTrain) -> str:
        """Return k."""
        return f"k {config.k}"

    @property
    def W_enc(self) -> Tensor:  # noqa: N802 - the field's name
        """[d_in, latents]"""
        return self.encoder.T

    # Parameters

    def initialise_from(self, rows: Tensor, targets: Tensor, rng: np.random.Generator) -> None:
        """Set initial weights from normalised rows [n, d_in].

        b_dec is their geometric median. The encoder is the decoder's transpose, scaled to minimise the
        initial reconstruction error: with correlated rows, k directions would overshoot.
        """
        centre = geometric_median(rows).to(rows.dtype)
        self.initialise(centre, directions(rows - centre, self.latents, rng))
        sample = rows[-2048:]
        rebuilt = self.forward(sample) - self.b_dec
        along, length = float((rebuilt * (sample - centre)).sum()), float(rebuilt.square().sum())
        if along > 0 and length > 0:
            self.encoder.mul_(along / length)

    def initialise(self, centre: Tensor, directions: Tensor) -> None:
        """Set b_dec to `centre` [d_in], decoder and encoder to normalised `directions` [latents, d_in]."""
        self.b_enc.zero_()
        self.b_dec.copy_(centre)
        self.W_dec.copy_(directions)
        self.constrain()
        self.encoder.copy_(self.W_dec)

    def constrain(self) -> None:
        """Normalise every decoder row to norm 1."""
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min_(1e-12))

    def project(self, gradient: Self) -> None:
        """Remove the gradient component parallel to each decoder row (arXiv 2406.04093, appendix A.1)."""
        along = (gradient.W_dec * self.W_dec).sum(1, keepdim=True)
        gradient.W_dec.addcmul_(along, self.W_dec, value=-1)

    # Inference

    def preactivations(self, centred: Tensor, *, fast: bool = False) -> Tensor:
        """Return the preactivations [rows, latents] before TopK.

        Args:
            centred: [rows, d_in] rows minus b_dec.
            fast: multiply in bfloat16, for training only.
        """
        if not fast:
            return torch.addmm(self.b_enc, centred, self.W_enc)
        product = centred.bfloat16() @ self.encoder.bfloat16().T
        return product.to(self.b_enc.dtype).add_(self.b_enc)

    def activate(self, x: Tensor) -> SparseLatents:
        """Return the firing latents of x [rows, d_in], at most k per row."""
        values, columns = top_k(self.preactivations(x - self.b_dec), self.k)
        return SparseLatents.from_columns(values.relu_(), columns, self.latents)

    # Export

    def frozen(self, scale: float, target_scale: float) -> "TopK":
        """Return the SAE for plain activations: only the two biases are divided by the scale.

        TopK and ReLU commute with a positive factor, so the latents are scaled by it and the decoder's rows
        keep norm 1.
        """
        folded = self.to(self.parameters.dtype)
        folded.b_enc.div_(scale)
        folded.b_dec.div_(target_scale)
        return folded

    def exported(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the configuration and tensors of a SAELens TopK SAE."""
        tensors = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        return {"architecture": self.architecture, "k": self.k}, tensors

    @classmethod
    def from_export(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Load an autoencoder from the result of `exported`."""
        sae = cls(config["d_in"], config["d_sae"], config["k"])
        sae.encoder.copy_(tensors["W_enc"].t())
        sae.b_enc.copy_(tensors["b_enc"])
        sae.W_dec.copy_(tensors["W_dec"])
        sae.b_dec.copy_(tensors["b_dec"])
        return sae

    # Training

    def loss(self, x: Tensor, y: Tensor, context: StepContext) -> Objective:
        """Return the loss as defined in the paper."""
        pre = self.preactivations(x - self.b_dec)
        latents = _largest(pre, self.k)
        error = self.decode(latents) - y
        divisor = spread(y)
        loss = error.square().sum() / divisor
        dead = context.dead
        if len(dead) and self._k_aux:
            revived = _largest(pre[:, dead], min(self._k_aux, len(dead))) @ self.W_dec[dead]
            loss = loss + self._coefficient * (revived + error.detach()).square().sum() / divisor
        return Objective(loss, error, latents > 0)

    def differentiate(self, x: Tensor, y: Tensor, gradient: Self, context: StepContext) -> StepResult:
        """Compute the gradient of the loss over the rows of x [rows, d_in]; see the base class."""
        variance = spread(y)
        seen = self._look(x, y, fast=context.fast)
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

    def _look(self, x: Tensor, y: Tensor, *, fast: bool) -> "_Seen":
        centred = x - self.b_dec
        pre = self.preactivations(centred, fast=fast)
        values, columns = top_k(pre, self.k)
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


def _largest(pre: Tensor, k: int) -> Tensor:
    """Return [rows, latents]: the k largest of each row if above 0, otherwise 0."""
    top = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())


def _bags(rows: Tensor, source: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Return Σ weights · source[rows] over each bag, [bags, width]."""
    return embedding_bag(rows, source, starts, per_sample_weights=weights, mode="sum")
