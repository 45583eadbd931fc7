"""The gated sparse autoencoder (Rajamanoharan et al. 2024, arXiv 2404.16014).

    gate = (x − b_dec) W_enc + b_gate,   magnitude = (x − b_dec) (W_enc exp(r_mag)) + b_mag

A latent is ReLU(magnitude) where its gate is above 0. The step has no gradient; the gates learn from

    penalty = λ Σ ReLU(gate) ‖decoder row‖ + Σ‖x − (ReLU(gate) W_dec + b_dec)‖²

in whose second sum W_dec and b_dec are constants (section 3.2.2).
"""

from typing import Any, Self

import torch
from torch import Tensor

from asysi.contract.spec import SaeTrain
from asysi.sae.variants.affine import AffineAutoencoder
from asysi.sae.variants.base import StepContext


class Gated(AffineAutoencoder):
    """latents = ReLU(magnitude) where gate > 0.

    Args:
        d_in: width of an activation.
        latents: number of latents.
        dtype: dtype of the parameters.
        l1: weight of the penalty on the gates.
        common: see `AffineAutoencoder`.
    """

    architecture = "gated"
    biases = ("b_gate", "b_mag")
    factors = ("r_mag",)

    b_gate: Tensor
    """[latents]"""
    b_mag: Tensor
    """[latents]"""
    r_mag: Tensor
    """[latents]"""

    def __init__(
        self, d_in: int, latents: int, dtype: torch.dtype = torch.float32, *, l1: float = 0.0, **common: Any
    ) -> None:
        super().__init__(d_in, latents, dtype, **common)
        self._l1 = l1

    @classmethod
    def _configured(cls, config: SaeTrain, d_in: int, **common: Any) -> Self:
        return cls(d_in, config.latents, l1=config.gated.l1_coefficient, **common)

    @classmethod
    def describe(cls, config: SaeTrain) -> str:
        """Return the weight of the penalty."""
        return f"L1 {config.gated.l1_coefficient:g}"

    def fire(self, pre: Tensor, context: StepContext) -> Tensor:
        """Return the magnitudes of open gates; `pre` are the gates."""
        magnitude = (pre - self.b_gate) * self.r_mag.exp() + self.b_mag
        return magnitude.relu().masked_fill(pre.detach() <= 0, 0)

    def _absorb(self, shift: Tensor) -> None:
        super()._absorb(shift)
        self.b_mag.add_(shift * self.r_mag.exp())

    def penalty(self, y: Tensor, pre: Tensor, latents: Tensor, context: StepContext) -> Tensor:
        """Return the penalty on the gates and the error of a reconstruction from them alone."""
        gates = pre.relu()
        rebuilt = torch.addmm(self.b_dec.detach(), gates, self.W_dec.detach())
        return self._l1 * context.sparsity * self.strength(gates).sum() + (rebuilt - y).square().sum()
