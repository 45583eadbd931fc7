"""The JumpReLU sparse autoencoder (Rajamanoharan et al. 2024, arXiv 2407.14435).

A latent is its preactivation where that is above a threshold θ that is learned. Neither the jump nor a count
of latents has a gradient with respect to θ; a straight-through estimator takes its place. With the kernel
K(u) = 1 for |u| < 1/2, else 0, and the bandwidth ε (equations 11 and 12):

    ∂ JumpReLU(z) / ∂θ = −(θ/ε) K((z − θ)/ε),    ∂ H(z − θ) / ∂θ = −(1/ε) K((z − θ)/ε)

θ is a parameter itself, not its logarithm, and is kept >= 0: Adam moves a parameter by about the learning
rate per step, so that a small θ would hardly grow through its logarithm.
"""

from typing import Any, Self

import torch
from torch import Tensor

from asysi.contract.spec import JumpReluSettings, SaeTrain
from asysi.sae.variants.affine import AffineAutoencoder
from asysi.sae.variants.base import StepContext


class JumpReLU(AffineAutoencoder):
    """latents = pre where pre > threshold.

    Args:
        d_in: width of an activation.
        latents: number of latents.
        dtype: dtype of the parameters.
        settings: the penalty and the estimator; only used in training.
        common: see `AffineAutoencoder`.
    """

    architecture = "jumprelu"
    biases = ("b_enc", "threshold")

    threshold: Tensor
    """[latents] >= 0"""

    def __init__(
        self,
        d_in: int,
        latents: int,
        dtype: torch.dtype = torch.float32,
        *,
        settings: JumpReluSettings | None = None,
        **common: Any,
    ) -> None:
        super().__init__(d_in, latents, dtype, **common)
        self._settings = settings or JumpReluSettings()

    @classmethod
    def _configured(cls, config: SaeTrain, d_in: int, **common: Any) -> Self:
        return cls(d_in, config.latents, settings=config.jumprelu, **common)

    @classmethod
    def describe(cls, config: SaeTrain) -> str:
        """Return the penalty and its weight."""
        own = config.jumprelu
        aim = f" for an L0 of {own.target_l0:g}" if own.sparsity_loss_mode == "quadratic" else ""
        return f"{own.sparsity_loss_mode} penalty {own.l0_coefficient:g}{aim}"

    def _reset(self, latents: Tensor | slice) -> None:
        super()._reset(latents)
        self.threshold[latents] = self._settings.init_threshold

    def constrain(self) -> None:
        """Normalise the decoder's rows, and keep thresholds from falling below 0."""
        super().constrain()
        self.threshold.clamp_min_(0)

    def fire(self, pre: Tensor, context: StepContext) -> Tensor:
        """Return the preactivations above their thresholds; the estimator is their gradient."""
        own = self._settings
        fired: Tensor = _Jump.apply(pre, self.threshold, own.bandwidth, own.ste_to_input)  # type: ignore[no-untyped-call]
        return fired

    def infer(self, pre: Tensor) -> Tensor:
        """Return the preactivations above their thresholds."""
        return jump(pre, self.threshold)

    def penalty(self, y: Tensor, pre: Tensor, latents: Tensor, context: StepContext) -> Tensor:
        """Return the penalty that `sparsityLossMode` names, and that on dead latents."""
        own = self._settings
        total = own.l0_coefficient * context.sparsity * self._sparsity(pre, latents)
        if own.pre_act_loss_coefficient and len(context.dead):
            dead = context.dead
            below = (self.threshold[dead] - pre[:, dead]).relu()
            norms = torch.linalg.vector_norm(self.W_dec[dead], dim=1)
            total = total + own.pre_act_loss_coefficient * (below * norms).sum()
        return total

    def _sparsity(self, pre: Tensor, latents: Tensor) -> Tensor:
        own = self._settings
        if own.sparsity_loss_mode == "tanh":
            return torch.tanh(own.tanh_scale * self.strength(latents)).sum()
        counted: Tensor = _Count.apply(pre, self.threshold, own.bandwidth, own.ste_to_input)  # type: ignore[no-untyped-call]
        l0 = counted.sum(1)
        if own.sparsity_loss_mode == "step":
            return l0.sum()
        return (2 / own.target_l0) * (l0 - own.target_l0).square().sum()


def jump(pre: Tensor, threshold: Tensor) -> Tensor:
    """Return `pre` where it is above both threshold and 0, otherwise 0; NaN stays NaN."""
    return pre.masked_fill((pre <= threshold) | (pre <= 0), 0)


class _Jump(torch.autograd.Function):
    """JumpReLU with its straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return jump(pre, threshold)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (slope,) = slopes
        pre, threshold = ctx.saved_tensors
        estimated = slope * _kernel(pre, threshold, ctx.bandwidth) * (threshold / ctx.bandwidth)
        direct = slope.masked_fill((pre <= threshold) | (pre <= 0), 0)
        return (direct + estimated if ctx.to_input else direct), -estimated.sum(0), None, None


class _Count(torch.autograd.Function):
    """1 where a latent fires, otherwise 0, with its straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (slope,) = slopes
        pre, threshold = ctx.saved_tensors
        estimated = slope * _kernel(pre, threshold, ctx.bandwidth) / ctx.bandwidth
        return (estimated if ctx.to_input else None), -estimated.sum(0), None, None


def _kernel(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return [rows, latents]: 1 within half a bandwidth of the threshold, otherwise 0."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype)
