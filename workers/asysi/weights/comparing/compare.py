"""Compares two checkpoints of the same architecture, tensor by tensor: what changed, how much, and in which
directions.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from asysi.weights.comparing.matching import Pair, as_transformers, gguf_names, pair_up
from asysi.weights.errors import AnalysisError, WeightsError
from asysi.weights.reading.adapters import merged
from asysi.weights.reading.checkpoint import Checkpoint
from asysi.weights.reading.dtypes import is_float
from asysi.weights.reading.tensors import Array, Tensor
from asysi.weights.statistics.memory_budget import MemoryBudget
from asysi.weights.statistics.parameter_families import classify_param
from asysi.weights.statistics.spectrum import BLOCK_ELEMENTS, Blocks, Float64, Spectrum, blocks_of
from asysi.weights.tables.columns import Column, Row

DIFFERENCE_COLUMNS = (
    Column("param_name", "text", "Name of the parameter.", True),
    Column("layer_index", "integer", "Layer counted from 0."),
    Column("block_type", "text", "What the parameter is.", True),
    Column("shape", "text", "Shape in the first checkpoint, or in the one that has it.", True),
    Column("dtype", "text", "Type in both, `a → b` where they differ.", True),
    Column(
        "status",
        "text",
        "`same` (equal values), `changed`, `resized` (a vocabulary with more or fewer rows: the common ones "
        "are compared), `added`, `removed`, `reshaped`, or `failed`.",
        True,
    ),
    Column("renamed_to", "text", "Name in the second, if it differs."),
    Column(
        "matched_by",
        "text",
        "How the two were matched: `name`, `prefix`, `gguf` (names of the formats), `hash` (equal bytes), "
        "`correlation` (equal shape, values that correlate).",
    ),
    Column("rows_compared", "integer", "Rows that both have, where the status is `resized`."),
    Column("changed", "integer", "Elements with another value, compared exactly."),
    Column("not_finite_a", "integer", "NaNs and infinities in the first."),
    Column("not_finite_b", "integer", "NaNs and infinities in the second."),
    Column("norm_a", "number", "Frobenius norm in the first."),
    Column("norm_b", "number", "Frobenius norm in the second."),
    Column(
        "delta_norm",
        "number",
        "‖ΔW‖F over the elements that are finite in both; empty where nothing but finiteness changed.",
    ),
    Column("delta_relative", "number", "‖ΔW‖F / ‖W‖F of the first; empty where W is zero."),
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
    Column("angle_right_max", "number", "The same for the right singular vectors."),
    Column("angle_right_mean", "number", "Mean of those."),
    Column("note", "text", "What could not be computed, and why."),
)
STATUSES = ("changed", "same", "resized", "added", "removed", "reshaped", "failed")
MEMORY = 1 << 30
"""Default memory limit in bytes; a single tensor may need more."""
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
    """All tensors of either checkpoint, and the problems."""

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
    """Compare all tensors, paired by name, then by prefix, bytes or values; see `pair_up`.

    If the second is a LoRA adapter, the first with the adapter's change added is compared instead.

    Args:
        first: before.
        second: after.
        k: singular directions whose spans are compared.
        spectra: whether spectra and angles are computed.
        exact_side: maximum shorter side of a matrix for which they are computed.
        workers: tensors processed concurrently; unset uses the processors available to this process.
        memory: bytes held at once by all workers; unset uses 1 GiB. A tensor that needs more is processed
            alone.
        progress: called with name and bytes of each finished tensor.
        beat: called at least once per second.
    """
    began = time.monotonic()
    if second.adapter and not first.adapter:
        second = merged(first, second)
    problems = [*first.problems, *second.problems]
    lost = {name for problem in problems for name in problem.tensors}
    pairs = pair_up(first.tensors, second.tensors, lost, gguf_names(first, second))
    processors = len(os.sched_getaffinity(0))
    workers = max(1, min(workers or processors, len(pairs) or 1))
    budget = MemoryBudget(memory or MEMORY)

    def work(pair: Pair) -> Row:
        a, b = _side(first, pair.first, pair.how), _side(second, pair.second, pair.how)
        with budget.held(_needed(a, b, exact_side, spectra=spectra)):
            alone = a is None or b is None
            return _row(pair, a, b) | (_outcome(pair, a, b) if alone else _outcome(pair, _held(a), _held(b)))

    def _outcome(pair: Pair, a: Tensor | None, b: Tensor | None) -> Row:
        if a is None or b is None:
            return {"status": "failed" if pair.name in lost else "removed" if b is None else "added"}
        if a.shape == b.shape:
            return _compared(a, b, k=k, spectra=spectra, exact_side=exact_side)
        note = f"{a.shape} before, {b.shape} after"
        if not _is_resized(a, b):
            return {"status": "reshaped", "note": note}
        common = min(a.rows, b.rows)
        row = _compared(a.head(common), b.head(common), k=k, spectra=spectra, exact_side=exact_side)
        said = f"{note}; the first {common} rows are compared: {row['status']}"
        return {**row, "status": "resized", "rows_compared": common, "note": _joined(said, row["note"])}

    rows: dict[str, Row] = {}
    with (
        threadpool_limits(limits=max(1, processors // workers)),
        ThreadPoolExecutor(workers, "weights") as pool,
    ):
        running = {pool.submit(work, pair): pair for pair in pairs}
        pending = set(running)
        try:
            while pending:
                done, pending = wait(pending, timeout=1.0, return_when="FIRST_COMPLETED")
                beat()
                for future in done:
                    pair = running[future]
                    either = first.tensors.get(pair.first or ""), second.tensors.get(pair.second or "")
                    try:
                        rows[pair.name] = future.result()
                    except Exception as error:  # noqa: BLE001 - one tensor does not end the others
                        said = f"{pair.name}: {type(error).__name__}: {error}"
                        problems.append(AnalysisError(said, (pair.name,)))
                        rows[pair.name] = {**_row(pair, *either), "status": "failed"}
                    progress(pair.name, next(one.nbytes for one in either if one is not None))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Difference([rows[pair.name] for pair in pairs], problems, time.monotonic() - began)


def _side(checkpoint: Checkpoint, name: str | None, how: str) -> Tensor | None:
    """Return one side of a pair; a GGUF tensor paired by `gguf` is in transformers' row order."""
    tensor = None if name is None else checkpoint.tensors.get(name)
    if tensor is not None and how == "gguf" and tensor.framework == "gguf":
        return as_transformers(tensor, checkpoint.metadata)
    return tensor


