"""The Matryoshka BatchTopK sparse autoencoder (Bussmann et al. 2025, arXiv 2503.17547).

The first latents, in several widths, also have to rebuild a row by themselves:

    penalty = Σ over the inner widths w of Σ‖x − (latents[:w] W_dec[:w] + b_dec)‖²

The latents are selected once, over all of them. General features thus move to the front instead of being
absorbed by more specific ones.
"""

from typing import Any, Self

import torch
from torch import Tensor

from asysi.contract.spec import SaeTrain
from asysi.sae.variants.base import StepContext
from asysi.sae.variants.batchtopk import BatchTopK


class Matryoshka(BatchTopK):
    """BatchTopK with nested reconstructions.

    Args:
        d_in: width of an activation.
        latents: number of latents.
        k: mean number of latents that fire per row, 1 <= k <= latents.
        dtype: dtype of the parameters.
        widths: numbers of latents of the inner autoencoders, ascending, below `latents`.
        common: see `BatchTopK`.
    """

    def __init__(
        self,
        d_in: int,
        latents: int,
        k: int,
        dtype: torch.dtype = torch.float32,
        *,
        widths: tuple[int, ...] = (),
        **common: Any,
    ) -> None:
        super().__init__(d_in, latents, k, dtype, **common)
        self.widths = widths

    @classmethod
    def _configured(cls, config: SaeTrain, d_in: int, **common: Any) -> Self:
        rate = config.matryoshka.topk_threshold_lr
        return cls(d_in, config.latents, config.k, widths=_inner_widths(config), rate=rate, **common)

    @classmethod
    def describe(cls, config: SaeTrain) -> str:
        """Return k and the widths."""
        return (
            f"k {config.k} on average, widths {', '.join(map(str, (*_inner_widths(config), config.latents)))}"
        )

    def penalty(self, y: Tensor, pre: Tensor, latents: Tensor, context: StepContext) -> Tensor:
        """Return the squared errors of the inner reconstructions."""
        rebuilt, begin = self.b_dec, 0
        total = y.new_zeros(())
        for width in self.widths:
            rebuilt = rebuilt + latents[:, begin:width] @ self.W_dec[begin:width]
            total = total + (rebuilt - y).square().sum()
            begin = width
        return total


def _inner_widths(config: SaeTrain) -> tuple[int, ...]:
    """Return the widths below the number of latents, ascending."""
    given = config.matryoshka.widths
    widths = given if given is not None else [config.latents // part for part in (16, 8, 4, 2)]
    return tuple(sorted({width for width in widths if 1 <= width < config.latents}))
