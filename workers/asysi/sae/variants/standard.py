"""The standard sparse autoencoder: ReLU and an L1 penalty (Bricken et al. 2023, Towards Monosemanticity).

    penalty = λ Σ latent ‖decoder row‖

The weight by the norm (Conerly et al. 2024, Update on how we train SAEs) leaves nothing to gain from small
latents with long decoder rows; with rows of norm 1 it has no effect.
"""

from typing import Any, Self

import torch
from torch import Tensor

from asysi.contract.spec import SaeTrain
from asysi.sae.variants.affine import AffineAutoencoder
from asysi.sae.variants.base import StepContext


class Standard(AffineAutoencoder):
    """latents = ReLU(pre).

    Args:
        d_in: width of an activation.
        latents: number of latents.
        dtype: dtype of the parameters.
        l1: weight of the penalty.
        common: see `AffineAutoencoder`.
    """

    architecture = "standard"

    def __init__(
        self, d_in: int, latents: int, dtype: torch.dtype = torch.float32, *, l1: float = 0.0, **common: Any
    ) -> None:
        super().__init__(d_in, latents, dtype, **common)
        self._l1 = l1

    @classmethod
    def _configured(cls, config: SaeTrain, d_in: int, **common: Any) -> Self:
        return cls(d_in, config.latents, l1=config.standard.l1_coefficient, **common)

    @classmethod
    def describe(cls, config: SaeTrain) -> str:
        """Return the weight of the penalty."""
        return f"L1 {config.standard.l1_coefficient:g}"

    def fire(self, pre: Tensor, context: StepContext) -> Tensor:
        """Return ReLU(pre)."""
        return pre.relu()

    def penalty(self, y: Tensor, pre: Tensor, latents: Tensor, context: StepContext) -> Tensor:
        """Return the L1 penalty."""
        return self._l1 * context.sparsity * self.strength(latents).sum()
