"""Defines the token rows of a module's output, for capture, check and report."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def first_tensor(output: Any) -> torch.Tensor:
    """Return a module's output, or the first tensor of a tuple, list, mapping or model output.

    Raises:
        TypeError: the output contains no tensor.
    """
    if isinstance(output, torch.Tensor):
        return output
    values: Sequence[Any] = ()
    if isinstance(output, Mapping):  # a ModelOutput is a Mapping
        values = list(output.values())
    elif isinstance(output, (tuple, list)):
        values = output
    for value in values:
        if isinstance(value, torch.Tensor):
            return value
    raise TypeError(f"the module returns {type(output).__name__}, which holds no tensor")


def row_shape(shape: Sequence[int], batch: int, length: int) -> tuple[int, ...] | None:
    """Return the shape of a token's row in a tensor; None if the tensor does not have one row per token.

    Rows are arranged as [batch, length, …] or [batch × length, …]. A module that runs on part of a batch
    returns fewer rows, and their tokens are unknown.

    Args:
        shape: shape of the tensor.
        batch: sequences in the step.
        length: tokens per sequence, including padding.
    """
    if len(shape) > 2 and (shape[0], shape[1]) == (batch, length):
        return tuple(shape[2:])
    if len(shape) > 1 and shape[0] == batch * length:
        return tuple(shape[1:])
    return None


def leading_rows(shape: Sequence[int]) -> int:
    """Return the number of rows of a tensor without one row per token, from its leading dimensions."""
    leading = shape[: 2 if len(shape) > 2 else max(0, len(shape) - 1)]
    count = 1
    for size in leading:
        count *= size
    return count