def _held(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor in a form whose parts can be read without unpacking all of it each time."""
    if tensor is None or tensor.by_range:
        return tensor
    whole = tensor.read()
    return replace(tensor, _read=lambda start, stop, _into: whole[start:stop], by_range=True)


def _is_resized(a: Tensor, b: Tensor) -> bool:
    """Return whether both are the same table with different row counts: tokens, positions or biases."""
    vocabulary = classify_param(a.name)[0] in {"embedding", "output", "position"}
    return vocabulary and bool(a.shape) and bool(b.shape) and a.shape[1:] == b.shape[1:]


def _row(pair: Pair, a: Tensor | None, b: Tensor | None) -> Row:
    block, layer = classify_param(pair.name)
    types = list(dict.fromkeys(one.stored for one in (a, b) if one is not None))
    shape = next(one.shape for one in (a, b) if one is not None)
    return {
        **{column.name: None for column in DIFFERENCE_COLUMNS},
        "param_name": pair.name,
        "renamed_to": pair.second if pair.first and pair.second != pair.first else None,
        "matched_by": pair.how or None,
        "layer_index": layer,
        "block_type": block,
        "shape": str(shape),
        "dtype": " → ".join(types),
    }


def _joined(*notes: str | None) -> str | None:
    return "; ".join(one for one in notes if one) or None


def _compared(a: Tensor, b: Tensor, *, k: int, spectra: bool, exact_side: int) -> Row:
    found = _elementwise(a, b)
    row = {**found.columns(), "note": _joined(a.note, b.note if b.note != a.note else "", *found.remarks())}
    side = min(a.rows, a.cols)
    if not spectra or side < 2 or not is_float(a.dtype) or not is_float(b.dtype):
        return row
    if found.not_finite_a or found.not_finite_b:
        return {**row, "note": _joined(row["note"], "no spectrum: some elements are not finite")}
    if side > exact_side:
        return {**row, "note": _joined(row["note"], f"no spectrum: the shorter side is above {exact_side}")}
    return {**row, **_spectral(a, b, min(k, side), same=not found.changed)}


@dataclass
class _Elements:
    """Inner products of two tensors."""

    changed: int = 0
    not_finite_a: int = 0
    not_finite_b: int = 0
    squares: Float64 = field(default_factory=lambda: np.zeros(4))
    """a·a, b·b, a·b, Δ·Δ over the elements that are finite in both."""
    largest: float = 0.0

    def columns(self) -> Row:
        """Return the columns; undefined values are missing, never zero."""
        norm_a, norm_b, _, delta = (math.sqrt(max(0.0, value)) for value in self.squares)
        product = norm_a * norm_b
        known = not self.changed or delta > 0
        return {
            "status": "changed" if self.changed else "same",
            "changed": self.changed,
            "not_finite_a": self.not_finite_a,
            "not_finite_b": self.not_finite_b,
            "norm_a": norm_a,
            "norm_b": norm_b,
            "delta_norm": delta if known else None,
            "delta_relative": delta / norm_a if known and norm_a else None,
            "delta_max": self.largest if known else None,
            "cosine": float(np.clip(self.squares[2] / product, -1, 1)) if product and known else None,
        }

    def remarks(self) -> list[str]:
        """Return caveats on the values."""
        found = []
        if self.not_finite_a or self.not_finite_b:
            found.append(
                f"{self.not_finite_a} elements are not finite before and {self.not_finite_b} after; norms "
                "are of those that are finite in both"
            )
        if self.squares[0] == 0 and self.squares[3] > 0:
            found.append("zero before: no relative change")
        return found


def _elementwise(a: Tensor, b: Tensor) -> _Elements:
    found = _Elements()
    for start in range(0, a.size, BLOCK_ELEMENTS):
        stop = min(a.size, start + BLOCK_ELEMENTS)
        one, two, differs, delta = _differences(a.read(start, stop), b.read(start, stop))
        finite_a, finite_b = np.isfinite(one), np.isfinite(two)
        found.changed += int(np.count_nonzero(differs))
        found.not_finite_a += int(np.count_nonzero(~finite_a))
        found.not_finite_b += int(np.count_nonzero(~finite_b))
        usable = finite_a & finite_b
        one, two, delta = (np.where(usable, x, 0.0) for x in (one, two, delta))
        with np.errstate(over="ignore"):
            found.squares += [one @ one, two @ two, one @ two, delta @ delta]
        found.largest = max(found.largest, float(np.abs(delta).max(initial=0.0)))
    return found


def _differences(one: Array, two: Array) -> tuple[Float64, Float64, NDArray[np.bool_], Float64]:
    """Return both in float64, where they differ, and by how much; exact for 64-bit integers."""
    if "c" in one.dtype.kind + two.dtype.kind:
        one, two = (x.astype(np.complex128).view(np.float64) for x in (one, two))
    wide = any(x.dtype.kind in "iu" and x.dtype.itemsize == 8 for x in (one, two))
    # A long double has a significand of 64 bits or more: it holds every 64-bit integer and every float64.
    exact: list[Array] = [x.astype(np.longdouble if wide else np.float64) for x in (one, two)]
    with np.errstate(invalid="ignore", over="ignore"):
        delta = (exact[1] - exact[0]).astype(np.float64)
    differs = (exact[0] != exact[1]) & ~(np.isnan(exact[0]) & np.isnan(exact[1]))
    return exact[0].astype(np.float64), exact[1].astype(np.float64), differs, delta


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
    """Return the longer side's singular directions for those of the shorter side."""
    return np.asarray(np.linalg.qr(np.concatenate([block @ short for block in blocks()]))[0], np.float64)


def _needed(a: Tensor | None, b: Tensor | None, exact_side: int, *, spectra: bool) -> int:
    """Estimate the peak memory in bytes of comparing two tensors."""
    if a is None or b is None:
        return 0
    side = min(a.rows, a.cols)
    packed = sum(2 * one.nbytes for one in (a, b) if not one.by_range)
    if not spectra or side > exact_side or side < 2:
        return packed + 6 * 8 * BLOCK_ELEMENTS
    wide = a.nbytes + b.nbytes if a.rows < a.cols else 0
    return packed + wide + 6 * 8 * side * side + 4 * 8 * max(BLOCK_ELEMENTS, 256 * side)


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


def said_in_short(found: Row) -> str:
    """Return the totals as a clause: the number of tensors per status, and the warnings."""
    parts = [f"{found[status]} {status}" for status in STATUSES if found[status]]
    if found["renamed"]:
        parts.append(f"{found['renamed']} renamed")
    if found["broken"]:
        parts.append(f"{found['broken']} gained elements that are not finite")
    if found["from_zero"]:
        parts.append(f"{found['from_zero']} were zero before")
    return ", ".join(parts)


def read_difference(file: Path) -> list[Row]:
    """Return the rows of a difference table in JSONL."""
    with file.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def totals(rows: Sequence[Row]) -> Row:
    """Return the number of tensors per status, and the absolute and relative ‖Δ‖F over all parameters."""
    statuses = [str(row["status"]) for row in rows]
    learned = [row for row in rows if row["block_type"] != "buffer"]
    delta = math.sqrt(sum((row["delta_norm"] or 0.0) ** 2 for row in learned))
    before = math.sqrt(sum((row["norm_a"] or 0.0) ** 2 for row in learned if row["norm_b"] is not None))
    return {
        **{status: statuses.count(status) for status in STATUSES},
        "renamed": sum(row["renamed_to"] is not None for row in rows),
        "broken": sum((row["not_finite_b"] or 0) > (row["not_finite_a"] or 0) for row in rows),
        "from_zero": sum(row["norm_a"] == 0 and bool(row["delta_norm"]) for row in rows),
        "delta_norm": delta,
        "delta_relative": delta / before if before else None,
    }
