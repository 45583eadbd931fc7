"""Exact top-k of each row, faster than `torch.topk` on a CPU.

A row is divided into n >= k groups. The k-th largest of the n group maxima is a lower bound of the row's k-th
largest element, because at least k elements reach it; few others do. One pass over the groups and one
comparison thus leave little more than k candidates per row, and only these need an exact selection.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GROUPS_PER_K = 4
"""With n = 4k groups, about k/8 surplus candidates remain."""


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest elements of each row and their columns, unordered.

    Args:
        values: [rows, columns] float32 or float64, contiguous, without NaN; on a CPU or another device.
        k: 1 <= k <= columns.

    Returns:
        [rows, k] of the values' dtype, [rows, k] int64.
    """
    rows, columns = values.shape
    groups = _GROUPS_PER_K * k
    if rows == 0 or groups * 2 > columns or values.device.type != "cpu":
        top = values.topk(k, dim=1, sorted=False)
        return top.values, top.indices
    bound = _lower_bound(values, k, groups)
    candidates = np.flatnonzero(values.numpy() >= bound)
    return _among(values, candidates, k)


def batch_bound(values: Tensor, count: int) -> Tensor:
    """Return the `count`-th largest element of all of `values`, as a scalar tensor.

    Args:
        values: [rows, columns], at least one element; NaN counts as the largest.
        count: 1 <= count <= rows × columns.
    """
    flat = values.reshape(-1)
    if values.device.type != "cpu":
        return flat.topk(count, sorted=False).values.min()
    place = len(flat) - count
    return torch.from_numpy(np.partition(flat.numpy(), place)[place : place + 1]).squeeze()


def order_of(numbers: Tensor, below: int) -> Tensor:
    """Return the places [n] of `numbers` [n] int64 in ascending order, equal ones in theirs.

    Args:
        numbers: 0 <= number < below.
        below: where it is small, a CPU sorts by radix.
    """
    if numbers.device.type != "cpu":
        return torch.argsort(numbers, stable=True)
    keys = numbers.numpy()
    return torch.from_numpy(np.argsort(keys.astype(np.int16) if below < 2**15 else keys, kind="stable"))


def _lower_bound(values: Tensor, k: int, groups: int) -> NDArray[Any]:
    """Return [rows, 1]: a lower bound that at least k elements of each row reach."""
    size = values.shape[1] // groups
    maxima: NDArray[Any] = values[:, : size * groups].reshape(-1, size, groups).amax(1).numpy()
    maxima.partition(groups - k, axis=1)
    return maxima[:, groups - k, None]


def _among(values: Tensor, candidates: NDArray[Any], k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row among `candidates`, sorted indices into the flattened values."""
    rows, columns = values.shape
    row = candidates // columns
    counts = np.bincount(row, minlength=rows)
    if counts.min() < k:
        raise FloatingPointError("activations or weights are not finite")
    widest = int(counts.max())
    starts = np.cumsum(counts) - counts
    place = np.arange(len(candidates)) + row * widest - starts[row]
    padded = np.full(rows * widest, -np.inf, dtype=values.numpy().dtype)
    padded[place] = values.numpy().reshape(-1)[candidates]
    column = np.zeros(rows * widest, dtype=np.int64)
    column[place] = candidates - row * columns
    top = torch.from_numpy(padded).view(rows, widest).topk(k, dim=1, sorted=False)
    return top.values, torch.from_numpy(column).view(rows, widest).gather(1, top.indices)
