"""Compares two checkpoints of the same architecture, tensor by tensor: what changed, how much, and in which
directions.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from asysi.weights.budget import Budget
from asysi.weights.checkpoint import Checkpoint
from asysi.weights.columns import Column, Row
from asysi.weights.dtypes import is_float
from asysi.weights.errors import AnalysisError, WeightsError
from asysi.weights.families import classify_param
from asysi.weights.spectrum import BLOCK_ELEMENTS, Blocks, Float64, Spectrum, blocks_of
from asysi.weights.tensors import Tensor

DIFFERENCE_COLUMNS = (
    Column("param_name", "text", "Name of the parameter.", True),
    Column("layer_index", "integer", "Layer counted from 0."),
    Column("block_type", "text", "What the parameter is.", True),
    Column("shape", "text", "Shape in the first checkpoint, or in the one that has it.", True),
    Column("dtype", "text", "Type in both, `a → b` where they differ.", True),
    Column(
        "status",
        "text",
        "`same` (equal values), `changed`, `added`, `removed`, `reshaped`, or `failed`.",
        True,
    ),
    Column("changed", "integer", "Elements with another value."),
    Column("norm_a", "number", "Frobenius norm in the first."),
    Column("norm_b", "number", "Frobenius norm in the second."),
    Column("delta_norm", "number", "‖ΔW‖F, the Frobenius norm of the difference."),
    Column("delta_relative", "number", "‖ΔW‖F / ‖W‖F of the first."),
    Column("delta_max", "number", "Largest |Δ| of an element."),
    Column("cosine", "number", "Cosine between the two as vectors."),
    Column("delta_sigma_max", "number", "Spectral norm of ΔW."),
    Column(
        "delta_stable_rank",
        "number",
        "‖ΔW‖F² / σmax²: how many directions the change has, at most.",
    ),
    Column("delta_effective_rank", "number", "exp of the entropy of σ / Σσ of ΔW."),
    Column(
        "delta_rank_f32tol",
        "integer",
        "Singular values of ΔW above numpy's rule with float32's ε.",
    ),
    Column("delta_spectrum", "text", "Up to 48 pairs of number and singular value of ΔW, as JSON."),
    Column("sigma_shift", "number", "Largest change of a singular value of W, over σmax of the first."),
    Column("k", "integer", "Directions compared: the k largest."),
    Column(
        "angle_left_max",
        "number",
        "Largest angle between the spans of the k left singular vectors, degrees.",
    ),
    Column("angle_left_mean", "number", "Mean of the k angles."),
    Column("angle_right_max", "number", "Likewise of the right singular vectors."),
    Column("angle_right_mean", "number", "Mean of those."),
    Column("note", "text", "What could not be computed, and why."),
)
MEMORY = 1 << 30
"""Bytes that are held at once at most, if a tensor alone does not need more."""
_ZERO_WHERE_SAME = (
    "sigma_shift",
    "delta_sigma_max",
    "angle_left_max",
    "angle_left_mean",
    "angle_right_max",
    "angle_right_mean",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """Every tensor that one of the two checkpoints has, and what could not be compared."""

    rows: list[Row]
    problems: list[WeightsError]
    seconds: float


def compare(
    first: Checkpoint,
    second: Checkpoint,
    *,
    k: int = 16,
    spectra: bool = True,
    exact_side: int = 4096,
    workers: int | None = None,
    memory: int | None = None,
    progress: Callable[[str, int], None] = lambda _name, _bytes: None,
    beat: Callable[[], None] = lambda: None,
) -> Difference:
    """Compare all tensors by name.

    Args:
        first: before.
        second: after.
        k: singular directions whose spans are compared.
        spectra: whether spectra and angles are computed.
        exact_side: longest shorter side of matrices that get them.
        workers: tensors at once; unset takes the processors that this process may use.
        memory: bytes held at once by all workers; unset takes 1 GiB. A tensor that needs more is alone.
        progress: told the name and the bytes of each tensor that is done.
        beat: called at least once a second.
    """
    began = time.monotonic()
    names = list(dict.fromkeys([*first.tensors, *second.tensors]))
    problems = [*first.problems, *second.problems]
    lost = {name for problem in problems for name in problem.tensors}
    processors = len(os.sched_getaffinity(0))
    workers = max(1, min(workers or processors, len(names) or 1))

    budget = Budget(memory or MEMORY)

    def work(name: str) -> Row:
        a, b = first.tensors.get(name), second.tensors.get(name)
        with budget.held(_needed(a, b, exact_side, spectra=spectra)):
            return compared(name, a, b)

    def compared(name: str, a: Tensor | None, b: Tensor | None) -> Row:
        row = _row(name, a, b)
        if a is None or b is None:
            status = "failed" if name in lost else "removed" if b is None else "added"
            return {**row, "status": status}
        if a.shape != b.shape:
            return {**row, "status": "reshaped", "note": f"{a.shape} before, {b.shape} after"}
        return {**row, **_compared(a, b, k=k, spectra=spectra, exact_side=exact_side)}

    rows: dict[str, Row] = {}
    with (
        threadpool_limits(limits=max(1, processors // workers)),
        ThreadPoolExecutor(workers, "weights") as pool,
    ):
        running = {pool.submit(work, name): name for name in names}
        pending = set(running)
        try:
            while pending:
                done, pending = wait(pending, timeout=1.0, return_when="FIRST_COMPLETED")
                beat()
                for future in done:
                    name = running[future]
                    try:
                        rows[name] = future.result()
                    except (OSError, ValueError, MemoryError) as error:
                        problems.append(AnalysisError(f"{name}: {error or type(error).__name__}", (name,)))
                        either = first.tensors.get(name)
                        rows[name] = {**_row(name, either, second.tensors.get(name)), "status": "failed"}
                    found = first.tensors.get(name) or second.tensors.get(name)
                    progress(name, found.nbytes if found else 0)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Difference([rows[name] for name in names], problems, time.monotonic() - began)


def _row(name: str, a: Tensor | None, b: Tensor | None) -> Row:
    block, layer = classify_param(name)
    types = list(dict.fromkeys(str(one.dtype) for one in (a, b) if one is not None))
    shape = next(one.shape for one in (a, b) if one is not None)
    return {
        **{column.name: None for column in DIFFERENCE_COLUMNS},
        "param_name": name,
        "layer_index": layer,
        "block_type": block,
        "shape": str(shape),
        "dtype": " → ".join(types),
    }


def _compared(a: Tensor, b: Tensor, *, k: int, spectra: bool, exact_side: int) -> Row:
    row, same, finite = _elementwise(a, b)
    side = min(a.rows, a.cols)
    if not spectra or not finite or side < 2 or not is_float(a.dtype) or not is_float(b.dtype):
        return {**row, "note": None if finite else "no spectrum: some elements are not finite"}
    if side > exact_side:
        return {**row, "note": f"no spectrum: the shorter side is above {exact_side}"}
    return {**row, **_spectral(a, b, min(k, side), same=same)}


def _elementwise(a: Tensor, b: Tensor) -> tuple[Row, bool, bool]:
    """Return norms and counts, whether all values are equal, and whether all are finite."""
    changed = 0
    squares = np.zeros(4)  # a·a, b·b, a·b, Δ·Δ
    largest, finite = 0.0, True
    step = BLOCK_ELEMENTS
    for start in range(0, a.size, step):
        stop = min(a.size, start + step)
        one, two = (tensor.read(start, stop).astype(np.float64) for tensor in (a, b))
        finite = finite and bool(np.isfinite(one).all() and np.isfinite(two).all())
        changed += int(np.count_nonzero((one != two) & ~(np.isnan(one) & np.isnan(two))))
        usable = np.isfinite(one) & np.isfinite(two)
        one, two = np.where(usable, one, 0.0), np.where(usable, two, 0.0)
        delta = two - one
        squares += [one @ one, two @ two, one @ two, delta @ delta]
        largest = max(largest, float(np.abs(delta).max(initial=0.0)))
    norm_a, norm_b, _, delta_norm = (math.sqrt(max(0.0, value)) for value in squares)
    product = norm_a * norm_b
    return (
        {
            "status": "changed" if changed else "same",
            "changed": changed,
            "norm_a": norm_a,
            "norm_b": norm_b,
            "delta_norm": delta_norm,
            "delta_relative": delta_norm / norm_a if norm_a else None,
            "delta_max": largest,
            "cosine": float(np.clip(squares[2] / product, -1, 1)) if product else None,
        },
        changed == 0,
        finite,
    )


def _spectral(a: Tensor, b: Tensor, k: int, *, same: bool) -> Row:
    if same:
        return {"k": k, "delta_rank_f32tol": 0, **dict.fromkeys(_ZERO_WHERE_SAME, 0.0)}
    one, two = blocks_of(a), blocks_of(b)
    side = min(a.rows, a.cols)
    grams = np.zeros((3, side, side))  # of W, of W + ΔW, of ΔW
    for x, y in zip(one(), two(), strict=True):
        for gram, block in zip(grams, (x, y, y - x), strict=True):
            np.add(gram, block.T @ block, out=gram)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(grams[2])[::-1], 0))
    spectrum = Spectrum(values, a.rows, a.cols, "gram", exact=True, squares=float(np.square(values).sum()))
    (values_a, short_a), (values_b, short_b) = (_directions(gram, k) for gram in grams[:2])
    short = subspace_angles(short_a, short_b)
    long = subspace_angles(_across(one, short_a), _across(two, short_b))
    left, right = (long, short) if a.rows >= a.cols else (short, long)
    largest = float(values_a[0])
    return {
        "delta_sigma_max": spectrum.largest,
        "delta_stable_rank": spectrum.stable_rank,
        "delta_effective_rank": spectrum.effective_rank,
        "delta_rank_f32tol": spectrum.rank(spectrum.tolerance),
        "delta_spectrum": spectrum.outline(),
        "sigma_shift": float(np.abs(values_a - values_b).max()) / largest if largest else None,
        "k": k,
        "angle_left_max": float(left.max()),
        "angle_left_mean": float(left.mean()),
        "angle_right_max": float(right.max()),
        "angle_right_mean": float(right.mean()),
    }


def _directions(gram: Float64, k: int) -> tuple[Float64, Float64]:
    """Return all singular values, and the k largest directions of the shorter side."""
    values, vectors = np.linalg.eigh(gram)
    return np.sqrt(np.maximum(values[::-1], 0)), vectors[:, ::-1][:, :k].copy()


def _across(blocks: Blocks, short: Float64) -> Float64:
    """Return the directions of the longer side that belong to those of the shorter."""
    return np.asarray(np.linalg.qr(np.concatenate([block @ short for block in blocks()]))[0], np.float64)


def _needed(a: Tensor | None, b: Tensor | None, exact_side: int, *, spectra: bool) -> int:
    """Return about how many bytes the comparison of two tensors holds at its peak."""
    if a is None or b is None:
        return 0
    side = min(a.rows, a.cols)
    if not spectra or side > exact_side or side < 2:
        return 6 * 8 * BLOCK_ELEMENTS
    wide = a.nbytes + b.nbytes if a.rows < a.cols else 0
    return wide + 6 * 8 * side * side + 4 * 8 * max(BLOCK_ELEMENTS, 256 * side)


def subspace_angles(a: NDArray[np.float64], b: NDArray[np.float64]) -> Float64:
    """Return the principal angles between the columns' spans in degrees, largest first.

    Björck and Golub 1973: small angles from sines, so that an angle of 1e-8 is not rounded to zero.

    Args:
        a: [n, k] orthonormal columns.
        b: [n, k] orthonormal columns.
    """
    cosines = np.clip(np.linalg.svd(a.T @ b, compute_uv=False), 0, 1)
    sines = np.clip(np.linalg.svd(b - a @ (a.T @ b), compute_uv=False), 0, 1)
    angles = np.where(cosines[::-1] ** 2 < 0.5, np.arccos(cosines[::-1]), np.arcsin(sines))
    degrees: Float64 = np.degrees(np.sort(angles)[::-1])
    return degrees


def read_difference(file: Path) -> list[Row]:
    """Return the rows of a difference that was written as JSONL."""
    with file.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def totals(rows: Sequence[Row]) -> Row:
    """Return how many tensors there are of each status, and ‖Δ‖F, relative, of all parameters together."""
    statuses = [str(row["status"]) for row in rows]
    learned = [row for row in rows if row["block_type"] != "buffer"]
    delta = math.sqrt(sum((row["delta_norm"] or 0.0) ** 2 for row in learned))
    before = math.sqrt(sum((row["norm_a"] or 0.0) ** 2 for row in learned if row["norm_b"] is not None))
    return {
        **{
            status: statuses.count(status)
            for status in ("same", "changed", "added", "removed", "reshaped", "failed")
        },
        "delta_norm": delta,
        "delta_relative": delta / before if before else None,
    }
