"""Gradients of module outputs: what a backward pass is, and the form in which its gradients travel."""

from typing import NamedTuple

import torch

from asysi.bus.packet import Reduction


class BackwardPass(NamedTuple):
    """What a host knows of a backward pass; stored in the header of every gradient packet."""

    loss_scale: float = 1.0
    """Factor of the loss against underflow in float16, which is divided out of the gradients."""
    accumulated: int = 1
    """Backward passes that add up to one optimiser step; 0 if unknown."""
    microbatch: int = 0
    """Which of these, from 0."""
    reduction: Reduction = Reduction.UNKNOWN
    """How the loss is reduced over tokens. Gradients are those of the loss on which backward was called."""


def unscaled(gradient: torch.Tensor, loss_scale: float) -> torch.Tensor:
    """Return a gradient detached, in float32, divided by the loss scale; the given tensor is not changed."""
    values = gradient.detach()
    if values.dtype is not torch.float32:
        values = values.float()
    return values if loss_scale == 1.0 else values / loss_scale


def grad_disabled() -> str:
    """Return why tensors computed now get no gradient; "" if they do."""
    if torch.is_inference_mode_enabled():
        return "the forward pass runs in torch.inference_mode"
    return "" if torch.is_grad_enabled() else "the forward pass runs under torch.no_grad"
