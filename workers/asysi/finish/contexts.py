"""Chooses the contexts that illustrate a latent: strongest, medium and weak activations."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from asysi.finish.latents import Firings, Floats
from asysi.report.data import NO_CONTEXT

MIDDLE, LOW = 0.5, 0.9
"""Ranks, as shares of a latent's firings from the strongest: the median, and the top of the weakest tenth."""


def choose(
    firings: Firings, document: NDArray[np.int64], latents: NDArray[np.int64], groups: tuple[int, int, int]
) -> NDArray[np.uint32]:
    """Return the peak row of each latent's contexts, [len(latents), sum(groups)]; NO_CONTEXT if none is left.

    A latent's firings are ranked by activation. The first group takes the strongest, the second those
    nearest the median, the third those nearest the weakest tenth; no document is shown twice for one latent.

    Args:
        firings: where latents fire.
        document: [rows] document of each row.
        latents: [n] latents to show.
        groups: contexts at the top, in the middle and at the low end.
    """
    chosen = np.full((len(latents), sum(groups)), NO_CONTEXT, np.uint32)
    order = np.lexsort((firings.row, -firings.value, firings.latent))
    sorted_latents, rows = firings.latent[order], firings.row[order]
    starts = np.searchsorted(sorted_latents, latents)
    stops = np.searchsorted(sorted_latents, latents, side="right")
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        ranked = rows[start:stop]
        used: set[int] = set()
        offset = 0
        for count, share in zip(groups, (0.0, MIDDLE, LOW), strict=True):
            picked = _nearest(ranked, share, count, document, used)
            chosen[i, offset : offset + len(picked)] = picked
            offset += count
    return chosen


def _nearest(
    ranked: NDArray[np.int64], share: float, count: int, document: NDArray[np.int64], used: set[int]
) -> list[int]:
    """Take `count` rows closest in rank to `share`, in order of rank, each from a document not in `used`."""
    target = int(share * len(ranked))
    taken: list[int] = []
    for rank in _outwards(target, len(ranked)):
        where = int(document[ranked[rank]])
        if where not in used:
            used.add(where)
            taken.append(rank)
            if len(taken) == count:
                break
    return [int(ranked[rank]) for rank in sorted(taken)]


def _outwards(target: int, length: int) -> Iterable[int]:
    """Yield target, target + 1, target - 1, target + 2, …: every rank below `length` once."""
    for distance in range(length):
        if target + distance < length:
            yield target + distance
        if distance and target >= distance:
            yield target - distance


def shade(
    firings: Firings,
    peaks: NDArray[np.uint32],
    latents: NDArray[np.int64],
    *,
    document: NDArray[np.int64],
    maximum: Floats,
    window: tuple[int, int],
) -> NDArray[np.uint8]:
    """Return each context's activations around its peak, [n, contexts, before + 1 + after].

    255 is the latent's maximum; any firing is at least 1; positions outside the document are 0.

    Args:
        firings: where latents fire.
        peaks: [n, contexts] as returned by `choose`.
        latents: [n] latents of the rows of `peaks`.
        document: [rows] document of each row.
        maximum: [n] largest activation of each latent.
        window: rows shown before and after the peak.
    """
    before, after = window
    total = len(document)
    if not len(firings.row):
        return np.zeros((*peaks.shape, before + 1 + after), np.uint8)
    around = peaks.astype(np.int64)[:, :, None] + np.arange(-before, after + 1)
    inside = (peaks != NO_CONTEXT)[:, :, None] & (around >= 0) & (around < total)
    around = np.where(inside, around, 0)
    peak_document = document[np.where(peaks == NO_CONTEXT, 0, peaks)]
    inside &= document[around] == peak_document[:, :, None]
    key = firings.latent * total + firings.row
    order = np.argsort(key)
    asked = latents[:, None, None] * total + around
    at = np.minimum(np.searchsorted(key[order], asked), len(key) - 1)
    hit = inside & (key[order][at] == asked)
    value = np.where(hit, firings.value[order][at], 0) / np.maximum(maximum, 1e-30)[:, None, None]
    return np.where(hit, np.clip(np.rint(value * 255), 1, 255), 0).astype(np.uint8)
