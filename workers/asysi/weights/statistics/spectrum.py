"""Singular values of a matrix, quantities derived from them, and the method that computed them.

There are three methods. `svd`: LAPACK, in float64. `gram`: eigenvalues of the shorter side's Gram matrix WᵀW,
summed in float64 over blocks of rows; an eigenvalue is accurate to about ε·σmax², so singular values below
`resolution` = σmax·√(m·ε) are not resolved, and neither is a rank whose tolerance lies below it.
`randomized`: subspace iteration on the Gram matrix without forming it (Halko, Martinsson, Tropp 2011,
algorithm 4.4), for matrices whose shorter side is too long; its values are lower bounds of the largest few,
so it gives no rank.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from asysi.weights.reading.tensors import Tensor

Method = Literal["auto", "svd", "gram", "randomized"]
Float64 = NDArray[np.float64]
Blocks = Callable[[], Iterator[Float64]]
"""Each call yields the whole matrix as blocks [n, m] of float64; m is the shorter side."""

SVD_ELEMENTS = 1 << 20
"""Maximum number of elements for which `auto` uses `svd`: 8 MiB of float64."""
BLOCK_ELEMENTS = 1 << 20
"""Elements per block; a block also has enough rows for the product to be worth its overhead."""
SEED_RANK_TOLERANCE = 1e-6
"""Share of the largest singular value above which a singular value counts for `rank`."""
OVERSAMPLING = 16
ITERATIONS = 3
"""Iterations of the randomized method; three leave an error of about 1 % in the top of a flat spectrum."""
NOISE_MARGIN = 1.02
"""The largest singular value of a noise matrix exceeds its expectation by at most about this factor."""
_POWER = 4
"""Exponent of the power mean that measures how unequal rows or columns are."""
_FLOAT32 = float(np.finfo(np.float32).eps)
_FLOAT64 = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class SingularValues:
    """Singular values, and the spread of rows and columns."""

    values: Float64
    """Descending."""
    long: float = 1.0
    """Spread of the longer side's vectors; see `spread`."""
    short: float = 1.0
    """Spread of the shorter side's vectors."""


def spread(squares: Float64) -> float:
    """Return how much longer the dominant vectors are than the average one: 1 if all are equally long.

    It is the square root of the fourth power mean of the squared lengths over their mean. One outlier changes
    it little, since it makes only one singular value large; many outliers change it a lot.

    Args:
        squares: [n] squared lengths of all rows, or of all columns.
    """
    mean = float(squares.mean()) if squares.size else 0.0
    return float(np.mean((squares / mean) ** _POWER)) ** (0.5 / _POWER) if mean > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values of a matrix of `rows` × `cols`."""

    values: Float64
    """Descending: all min(rows, cols) of them, or the largest `k` for the randomized method."""
    rows: int
    cols: int
    method: str
    exact: bool
    """Whether all singular values were computed; if not, they are lower bounds of the largest."""
    squares: float
    """‖W‖F², exact with every method."""
    noise: float | None = 0.0
    """Standard deviation of the rounding to the stored type, None if it is not known."""
    row_spread: float = 1.0
    """How unequal the rows are; see `spread`."""
    col_spread: float = 1.0
    """How unequal the columns are; see `spread`."""
    seed: int | None = None
    """Seed of the randomized method."""

    @property
    def largest(self) -> float:
        """σmax, the spectral norm."""
        return float(self.values[0]) if self.values.size else 0.0

    @property
    def resolution(self) -> float:
        """Limit below which the method does not resolve singular values."""
        error = _FLOAT64 * max(self.rows, self.cols)
        return self.largest * (
            math.sqrt(min(self.rows, self.cols) * _FLOAT64) if self.method == "gram" else error
        )

    def rank(self, tolerance: float) -> int | None:
        """Return the number of singular values above `tolerance`, None if the method cannot determine it."""
        if not self.exact or (0 < tolerance < self.resolution):
            return None
        return int(np.count_nonzero(self.values > tolerance))

    @property
    def tolerance(self) -> float:
        """numpy's rule, σmax · max(rows, cols) · ε, with ε of float32."""
        return self.largest * max(self.rows, self.cols) * _FLOAT32

    @property
    def noise_floor(self) -> float | None:
        """Largest singular value that rounding to the stored type can cause, plus 2 %; None if not known.

        noise · (√cols · row spread + √rows · column spread): the spectral edge of a random matrix with
        independent elements (Marchenko and Pastur 1967), widened for unequal rows or columns, because
        rounding is coarser for larger elements (as in Bandeira and van Handel 2016, with a power mean in
        place of their maximum). This is a heuristic; the tests check it against planted ranks.
        """
        if self.noise is None:
            return None
        rows, cols = math.sqrt(self.rows) * self.col_spread, math.sqrt(self.cols) * self.row_spread
        return NOISE_MARGIN * self.noise * (rows + cols)

    @property
    def stable_rank(self) -> float:
        """‖W‖F² / σmax² (Rudelson and Vershynin 2007); an upper bound if not exact."""
        return self.squares / self.largest / self.largest if self.largest > 0 else math.nan

    @property
    def effective_rank(self) -> float | None:
        """exp of the entropy of σ / Σσ (Roy and Vetterli 2007), None if not exact."""
        if not self.exact or self.largest <= 0:
            return None
        shares = self.values[self.values > 0] / self.values.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))

    @property
    def captured(self) -> float:
        """Share of ‖W‖F² in the computed singular values: 1 if exact."""
        if self.exact:
            return 1.0
        return float(np.square(self.values).sum()) / self.squares if self.squares > 0 else 1.0

    def outline(self, points: int = 48) -> str:
        """Return up to `points` pairs of index (from 1) and singular value, log-spaced, as JSON."""
        n = len(self.values)
        if not n:
            return "[]"
        places = np.unique(np.round(np.geomspace(1, n, points)).astype(int))
        return json.dumps([[int(place), float(f"{self.values[place - 1]:.6g}")] for place in places])


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """A power law fitted to the upper end of the eigenvalues σ²."""

    alpha: float
    """Exponent of the density λ^−α."""
    distance: float
    """Kolmogorov-Smirnov distance between the fit and the eigenvalues above `least`."""
    least: float
    """λmin, the eigenvalue from which the fit holds: chosen to minimise the distance."""
    tail: int
    """Number of eigenvalues above it."""


