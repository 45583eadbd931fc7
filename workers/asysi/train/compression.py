"""Compressed variants of a model, evaluated to show what smaller weights cost in accuracy."""

import copy

import torch
from torch import nn
from torch.nn.utils import prune

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
SHARE = 0.5
"""Share of the weights that `pruned` sets to zero."""


def compressed(model: nn.Module, variant: str) -> tuple[nn.Module, int]:
    """Return a variant of a model that computes with compressed weights, and the size of those in bytes.

    Args:
        model: is not changed.
        variant: `int8`: symmetric, one scale per output channel; `pruned`: the smallest half of the weights
            by magnitude over all layers is set to zero; stored as a bit mask and values.
    """
    changed = copy.deepcopy(model)
    layers = [module for module in changed.modules() if isinstance(module, _LAYERS)]
    plain = stored_bytes(model) - sum(_bytes(layer.weight) for layer in layers)
    if variant == "int8":
        for layer in layers:
            layer.weight.data = _rounded(layer.weight.data)
        return changed, plain + sum(layer.weight.numel() + 4 * len(layer.weight) for layer in layers)
    targets = [(layer, "weight") for layer in layers if not isinstance(layer, nn.Embedding)]
    prune.global_unstructured(targets, pruning_method=prune.L1Unstructured, amount=SHARE)
    for layer, name in targets:
        prune.remove(layer, name)  # type: ignore[no-untyped-call]
    kept = sum(int((layer.weight != 0).sum()) * 4 + layer.weight.numel() // 8 for layer, _ in targets)
    whole = sum(_bytes(layer.weight) for layer in layers if isinstance(layer, nn.Embedding))
    return changed, plain + kept + whole


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers."""
    return sum(_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))


def _rounded(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / 127
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return (weight / scale).round().clamp(-127, 127) * scale


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
