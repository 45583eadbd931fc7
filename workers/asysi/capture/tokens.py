"""Derives the tokens of a forward pass from its arguments, if the host did not provide them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from asysi.bus.packet import ROW_DTYPE
from asysi.text.grid import StepTokens


def derive_tokens(args: Sequence[Any], kwargs: Mapping[str, Any], step: int, first_sample: int) -> StepTokens:
    """Derive the tokens of a forward pass from its arguments.

    Tokens are `input_ids`, or the first tensor argument; every sequence is a sample, numbered from
    `first_sample`; tokens masked out by `attention_mask` are not data.

    Raises:
        ValueError: no argument is a tensor.
    """
    tensor = _first_input(args, kwargs)
    # A float tensor [batch, features] has no positions: one row per sample.
    has_length = tensor.ndim > 2 or (tensor.ndim == 2 and not tensor.is_floating_point())
    batch, length = (tensor.shape[0], tensor.shape[1]) if has_length else (tensor.shape[0], 1)
    rows = np.zeros((batch, length), ROW_DTYPE)
    rows["sample"] = first_sample + np.arange(batch, dtype=np.uint64)[:, None]
    rows["sequence"] = np.arange(batch, dtype=np.uint32)[:, None]
    rows["position"] = np.arange(length, dtype=np.uint32)
    if has_length and tensor.ndim == 2:
        rows["token"] = tensor.detach().cpu().numpy()
    mask = kwargs.get("attention_mask")
    content = np.ones(batch * length, np.bool_)
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape == (batch, length):
        content = mask.detach().cpu().numpy().astype(np.bool_).reshape(-1)
    return StepTokens(step, batch, length, rows.reshape(-1), content)


def _first_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    for value in (kwargs.get("input_ids"), *args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            return value
    raise ValueError("the model was called without a tensor, so its tokens are unknown: call step() first")
