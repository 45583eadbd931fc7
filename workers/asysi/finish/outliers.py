"""Finds the few rows that hold most of the variance: those of a position, of a token, or the largest."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asysi.finish import latents
from asysi.sae.fvu import why_undefined

TIMES = 2.0
"""A group is an outlier only if its share of the variance is at least this multiple of its share of rows."""
LARGEST = 0.01
"""Share of the rows that counts as the largest rows."""
LIMIT = 0.5
"""A position or token with more than this share of the variance is preferred to the largest rows."""
_AT_ONCE = 4096

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outlier:
    """A group of rows with its shares, 0..1."""

    by: str
    """position | token | size | none."""
    name: str
    """Human-readable name, such as `position 0`."""
    share: float
    """Share of the variance: sum ||x - mean||² over the group, divided by that over all rows."""
    rows: float
    """Share of the rows."""

    @property
    def them(self) -> str:
        """Pronoun for the group."""
        return "these rows" if self.by == "size" else "it"


@dataclass(frozen=True, slots=True)
class OutlierRows:
    """The group, and a mask [n] of its rows."""

    outlier: Outlier
    members: Mask


def deviations(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ||x - mean||² of each row of `rows` [n, width], in float64."""
    mean = rows.mean(0, dtype=np.float64)
    parts = [
        np.square(rows[start : start + _AT_ONCE] - mean).sum(1) for start in range(0, len(rows), _AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def find(
    rows: NDArray[np.float32], position: NDArray[np.int64], token: NDArray[np.int64]
) -> OutlierRows | None:
    """Return the group of rows that holds most of the variance; None if there is no variance.

    A position or token that holds more than half takes precedence; then the largest 1% of the rows, if they
    hold more than half; then the position or token that holds most.

    Args:
        rows: [n, width], finite.
        position: [n] position of each row in its sequence.
        token: [n] token id of each row.
    """
    away = deviations(rows)
    total = float(away.sum())
    if why_undefined(0.0, total, latents.energy(rows)):
        return None
    named = [
        found
        for by, keys in (("position", position), ("token", token))
        if (found := _group(by, keys, away, total)) is not None
    ]
    best = max(named, key=lambda found: found.outlier.share, default=None)
    if best is not None and best.outlier.share > LIMIT:
        return best
    largest = _largest(away, total)
    if largest.outlier.share > LIMIT:
        return largest
    return best or OutlierRows(
        Outlier("none", "no position and no token", 0.0, 0.0), np.zeros(len(rows), np.bool_)
    )


def _group(by: str, keys: NDArray[np.int64], away: NDArray[np.float64], total: float) -> OutlierRows | None:
    _, group = np.unique(keys, return_inverse=True)
    share = np.bincount(group, weights=away) / total
    rows = np.bincount(group) / len(keys)
    held = np.where(share >= TIMES * rows, share, 0.0)
    best = int(held.argmax())
    if not held[best] > 0:
        return None
    members = group == best
    name = f"{by} {int(keys[members.argmax()])}"
    return OutlierRows(Outlier(by, name, float(share[best]), float(rows[best])), members)


def _largest(away: NDArray[np.float64], total: float) -> OutlierRows:
    most = max(1, int(len(away) * LARGEST))
    members = np.zeros(len(away), np.bool_)
    members[np.argpartition(away, -most)[-most:]] = True
    share, rows = float(away[members].sum()) / total, most / len(away)
    if share < TIMES * rows:  # with only a few rows, one of them is not an outlier
        share = 0.0
    return OutlierRows(Outlier("size", "the largest 1% of the rows", share, rows), members)
