"""Evaluates how well an autoencoder explains held-out rows."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from asysi.sae.fvu import fvu
from asysi.sae.variants.base import SparseAutoencoder

_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics of an autoencoder on a set of rows."""

    rows: int
    fvu: float
    """Fraction of variance unexplained; NaN if the rows are constant."""
    l0: float
    """Mean number of latents above 0."""


def evaluate(sae: SparseAutoencoder, rows: Tensor, scale: float = 1.0, *, exact: bool = True) -> Evaluation:
    """Return the figures of `sae` on rows [n, width] × `scale`, n >= 1.

    Args:
        sae: trained on scaled activations.
        rows: activations, on any device.
        scale: the normalisation.
        exact: compute all of it in float64; else the autoencoder runs in its own precision, and only the sums
            are float64.
    """
    model = sae.to(torch.float64) if exact else sae
    mean = torch.zeros(rows.shape[1], dtype=torch.float64, device=sae.device)
    for part in torch.split(rows, _CHUNK):
        mean += part.to(sae.device).double().sum(0)
    mean *= scale / len(rows)
    error = total = energy = 0.0
    firing = 0
    for part in torch.split(rows, _CHUNK):
        x = part.to(sae.device).double() * scale
        rows_ = x.to(model.parameters.dtype)
        latents = model.activate(rows_)
        error += float((model.reconstruct(latents, rows_).double() - x).square_().sum())
        total += float((x - mean).square_().sum())
        energy += float(x.square().sum())
        firing += int((latents.value > 0).sum())
    explained = fvu(error, total, energy)
    return Evaluation(len(rows), math.nan if explained is None else explained, firing / len(rows))
