"""Metrics of a classifier, each a function of the confusion matrix, and their confidence intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A metric value and its confidence interval."""

    value: float
    low: float
    high: float


def confusion(labels: Counts, predictions: Counts, classes: int) -> Counts:
    """Return the confusion matrix, [true class, predicted class]."""
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def accuracy(matrices: Floats) -> Floats:
    """Return the share of correct predictions, for matrices [..., classes, classes]."""
    return _ratio(np.trace(matrices, axis1=-2, axis2=-1), matrices.sum((-2, -1)))


def balanced_accuracy(matrices: Floats) -> Floats:
    """Return the mean recall over the classes that occur, for matrices [..., classes, classes]."""
    return _mean_where(_recalls(matrices), matrices.sum(-1) > 0)


def macro_precision(matrices: Floats) -> Floats:
    """Return the mean precision over classes that occur or are predicted; 0 for classes never predicted."""
    right = np.diagonal(matrices, axis1=-2, axis2=-1)
    return _mean_where(_ratio(right, matrices.sum(-2)), _used(matrices))


def macro_f1(matrices: Floats) -> Floats:
    """Return the mean F1 over the classes that occur or are predicted."""
    right = np.diagonal(matrices, axis1=-2, axis2=-1)
    return _mean_where(_ratio(2 * right, matrices.sum(-1) + matrices.sum(-2)), _used(matrices))


METRICS: dict[str, Callable[[Floats], Floats]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_precision": macro_precision,
    "macro_f1": macro_f1,
}
"""Metrics by the name used in `eval.metrics`; higher is better for all."""


def intervals(
    matrix: Counts, names: Sequence[str], *, confidence: float, resamples: int, seed: int
) -> dict[str, Interval]:
    """Return metrics with percentile bootstrap intervals.

    Resampling the predictions with replacement draws the confusion matrix from a multinomial distribution, so
    individual predictions need not be kept.

    Args:
        matrix: [true class, predicted class].
        names: keys of METRICS.
        confidence: coverage of the intervals.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.
    """
    total = int(matrix.sum())
    drawn = np.random.default_rng(seed).multinomial(total, matrix.reshape(-1) / total, size=resamples)
    matrices = drawn.reshape(resamples, *matrix.shape).astype(np.float64)
    tail = (1 - confidence) / 2
    result: dict[str, Interval] = {}
    for name in names:
        low, high = np.quantile(METRICS[name](matrices), [tail, 1 - tail])
        result[name] = Interval(float(METRICS[name](matrix.astype(np.float64))), float(low), float(high))
    if "accuracy" in result:  # at 100% correct, a bootstrap interval would have no width
        result["accuracy"] = wilson(int(np.trace(matrix)), total, confidence)
    return result


def wilson(right: int, total: int, confidence: float) -> Interval:
    """Return a share with its Wilson score interval (Wilson 1927)."""
    from statistics import NormalDist  # noqa: PLC0415

    share, z = right / total, NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * float(np.sqrt(share * (1 - share) / total + z * z / (4 * total**2)))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def _recalls(matrices: Floats) -> Floats:
    return _ratio(np.diagonal(matrices, axis1=-2, axis2=-1), matrices.sum(-1))


def _used(matrices: Floats) -> NDArray[np.bool_]:
    used: NDArray[np.bool_] = (matrices.sum(-1) > 0) | (matrices.sum(-2) > 0)
    return used


def _ratio(part: Floats, whole: Floats) -> Floats:
    result: Floats = np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole) > 0)
    return result


def _mean_where(values: Floats, used: NDArray[np.bool_]) -> Floats:
    return _ratio((values * used).sum(-1), used.sum(-1).astype(np.float64))
