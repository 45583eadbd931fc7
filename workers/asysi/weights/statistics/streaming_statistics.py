"""Statistics of a tensor in one pass over its elements, in memory that does not grow with it.

Floats of 8 or 16 bits have few bit patterns: the pass counts them as integers, and every statistic follows
from the counts with float64 precision. Wider types are summed in float64 by chunks, each around its own mean,
and merged (Chan, Golub, LeVeque 1979); their quantiles come from a histogram over sign, exponent and the
first 7 bits of the significand, so they are within 0.8 % of the true value.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from asysi.weights.reading.dtypes import is_float, is_narrow, pattern_values, smallest_normal, spacing

_Native: Any
_Sums: Any
try:
    from asysi.weights._count import Counter as _Native
    from asysi.weights._count import Sums as _Sums
except ImportError:  # installed without a compiler: same results, but slower
    _Native = _Sums = None

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
CHUNK = 1 << 19
"""Elements per chunk: small enough to stay in the CPU cache between reading, counting and hashing."""
RELATIVE_ZERO = 1e-3
"""Share of the root mean square below which an element counts in `near_zeros_rms`."""
Float64 = NDArray[np.float64]
Counts = NDArray[np.uint64]
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_FLOAT32_MAX = 3.4e38
"""Within the range of float32, and of bfloat16 when truncated."""


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """Statistics of the finite elements, and counts of all elements; NaN if no element is finite."""

    elements: int
    finite: int
    nans: int
    infinities: int
    zeros: int
    """Exact zeros, of either sign."""
    near_zeros: int
    """|x| <= the `zero_epsilon` of the analysis."""
    near_zeros_rms: int | None
    """|x| <= 1e-3 × rms; for types wider than 16 bits, accurate to a histogram bin."""
    subnormals: int | None
    """Not zero and below the smallest normal number of the type; None, like `near_zeros_rms` and
    `quantiles_exact`, if only the basic statistics were requested."""
    mean: float
    var: float
    """Population variance: divided by n."""
    rms: float
    minimum: float
    maximum: float
    quantiles: tuple[float, ...]
    """At `QUANTILES`, interpolated linearly between order statistics."""
    quantiles_exact: bool | None
    noise: float
    """Standard deviation of the rounding to the stored type: √(mean(ulp²) / 12); 0 for integers."""

    @property
    def std(self) -> float:
        """Standard deviation of the population."""
        return float(np.sqrt(self.var))

    @property
    def sparsity(self) -> float:
        """Share of the elements that are near zero; 0 for an empty tensor."""
        return self.near_zeros / self.elements if self.elements else 0.0


class Tally(Protocol):
    """Accumulates the statistics of one tensor."""

    def add(self, values: NDArray[Any]) -> None:
        """Count elements, [n] of the tensor's type."""

    def summary(self) -> TensorSummary:
        """Return the statistics of everything added."""


def tally(
    dtype: np.dtype[np.generic], zero_epsilon: float, *, native: bool = True, basic: bool = False
) -> Tally:
    """Return an empty tally for tensors of `dtype`.

    Args:
        dtype: type of the elements.
        zero_epsilon: magnitude up to which an element counts as near zero.
        native: whether to use the compiled counter if available; the results are the same.
        basic: whether mean, deviation, extremes, zeros and non-finite counts are enough. They are then
            summed for bfloat16 and float32, which have a fast path; other types are counted as usual.
    """
    compiled = native and _Native is not None
    if basic and compiled and dtype in {_BFLOAT16, np.dtype(np.float32)}:
        return _Basic(zero_epsilon)
    if is_narrow(dtype):
        return _Narrow(dtype, zero_epsilon, native=compiled)
    if dtype == np.float32 and compiled:
        return _NativeFloats(zero_epsilon)
    return _Wide(dtype, zero_epsilon)


