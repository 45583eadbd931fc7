"""Metrics of the latents of frozen autoencoders, computed from plain activations.

Everything is measured on the model's activations (float32, not quantised); sums are float64.
FVU is defined in asysi.sae.fvu; its mean is taken over the same rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asysi.bus.packet import Quantization
from asysi.bus.quantization import WIRE, round_trip
from asysi.report.data import DENSITY_BINS, DENSITY_FROM, FIRING_BINS
from asysi.sae.fvu import fvu
from asysi.sae.sparse import SparseLatents
from asysi.sae.variants.base import SparseAutoencoder

CHUNK_ELEMENTS = 1 << 22
"""Dense latent activations in memory at once: 16 MiB of float32."""

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Firings:
    """Firings of latents in sparse coordinate (COO) format: [n] each, sorted by row, then by latent."""

    row: NDArray[np.int64]
    latent: NDArray[np.int64]
    value: Floats


@dataclass(frozen=True, slots=True)
class Encoding:
    """One autoencoder on one set of rows."""

    firings: Firings
    error: NDArray[np.float64]
    """[rows] squared error of the counted rows, 0 elsewhere."""
    removal: NDArray[np.float64]
    """[latents] increase of the squared error over the counted rows if only this latent is removed."""


def read(sae: SparseAutoencoder, rows: Floats, counted: Mask) -> Encoding:
    """Encode `rows` [n, width], and decode those that are `counted` [n], in chunks of bounded memory.

    Removing latent i from x̂ changes the squared error of a row by a_i² ||d_i||² + 2 a_i <d_i, x - x̂>, where
    d_i is its decoder row; `removal` sums this over the counted rows.
    """
    norms = sae.W_dec.double().square().sum(1)
    error = np.zeros(len(rows))
    removal = torch.zeros(sae.latents, dtype=torch.float64)
    found: list[Firings] = []
    with torch.inference_mode():
        for start, stop in _chunks(len(rows), sae.latents):
            x, keep = torch.from_numpy(rows[start:stop]), torch.from_numpy(counted[start:stop])
            fires = sae.activate(x)
            found.append(_firings(fires, start))
            if not keep.any():
                continue
            kept, x = fires.of(keep), x[keep]
            residual = x - sae.reconstruct(kept, x)
            error[start:stop][counted[start:stop]] = residual.double().square().sum(1).numpy()
            value, aligned = kept.value.double(), kept.along(residual, sae.W_dec).double()
            removal.index_add_(0, kept.latent, value.square() * norms[kept.latent] + 2 * value * aligned)
    return Encoding(_joined(found), error, removal.numpy())


def _firings(fires: SparseLatents, first: int) -> Firings:
    """Return the firings of a chunk that begins at row `first`, sorted by row, then by latent."""
    row, latent = fires.row.numpy(), fires.latent.numpy()
    order = np.lexsort((latent, row))
    return Firings(row[order] + first, latent[order], fires.value.float().numpy()[order])


def _joined(parts: list[Firings]) -> Firings:
    """Return the firings of all chunks."""
    nothing = Firings(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    row, latent, value = zip(*((one.row, one.latent, one.value) for one in [nothing, *parts]), strict=True)
    return Firings(np.concatenate(row), np.concatenate(latent), np.concatenate(value))


def on_tokens(firings: Firings, token: NDArray[np.int64]) -> Firings:
    """Return firings per token instead of per row; of repeated calls of a module the strongest counts.

    Args:
        firings: by row.
        token: [rows] token of each row.
    """
    place = token[firings.row]
    order = np.lexsort((-firings.value, firings.latent, place))
    place, latent, value = place[order], firings.latent[order], firings.value[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(place) != 0) | (np.diff(latent) != 0)
    return Firings(place[first], latent[first], value[first])


def squared_error(sae: SparseAutoencoder, rows: Floats) -> float:
    """Return sum ||x - x̂||² over `rows` [n, width]."""
    return float(read(sae, rows, np.ones(len(rows), np.bool_)).error.sum())


def _chunks(rows: int, latents: int) -> Iterator[tuple[int, int]]:
    step = max(64, CHUNK_ELEMENTS // latents)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def variance(rows: Floats) -> float:
    """Return sum ||x - mean(x)||² over `rows` [n, width]."""
    if not len(rows):
        return 0.0
    mean = rows.mean(0, dtype=np.float64)
    return float(sum(np.square(part - mean).sum() for part in _split(rows)))


def _split(rows: Floats) -> Iterator[NDArray[np.float64]]:
    return (rows[start : start + 4096].astype(np.float64) for start in range(0, len(rows), 4096))


def energy(rows: Floats) -> float:
    """Return sum ||x||² over `rows` [n, width]."""
    return float(sum(np.square(part).sum() for part in _split(rows)))


def squared_difference(rows: Floats, other: Floats) -> float:
    """Return sum ||x - y||² over two arrays [n, width]."""
    return float(sum(np.square(a - b).sum() for a, b in zip(_split(rows), _split(other), strict=True)))


def pca_fvu(fitted: Floats, evaluated: Floats, components: int) -> float | None:
    """Return the FVU on `evaluated` [n, width] of the `components` leading directions of `fitted` [m, width].

    None if `fitted` does not have more rows than components, or if `evaluated` is empty.
    """
    if len(fitted) <= components or not len(evaluated):
        return None
    mean = fitted.mean(0, dtype=np.float64)
    centred = fitted - mean.astype(np.float32)
    covariance = torch.from_numpy(centred.T @ centred).double()
    basis = torch.linalg.eigh(covariance).eigenvectors[:, -components:].float().numpy()
    away = evaluated - mean.astype(np.float32)
    error = sum(np.square(part).sum() for part in _split(away - (away @ basis) @ basis.T))
    return fvu(float(error), variance(evaluated), energy(evaluated))


def quantised(rows: Floats, kind: str, ranges: Floats | None = None) -> Floats:
    """Return `rows` [n, width] after one trip through the run's quantisation, as the spec names it.

    Args:
        rows: float32.
        kind: none, bf16, fp8 or int8.
        ranges: [2, width] frozen mean and scale of each channel under int8; without them rows travel as bf16.

    Raises:
        ValueError: there is no such quantisation.
    """
    if kind not in WIRE:
        raise ValueError(f"unknown quantisation {kind!r}")
    how = WIRE[kind]
    if how.by_channel and ranges is None:
        how = Quantization.BF16
    return rows if how is Quantization.NONE else round_trip(np.ascontiguousarray(rows), how, ranges)


def counts(firings: Firings, latents: int, counted: Mask) -> NDArray[np.int64]:
    """Return how often each latent fires on the `counted` rows, [latents]."""
    return np.bincount(firings.latent[counted[firings.row]], minlength=latents)


def maxima(firings: Firings, latents: int) -> Floats:
    """Return the largest activation of each latent, [latents]; 0 for latents that never fire."""
    largest = np.zeros(latents, np.float32)
    np.maximum.at(largest, firings.latent, firings.value)
    return largest


def strengths(firings: Firings, asked: NDArray[np.int64], maximum: Floats) -> NDArray[np.uint8]:
    """Return the histogram of each latent's activations relative to its maximum, [n, FIRING_BINS].

    Bins are equally wide from 0 to 1; counts are scaled so that the fullest bin of a latent is 255.

    Args:
        firings: where latents fire.
        asked: [n] latents, ascending.
        maximum: [latents] largest activation of each.
    """
    place = np.searchsorted(asked, firings.latent)
    known = (place < len(asked)) & (asked[np.minimum(place, len(asked) - 1)] == firings.latent)
    place, share = place[known], firings.value[known] / maximum[firings.latent[known]]
    bins = np.minimum((share * FIRING_BINS).astype(np.int64), FIRING_BINS - 1)
    counted = np.bincount(place * FIRING_BINS + bins, minlength=len(asked) * FIRING_BINS)
    table = counted.reshape(len(asked), FIRING_BINS)
    heights = np.ceil(table * 255 / np.maximum(1, table.max(1, keepdims=True)))
    return np.asarray(heights, np.uint8)


def density_histogram(density: Floats) -> tuple[int, ...]:
    """Return the histogram of live latents by log10 density; lower values count in the first bin."""
    live = density[density > 0]
    bins = ((np.log10(live) - DENSITY_FROM) / -DENSITY_FROM * DENSITY_BINS).astype(int)
    return tuple(int(n) for n in np.bincount(np.clip(bins, 0, DENSITY_BINS - 1), minlength=DENSITY_BINS))


def neighbours(decoder: Tensor, asked: NDArray[np.int64], count: int) -> tuple[NDArray[np.uint32], Floats]:
    """Return the `count` latents with the highest cosine similarity to each of `asked`, and the values.

    Args:
        decoder: [latents, width]
        asked: [n] latents whose neighbours to find; a latent is not its own neighbour.
        count: number of neighbours per latent, at most latents - 1.
    """
    latents = decoder.shape[0]
    count = min(count, latents - 1)
    unit = torch.nn.functional.normalize(decoder.float(), dim=1)
    near = np.empty((len(asked), count), np.uint32)
    cosine = np.empty((len(asked), count), np.float32)
    for start, stop in _chunks(len(asked), latents):
        some = torch.from_numpy(asked[start:stop])
        alike = unit[some] @ unit.T
        alike[torch.arange(len(some)), some] = -2.0
        top = alike.topk(count, dim=1)
        near[start:stop], cosine[start:stop] = top.indices.numpy(), top.values.numpy()
    return near, cosine


def strongest(firings: Firings, rows: NDArray[np.int64], count: int) -> tuple[NDArray[np.uint32], Floats]:
    """Return the `count` strongest latents of each of `rows` [n] and their activations, [n, count] each."""
    latents, values = np.zeros((len(rows), count), np.uint32), np.zeros((len(rows), count), np.float32)
    for i, row in enumerate(rows):
        start, stop = np.searchsorted(firings.row, [row, row + 1])
        order = start + np.argsort(-firings.value[start:stop], kind="stable")[:count]
        latents[i, : len(order)], values[i, : len(order)] = firings.latent[order], firings.value[order]
    return latents, values
