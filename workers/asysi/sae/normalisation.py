"""Scaling of activations to a mean norm of sqrt(width)."""

import math

import torch
from torch import Tensor

_CHUNK = 4096


def expected_norm_scale(rows: Tensor) -> float:
    """Return the factor that scales rows [n, width] to a mean norm of sqrt(width); 1 if all are zero."""
    total = 0.0
    for part in torch.split(rows, _CHUNK):
        total += float(torch.linalg.vector_norm(part.double(), dim=1).sum())
    return math.sqrt(rows.shape[1]) * len(rows) / total if total > 0 else 1.0


def geometric_median(rows: Tensor, iterations: int = 20) -> Tensor:
    """Return the geometric median [width] of rows [n, width], by Weiszfeld's algorithm in float64.

    A few rows with a huge norm (the first position in many language models) affect it less than the mean.
    """
    points = rows.double()
    centre = points.mean(0)
    for _ in range(iterations):
        weights = torch.linalg.vector_norm(points - centre, dim=1).clamp_min_(1e-12).reciprocal_()
        centre = (weights @ points) / weights.sum()
    return centre