class _Narrow:
    def __init__(self, dtype: np.dtype[np.generic], zero_epsilon: float, *, native: bool) -> None:
        self._dtype, self._epsilon = dtype, zero_epsilon
        self._unsigned = np.dtype(f"u{dtype.itemsize}")
        self._counter = _Native() if native and dtype.itemsize == 2 else None
        self._counts = np.zeros(0 if self._counter else 1 << (8 * dtype.itemsize), np.uint64)

    def add(self, values: NDArray[Any]) -> None:
        patterns = np.ascontiguousarray(values).view(self._unsigned)
        if self._counter is not None:
            self._counter.halves(patterns)
        else:
            for part in parts_of(patterns, CHUNK // 2):
                self._counts += np.bincount(part, minlength=len(self._counts)).astype(np.uint64)

    def summary(self) -> TensorSummary:
        counts = self._counts if self._counter is None else self._counter.counts()
        return _exact(counts, self._dtype, self._epsilon)


@cache
def _patterns(dtype: np.dtype[np.generic]) -> tuple[Float64, NDArray[np.uint16], Float64]:
    """Return the value, the rank in value order, and the spacing of every pattern."""
    values = pattern_values(dtype)
    places = np.empty(len(values), np.uint16)
    places[np.argsort(values, kind="stable")] = np.arange(len(values))
    return values, places, spacing(np.where(np.isfinite(values), values, 0.0), dtype)


def _exact(counts: Counts, dtype: np.dtype[np.generic], epsilon: float) -> TensorSummary:
    """Compute the statistics from the counts of all patterns."""
    every, places, steps = _patterns(dtype)
    seen = np.flatnonzero(counts != 0)
    seen = seen[np.argsort(places[seen], kind="stable")]
    values, counts = every[seen], counts[seen]
    elements = int(counts.sum())
    nans, infinities = int(counts[np.isnan(values)].sum()), int(counts[np.isinf(values)].sum())
    n = elements - nans - infinities
    if n == 0:
        return _empty(elements, nans, infinities)
    usable = np.isfinite(values)
    values, counts, steps = values[usable], counts[usable], steps[seen[usable]]
    weights = counts.astype(np.float64)
    mean = float((weights * values).sum() / n)
    size = np.abs(values)
    rms = float(np.sqrt((weights * np.square(values)).sum() / n))
    ranks = np.cumsum(counts)

    def at_most(limit: float) -> int:
        return int(counts[size <= limit].sum())

    return TensorSummary(
        elements=elements, finite=n, nans=nans, infinities=infinities,
        zeros=at_most(0.0), near_zeros=at_most(epsilon), near_zeros_rms=at_most(RELATIVE_ZERO * rms),
        subnormals=int(counts[(size > 0) & (size < smallest_normal(dtype))].sum()),
        mean=mean, var=float((weights * np.square(values - mean)).sum() / n), rms=rms,
        minimum=float(values[0]), maximum=float(values[-1]),
        quantiles=_quantiles(lambda rank: values[np.searchsorted(ranks, rank, side="right")], n),
        quantiles_exact=True,
        noise=float(np.sqrt((weights * np.square(steps)).sum() / n / 12)),
    )  # fmt: skip


@dataclass
class _Moments:
    finite: int = 0
    mean: float = 0.0
    m2: float = 0.0
    minimum: float = np.inf
    maximum: float = -np.inf
    zeros: int = 0
    near_zeros: int = 0
    infinities: int = 0

    def merge(self, values: Float64) -> None:
        """Add a chunk's finite values around their own mean."""
        if not values.size:
            return
        mean = float(values.mean())
        m2 = float(np.square(values - mean).sum())
        total = self.finite + values.size
        difference, share = (mean - self.mean if self.finite else 0.0), values.size / total
        self.m2 += m2 + difference * difference * self.finite * share
        self.mean = self.mean + difference * share if self.finite else mean
        self.finite = total
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))


def _not_above(zero_epsilon: float) -> float:
    """Return the largest float32 that is not above it, so that the comparison gives the same result."""
    near = np.float32(zero_epsilon)
    return float(near if near <= zero_epsilon else np.nextafter(near, np.float32(0)))


class _Basic:
    """Exact counts and extremes; the mean to about 1e-9 of the largest element, the deviation to 1e-6."""

    def __init__(self, zero_epsilon: float) -> None:
        self._epsilon, self._sums, self._elements = _not_above(zero_epsilon), _Sums(), 0

    def add(self, values: NDArray[Any]) -> None:
        part = np.ascontiguousarray(values)
        self._elements += part.size
        self._sums.add(part.view("<u2") if part.itemsize == 2 else part, self._epsilon)

    def summary(self) -> TensorSummary:
        finite, mean, m2, least, most, zeros, near_zeros, infinities = self._sums.moments()
        nans = self._elements - finite - infinities
        if finite == 0:
            return replace(_empty(self._elements, nans, infinities), **_UNKNOWN)
        var = m2 / finite
        return TensorSummary(
            elements=self._elements, finite=finite, nans=nans, infinities=infinities,
            zeros=zeros, near_zeros=near_zeros, mean=mean, var=var, rms=math.hypot(math.sqrt(var), mean),
            minimum=least, maximum=most, quantiles=(math.nan,) * len(QUANTILES), noise=math.nan, **_UNKNOWN,
        )  # fmt: skip


_UNKNOWN: Any = {"near_zeros_rms": None, "subnormals": None, "quantiles_exact": None}
"""Fields that the basic statistics leave unknown."""


class _NativeFloats:
    def __init__(self, zero_epsilon: float) -> None:
        self._epsilon = _not_above(zero_epsilon)
        self._counter = _Native()
        self._elements = 0

    def add(self, values: NDArray[Any]) -> None:
        self._elements += values.size
        self._counter.floats(np.ascontiguousarray(values), self._epsilon)

    def summary(self) -> TensorSummary:
        moments = _Moments(*self._counter.moments())
        return _approximate(self._elements, moments, self._counter.counts(), np.dtype(np.float32))


