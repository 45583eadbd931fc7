"""The BatchTopK sparse autoencoder (Bussmann et al. 2024, arXiv 2412.06410), with AuxK.

In training the k × rows largest preactivations of a whole batch fire, so that a row can have more or fewer
than k. After training a row must not depend on others: a latent then fires above a threshold, the running
mean of the smallest latent that fired in a batch. The export is the JumpReLU autoencoder with that threshold.
"""

import math
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from asysi.contract.spec import SaeTrain
from asysi.sae.selection import batch_bound
from asysi.sae.variants.affine import AffineAutoencoder, firing_number
from asysi.sae.variants.base import SparseAutoencoder, StepContext
from asysi.sae.variants.jumprelu import JumpReLU, jump

_THRESHOLD = "threshold"
_SAMPLE = 2048


class BatchTopK(AffineAutoencoder):
    """latents = the k × rows largest preactivations of a batch that are above 0.

    Args:
        d_in: width of an activation.
        latents: number of latents.
        k: mean number of latents that fire per row, 1 <= k <= latents.
        dtype: dtype of the parameters.
        rate: rate of the running mean that becomes the threshold.
        common: see `AffineAutoencoder`.
    """

    architecture: ClassVar[str | None] = None

    def __init__(
        self,
        d_in: int,
        latents: int,
        k: int,
        dtype: torch.dtype = torch.float32,
        *,
        rate: float = 0.01,
        **common: Any,
    ) -> None:
        if not 1 <= k <= latents:
            raise ValueError(f"k is {k}, but must lie between 1 and the {latents} latents")
        super().__init__(d_in, latents, dtype, state={_THRESHOLD: torch.zeros(1)}, **common)
        self.k = k
        self._rate = rate

    @classmethod
    def _configured(cls, config: SaeTrain, d_in: int, **common: Any) -> Self:
        return cls(d_in, config.latents, config.k, rate=config.batchtopk.topk_threshold_lr, **common)

    @classmethod
    def describe(cls, config: SaeTrain) -> str:
        """Return k."""
        return f"k {config.k} on average"

    def initialise_from(self, rows: Tensor, targets: Tensor, rng: np.random.Generator) -> None:
        """Set initial weights, and the threshold with which they fire k latents per row."""
        super().initialise_from(rows, targets, rng)
        self.state[_THRESHOLD].copy_(self._bound(rows[-_SAMPLE:]).clamp_min(0))

    def _first_reconstruction(self, x: Tensor) -> Tensor:
        return self.decode(jump(self.preactivations(x - self.b_dec), self._bound(x)))

    def _bound(self, x: Tensor) -> Tensor:
        """Return the smallest preactivation of x [rows, d_in] that fires in training."""
        return batch_bound(self.preactivations(x - self.b_dec), self.k * len(x))

    def fire(self, pre: Tensor, context: StepContext) -> Tensor:
        """Return the largest of the batch, and update the threshold. All that equal the smallest fire."""
        k = firing_number(self.k, self.latents, self.d_in, context.sparsity)
        bound = batch_bound(pre.detach(), min(k * len(pre), pre.numel()))
        off = (pre.detach() < bound) | (pre.detach() <= 0)
        self._remember(pre.detach().masked_fill(off, math.inf).min())
        return pre.masked_fill(off, 0)

    def _remember(self, least: Tensor) -> None:
        """Update the threshold with the smallest preactivation that fired; infinite if none did."""
        threshold = self.state[_THRESHOLD]
        threshold.lerp_(torch.where(least.isfinite(), least, threshold), self._rate)

    def infer(self, pre: Tensor) -> Tensor:
        """Return the preactivations that are not below the threshold."""
        return jump(pre, self._below())

    def _below(self) -> Tensor:
        """Return the largest number below the threshold, as JumpReLU fires strictly above its own."""
        threshold = self.state[_THRESHOLD]
        return torch.nextafter(threshold, torch.zeros_like(threshold))

    def frozen(self, scale: float, target_scale: float) -> SparseAutoencoder:
        """Return the JumpReLU autoencoder with the threshold, for plain activations."""
        fixed = JumpReLU(self.d_in, self.latents, self.parameters.dtype).on(self.device)
        own = self.named(self.parameters)
        for name, parameter in fixed.named(fixed.parameters).items():
            parameter.copy_(own[name] if name in own else self._below().expand(self.latents))
        return fixed.frozen(scale, target_scale)