MIN_EIGENVALUES = 20
"""Minimum number of eigenvalues for a fit."""


def fit_power_law(values: Float64) -> PowerLaw | None:
    """Fit a power law to the squares of singular values (Clauset, Shalizi, Newman 2009, sections 3.1, 3.3).

    Args:
        values: [n] singular values, descending.

    Returns:
        The fit, or None if fewer than MIN_EIGENVALUES are not negligible.
    """
    largest = float(values[0]) if values.size else 0.0
    if not 0 < largest < math.inf:
        return None
    eigenvalues = np.square(values[::-1] / largest)  # the exponent is scale-free, and squares stay in range
    eigenvalues = eigenvalues[eigenvalues > 1e-12 * eigenvalues[-1]] if eigenvalues.size else eigenvalues
    n = len(eigenvalues)
    if n < MIN_EIGENVALUES:
        return None
    logs = np.log(eigenvalues)
    above = np.cumsum(logs[::-1])[::-1]
    sizes = np.arange(n, 0, -1, dtype=np.float64)
    excess = above - sizes * logs
    best: PowerLaw | None = None
    for first in range(n - 1):
        if excess[first] <= 0:
            continue
        size = int(sizes[first])
        alpha = 1 + size / float(excess[first])
        model = 1 - np.exp((1 - alpha) * (logs[first:] - logs[first]))
        distance = float(np.abs(model - np.arange(size) / size).max())
        if best is None or distance < best.distance:
            best = PowerLaw(alpha, distance, float(eigenvalues[first] * largest * largest), size)
    return best


def choose_method(rows: int, cols: int, method: Method, exact_side: int) -> str:
    """Return the method for a matrix: `auto` uses svd, then gram up to `exact_side`, then randomized."""
    if method != "auto":
        return method
    if rows * cols <= SVD_ELEMENTS:
        return "svd"
    return "gram" if min(rows, cols) <= exact_side else "randomized"


def blocks_of(tensor: Tensor) -> Blocks:
    """Return the blocks of a tensor as a matrix; tall ones are read block by block, wide ones as a whole."""
    rows, cols = tensor.rows, tensor.cols
    if rows >= cols and tensor.by_range:
        step = _step(cols)
        return lambda: (
            tensor.read(start * cols, min(rows, start + step) * cols).reshape(-1, cols).astype(np.float64)
            for start in range(0, rows, step)
        )

    def whole() -> Iterator[Float64]:
        return blocks_of_array(tensor.read().reshape(rows, cols))()

    return whole


def blocks_of_array(matrix: NDArray[Any]) -> Blocks:
    """Return the blocks of an array [rows, cols] in memory."""
    side = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    step = _step(side.shape[1])
    return lambda: (
        side[start : start + step].astype(np.float64, order="C") for start in range(0, len(side), step)
    )


def _step(shorter: int) -> int:
    return max(1, BLOCK_ELEMENTS // max(1, shorter), min(shorter, 256))


class Gram:
    """Sums WᵀW over blocks, then gives the singular values."""

    def __init__(self, side: int) -> None:
        self._sum = np.zeros((side, side))
        self._product = np.empty((side, side))
        self._long: list[Float64] = []

    def add(self, block: Float64) -> None:
        """Add a block [n, side]."""
        np.matmul(block.T, block, out=self._product)
        self._sum += self._product
        self._long.append(np.einsum("ij,ij->i", block, block))

    def found(self) -> SingularValues:
        """Return the singular values; it can be called only once."""
        del self._product
        long, short = spread(np.concatenate(self._long)), spread(np.diagonal(self._sum))
        values = np.sqrt(np.maximum(np.linalg.eigvalsh(self._sum)[::-1], 0))
        return SingularValues(values, long, short)


def svd_found(blocks: Blocks) -> SingularValues:
    """Return all singular values from the singular value decomposition."""
    whole = np.concatenate(list(blocks()))
    squares = np.square(whole)
    long, short = spread(squares.sum(axis=1)), spread(squares.sum(axis=0))
    return SingularValues(np.linalg.svd(whole, compute_uv=False), long, short)


def gram_found(blocks: Blocks, side: int) -> SingularValues:
    """Return all singular values from the Gram matrix."""
    gram = Gram(side)
    for block in blocks():
        gram.add(block)
    return gram.found()


def randomized_found(blocks: Blocks, side: int, k: int, seed: int) -> SingularValues:
    """Return lower bounds of the `k` largest singular values; the matrix is read ITERATIONS + 1 times."""
    width = min(side, k + OVERSAMPLING)
    basis: Float64 = np.linalg.qr(np.random.default_rng(seed).standard_normal((side, width)))[0]
    for _ in range(ITERATIONS):
        image = np.zeros((side, width))
        for block in blocks():
            image += block.T @ (block @ basis)
        basis = np.asarray(np.linalg.qr(image)[0], np.float64)
    projected = np.zeros((width, width))
    for block in blocks():
        part = block @ basis
        projected += part.T @ part
    found = np.linalg.eigvalsh(projected)[::-1]
    return SingularValues(np.sqrt(np.maximum(found[:k], 0)))