class _Wide:
    """Handles any numeric type, in chunks with numpy."""

    def __init__(self, dtype: np.dtype[np.generic], zero_epsilon: float) -> None:
        self._dtype, self._epsilon, self._elements = dtype, zero_epsilon, 0
        self._moments, self._counts = _Moments(), np.zeros(1 << 16, np.uint64)

    def add(self, values: NDArray[Any]) -> None:
        for part in parts_of(values, CHUNK // 2):
            self._add(part.astype(np.float64))

    def _add(self, values: Float64) -> None:
        size, moments = np.abs(values), self._moments
        self._elements += values.size
        moments.zeros += int(np.count_nonzero(size == 0))
        moments.near_zeros += int(np.count_nonzero(size <= self._epsilon))
        moments.infinities += int(np.count_nonzero(np.isinf(size)))
        moments.merge(values[np.isfinite(values)])
        finite = np.where(np.isinf(values), values, np.clip(values, -_FLOAT32_MAX, _FLOAT32_MAX))
        upper = finite.astype("<f4").view("<u2")[1::2]
        self._counts += np.bincount(upper, minlength=1 << 16).astype(np.uint64)

    def summary(self) -> TensorSummary:
        return _approximate(self._elements, self._moments, self._counts, self._dtype)


def _approximate(
    elements: int, moments: _Moments, counts: Counts, dtype: np.dtype[np.generic]
) -> TensorSummary:
    """Return the statistics from exact moments and a histogram over the upper halves."""
    n, nans = moments.finite, elements - moments.finite - moments.infinities
    if n == 0:
        return _empty(elements, nans, moments.infinities)
    lower = pattern_values(_BFLOAT16)
    usable = np.isfinite(lower) & (counts > 0)
    lower, counts = lower[usable], counts[usable]
    # A bin holds the numbers with this upper half: from its edge away from zero, up to the next edge.
    edge = np.copysign(np.abs(lower) + spacing(lower, _BFLOAT16), np.copysign(1.0, _signs(usable)))
    order = np.lexsort((np.maximum(lower, edge), np.minimum(lower, edge)))
    low, high = np.minimum(lower, edge)[order], np.maximum(lower, edge)[order]
    counts = counts[order]
    ranks = np.cumsum(counts)
    weights = counts.astype(np.float64)

    def at(rank: int) -> float:
        place = min(int(np.searchsorted(ranks, rank, side="right")), len(ranks) - 1)
        share = (rank - (ranks[place] - counts[place]) + 0.5) / float(counts[place])
        return float(
            np.clip(low[place] + share * (high[place] - low[place]), moments.minimum, moments.maximum)
        )

    def within(limit: float) -> int:
        inner, outer = np.minimum(np.abs(low), np.abs(high)), np.maximum(np.abs(low), np.abs(high))
        return round(float((weights * np.clip((limit - inner) / (outer - inner), 0, 1)).sum()))

    variance = moments.m2 / n
    rms = math.hypot(math.sqrt(variance), moments.mean)
    floating = is_float(dtype)
    known = math.isfinite(rms)  # sums of float64 may overflow: then only zeros are certainly small
    near = (within(RELATIVE_ZERO * rms) if rms else n) if known else moments.zeros
    subnormals = 0
    if floating and dtype.itemsize == 4:  # the bins next to zero hold the subnormals and zero
        subnormals = int(counts[np.maximum(np.abs(low), np.abs(high)) <= smallest_normal(dtype)].sum())
        subnormals -= moments.zeros
    noise = spacing(np.minimum(np.abs(low), np.abs(high)), dtype) if floating else np.zeros(1)
    return TensorSummary(
        elements=elements, finite=n, nans=nans, infinities=moments.infinities,
        zeros=moments.zeros, near_zeros=moments.near_zeros, near_zeros_rms=max(near, moments.zeros),
        subnormals=subnormals,
        mean=moments.mean, var=variance, rms=rms, minimum=moments.minimum, maximum=moments.maximum,
        quantiles=_quantiles(at, n), quantiles_exact=False,
        noise=float(np.sqrt((weights * np.square(noise)).sum() / weights.sum() / 12)),
    )  # fmt: skip


def _signs(usable: NDArray[np.bool_]) -> Float64:
    """Return ±1 by the sign bit of the used patterns; negative zero has its own."""
    patterns = np.flatnonzero(usable)
    return np.where(patterns >= 1 << 15, -1.0, 1.0)


def _quantiles(at: Any, n: int) -> tuple[float, ...]:
    """Return the quantiles of n ordered values, as numpy's `linear` method defines them."""
    found = []
    for share in QUANTILES:
        place = share * (n - 1)
        below = int(np.floor(place))
        first, second = float(at(below)), float(at(min(below + 1, n - 1)))
        found.append(first + (second - first) * (place - below))
    return tuple(found)


def _empty(elements: int, nans: int, infinities: int) -> TensorSummary:
    none = float("nan")
    return TensorSummary(
        elements=elements, finite=0, nans=nans, infinities=infinities, zeros=0, near_zeros=0,
        near_zeros_rms=0,
        subnormals=0, mean=none, var=none, rms=none, minimum=none, maximum=none,
        quantiles=(none,) * len(QUANTILES), quantiles_exact=True, noise=none,
    )  # fmt: skip


def parts_of(values: NDArray[Any], step: int) -> Iterator[NDArray[Any]]:
    """Yield views of at most `step` elements."""
    return (values[start : start + step] for start in range(0, len(values), step))
