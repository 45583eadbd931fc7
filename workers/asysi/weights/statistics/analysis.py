"""Analyses a checkpoint's parameters: each tensor in one pass, several in parallel, in bounded memory."""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import asysi
from asysi.contract.errors import ConfigError
from asysi.weights.errors import AnalysisError, WeightsError
from asysi.weights.reading.checkpoint import Checkpoint
from asysi.weights.reading.dtypes import is_float
from asysi.weights.reading.tensors import DEQUANTISED, STORED_FORM, Tensor
from asysi.weights.statistics.finished_rows import FinishedRows
from asysi.weights.statistics.memory_budget import MemoryBudget
from asysi.weights.statistics.parameter_families import describe_param
from asysi.weights.statistics.spectrum import (
    BLOCK_ELEMENTS,
    SEED_RANK_TOLERANCE,
    Gram,
    Method,
    SingularValues,
    Spectrum,
    blocks_of,
    blocks_of_array,
    choose_method,
    fit_power_law,
    gram_found,
    randomized_found,
    svd_found,
)
from asysi.weights.statistics.streaming_statistics import CHUNK, TensorSummary, parts_of, tally
from asysi.weights.tables.columns import NAMES, QUANTILE_NAMES, Row
from asysi.weights.tables.export import code_version

Stats = Literal["full", "basic"]
DEVICE = "cpu"
TOP = 8
"""Number of singular values in `top_singular_values`."""
SMALL_BUDGET = 256 << 20
"""Minimum memory budget in bytes."""
_POLL = 1.0
_SPECTRAL = NAMES[NAMES.index("method") : NAMES.index("note")]


@dataclass(frozen=True, slots=True)
class Settings:
    """What to compute, and how."""

    zero_epsilon: float = 1e-8
    """Magnitude up to which an element counts for `sparsity`."""
    spectra: bool = True
    """Whether singular values are computed."""
    method: Method = "auto"
    """How they are computed; `auto` chooses by size."""
    rank_k: int = 128
    """Number of singular values of the randomized method."""
    exact_side: int = 4096
    """Maximum shorter side of a matrix for which `auto` computes all singular values; the Gram matrix of that
    side takes 16 bytes per element."""
    seed: int = 0
    """Seed of the randomized method."""
    stats: Stats = "full"
    """`basic`: mean, deviation, extremes, zeros and non-finite counts, without spectra, quantiles and hashes;
    finished rows are therefore not reused."""

    @property
    def basic(self) -> bool:
        """Whether only the basic statistics are computed."""
        return self.stats == "basic"

    @property
    def key(self) -> str:
        """Key of everything except the tensor that a row depends on."""
        return json.dumps([asdict(self), asysi.__version__])


@dataclass(frozen=True, slots=True)
class CheckpointOrigin:
    """Where a checkpoint comes from."""

    model_path: str
    model_id: str
    revision: str = "local"
    """Resolved revision: a commit if the model came from the hub."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects the parameters to analyse by globs on their names."""

    include: tuple[str, ...] = ()
    """Empty selects all."""
    exclude: tuple[str, ...] = ()

    def of(self, names: Iterable[str]) -> list[str]:
        """Return the selected names, in their order.

        Raises:
            ConfigError: no name is selected.
        """
        every = list(names)
        kept = [name for name in every if self._wants(name)]
        if every and not kept:
            raise ConfigError(
                f"--include {' '.join(self.include)} --exclude {' '.join(self.exclude)} leave none of "
                f"{len(every)} parameters; their names are like {every[0]}"
            )
        return kept

    def _wants(self, name: str) -> bool:
        wanted = not self.include or any(fnmatchcase(name, one) for one in self.include)
        return wanted and not any(fnmatchcase(name, one) for one in self.exclude)


@dataclass(frozen=True, slots=True)
class CheckpointAnalysis:
    """Rows of the tensors that could be analysed, and the problems of the others."""

    identity: CheckpointOrigin
    rows: list[Row]
    """In the order of the checkpoint."""
    problems: list[WeightsError]
    seconds: float
    reused: int = 0
    """Rows reused from the file of finished rows: their tensors have not changed."""
    settings: Settings = field(default_factory=Settings)


Progress = Callable[[str, int], None]
"""Called with name and bytes of each finished tensor."""


def analyze(
    checkpoint: Checkpoint,
    identity: CheckpointOrigin,
    settings: Settings | None = None,
    *,
    workers: int | None = None,
    memory: int | None = None,
    journal: Path | None = None,
    progress: Progress = lambda _name, _bytes: None,
    beat: Callable[[], None] = lambda: None,
    names: Sequence[str] | None = None,
) -> CheckpointAnalysis:
    """Analyse every tensor, or those in `names`.

    A tensor that cannot be read or analysed is added to the problems of the checkpoint; the others are still
    analysed.

    Args:
        checkpoint: an open checkpoint.
        identity: the origin that the rows report.
        settings: what is computed.
        workers: tensors processed concurrently; unset uses the processors available to this process.
        memory: bytes held at once by all workers; unset uses twice the largest tensor, at least 256 MiB. A
            tensor that needs more is analysed alone.
        journal: file to which each finished row is appended; a tensor with a row there, by name, type,
            shape, hash and settings, is not analysed again.
        progress: called for each finished tensor.
        beat: called at least once per second.
        names: tensors to analyse, in this order.
    """
    began = time.monotonic()
    settings = settings or Settings()
    tensors = [checkpoint.tensors[name] for name in (checkpoint.tensors if names is None else names)]
    processors = len(os.sched_getaffinity(0))
    workers = max(1, min(workers or processors, len(tensors) or 1))
    largest = max((tensor.nbytes for tensor in tensors), default=0)
    budget = MemoryBudget(memory or max(2 * largest, SMALL_BUDGET))
    known = FinishedRows(None if settings.basic else journal, settings.key)
    problems = list(checkpoint.problems)
    found: dict[str, Row] = {}
    reused = 0

    def work(tensor: Tensor) -> tuple[Row, bool]:
        with budget.held(needed_bytes(tensor, settings)):
            return _row_or_known(tensor, identity, settings, known)

    threads = max(1, processors // workers)
    code_version()  # cached before all workers call it at once: git is slow
    wants_blas = settings.spectra and not settings.basic  # limiting BLAS threads wakes them up to spin
    limits = threadpool_limits(limits=threads) if wants_blas else nullcontext()
    with known, limits, ThreadPoolExecutor(workers, "weights") as pool:
        order = sorted(tensors, key=lambda one: _cost(one, settings), reverse=True)
        running: dict[Future[tuple[Row, bool]], Tensor] = {pool.submit(work, one): one for one in order}
        try:
            for future, tensor in _finished(running, beat):
                try:
                    found[tensor.name], again = future.result()
                    reused += again
                except Exception as error:  # noqa: BLE001 - one tensor, whatever is wrong, does not end the others
                    problems.append(
                        AnalysisError(
                            f"{tensor.file}: {tensor.name} {tensor.shape}: {_said(error)}", (tensor.name,)
                        )
                    )
                progress(tensor.name, tensor.nbytes)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    rows = [found[tensor.name] for tensor in tensors if tensor.name in found]
    return CheckpointAnalysis(identity, rows, problems, time.monotonic() - began, reused, settings)


def iterate_parameters(
    model_path: str | Path, *, backend: Any = "pread"
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the name and array of every parameter of a checkpoint, one in memory at a time.

    Types are kept: bfloat16 and 8-bit floats use ml_dtypes.

    Raises:
        WeightsError: after the last one, if some could not be read.
        ConfigError: there is nothing to read.
    """
    from asysi.weights.reading.checkpoint import open_checkpoint  # noqa: PLC0415 - keeps the import small

    with open_checkpoint(model_path, backend=backend) as checkpoint:
        for name, tensor in checkpoint.tensors.items():
            yield name, tensor.array()
        if checkpoint.problems:
            raise WeightsError("\n".join(problem.listed for problem in checkpoint.problems))


def tensor_stats(x: NDArray[Any], rank_k: int = 128, zero_epsilon: float = 1e-8, *, spectra: bool = True,
                 method: Method = "auto", seed: int = 0) -> Row:  # fmt: skip
    """Return the statistics of an array, under the names of the table's columns.

    Args:
        x: any shape, of floats, integers or booleans.
        rank_k: number of singular values that the randomized method computes; ranks are not clamped to it.
        zero_epsilon: magnitude up to which an element counts for `sparsity`.
        spectra: whether singular values are computed.
        method: how they are computed.
        seed: of the randomized method.
    """
    flat = np.ascontiguousarray(x).reshape(-1)
    tensor = Tensor("", x.dtype, x.shape, "", "numpy", lambda start, stop, _: flat[start:stop])
    settings = Settings(zero_epsilon, spectra, method, rank_k, seed=seed)
    with threadpool_limits(limits=len(os.sched_getaffinity(0))):
        return _measured(tensor, settings)


def needed_bytes(tensor: Tensor, settings: Settings) -> int:
    """Estimate the peak memory in bytes of analysing a tensor."""
    method = _method(tensor, settings)
    side = min(tensor.rows, tensor.cols)
    block = 8 * max(BLOCK_ELEMENTS, 256 * side)
    whole = tensor.nbytes if tensor.rows < tensor.cols or not tensor.by_range else 0
    return {
        "svd": tensor.nbytes + 3 * 8 * tensor.size,
        "gram": whole + 16 * side * side + block,
        "randomized": whole + 3 * 8 * side * (settings.rank_k + 16) + 2 * block,
    }.get(method, (0 if tensor.by_range else tensor.nbytes) + 2 * CHUNK * tensor.dtype.itemsize)


def _cost(tensor: Tensor, settings: Settings) -> float:
    side = min(tensor.rows, tensor.cols)
    return float(tensor.size) * (side if _method(tensor, settings) != "none" else 1)


def _method(tensor: Tensor, settings: Settings) -> str:
    if (
        not settings.spectra
        or settings.basic
        or not tensor.size
        or not is_float(tensor.dtype)
        or tensor.form == STORED_FORM
    ):
        return "none"
    if min(tensor.rows, tensor.cols) == 1:
        return "vector"
    return choose_method(tensor.rows, tensor.cols, settings.method, settings.exact_side)


def _row_or_known(
    tensor: Tensor, identity: CheckpointOrigin, settings: Settings, known: FinishedRows
) -> tuple[Row, bool]:
    if known.may_have(tensor) and (row := known.row(tensor, _hash(tensor))) is not None:
        return {**row, **asdict(identity), "file": tensor.file}, True
    began = time.monotonic()
    measured = _measured(tensor, settings)
    role = describe_param(tensor.name)
    row = {
        **dict.fromkeys(NAMES),
        **asdict(identity),
        "param_name": tensor.name,
        "layer_index": role.layer_index,
        "block_type": role.block_type,
        "kind": role.kind,
        "expert": role.expert,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": DEVICE,
        "framework": tensor.framework,
        "code_version": code_version(),
        "file": tensor.file,
        **measured,
        "seconds": round(time.monotonic() - began, 6),
    }
    known.add(row)
    return row, False


def _hash(tensor: Tensor) -> str:
    digest = xxhash.xxh3_128()
    parts = tensor.coding.parts if tensor.coding else None
    for part in tensor.chunks(CHUNK) if parts is None else parts():
        digest.update(_raw(part))
    return digest.hexdigest()


def _raw(part: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(part).view(np.uint8).data


def _measured(tensor: Tensor, settings: Settings) -> Row:
    method = _method(tensor, settings)
    with np.errstate(over="ignore", invalid="ignore"):  # float64 overflow is infinite, then missing
        return _columns_of(tensor, settings, method, _read_once(tensor, settings, method))


def _columns_of(tensor: Tensor, settings: Settings, method: str, figures: "_Figures") -> Row:
    summary, found, noise = figures.summary, figures.found, figures.noise
    note = tensor.note
    spectrum = None
    if method not in {"none", "vector"} and summary.finite < summary.elements:
        note = _joined(note, f"no spectrum: {summary.nans} NaN and {summary.infinities} infinite elements")
    elif found is not None and np.isfinite(found.values).all():
        tall = tensor.rows >= tensor.cols
        spectrum = Spectrum(
            found.values, tensor.rows, tensor.cols, method, exact=method != "randomized",
            squares=np.float64(summary.rms) ** 2 * summary.finite, noise=noise,
            row_spread=found.long if tall else found.short, col_spread=found.short if tall else found.long,
            seed=settings.seed if method == "randomized" else None,
        )  # fmt: skip
        if noise is None:
            note = _joined(note, f"no rank_noise: the rounding of {tensor.stored} is not known")
    elif found is not None:
        note = _joined(note, "no spectrum: squares are beyond float64")
    elif (
        settings.spectra
        and not settings.basic
        and tensor.size
        and not is_float(tensor.dtype)
        and tensor.form != STORED_FORM
    ):
        note = _joined(note, f"no spectrum: {tensor.dtype} is not a type of real floats")
    if tensor.dtype.kind == "c":
        note = _joined(note, "statistics are of the real and imaginary parts together")
    row: Row = {
        "shape": str(tensor.shape),
        "rows": tensor.rows,
        "cols": tensor.cols,
        "dtype": tensor.stored,
        "form": tensor.form,
        "dequantised_by": (tensor.coding.by if tensor.coding else "") or None,
        "elements": tensor.size,
        "bytes": tensor.stored_bytes,
        "tensor_hash": None if settings.basic else figures.digest,
        "zero_epsilon": settings.zero_epsilon,
        **_summary_columns(summary),
        **_spectrum_columns(spectrum),
        "note": note or None,
    }
    return {name: _plain(value) for name, value in row.items()}


@dataclass(frozen=True, slots=True)
class _Figures:
    """Results of one pass over a tensor."""

    summary: TensorSummary
    digest: str
    found: SingularValues | None
    noise: float | None


def _joined(*notes: str) -> str:
    return "; ".join(one for one in notes if one)


def _read_once(tensor: Tensor, settings: Settings, method: str) -> "_Figures":
    """Return statistics, hash, singular values and noise; only the randomized method reads more than once."""
    cols, side = tensor.cols, min(tensor.rows, tensor.cols)
    gram = Gram(side) if method == "gram" and tensor.rows >= cols and tensor.by_range else None
    held = tensor.read() if not tensor.by_range or (gram is None and method in {"svd", "gram"}) else None
    step = max(1, BLOCK_ELEMENTS // cols, min(cols, 256)) * cols if gram is not None else CHUNK
    counts, digest = (
        tally(_real(tensor.dtype), settings.zero_epsilon, basic=settings.basic),
        xxhash.xxh3_128(),
    )
    parts = tensor.coding.parts if tensor.coding else None
    for part in tensor.chunks(step) if held is None else parts_of(held, step):
        counts.add(part.view(_real(part.dtype)))
        if parts is None and not settings.basic:
            digest.update(_raw(part))
        if gram is not None:
            gram.add(part.reshape(-1, cols).astype(np.float64))
    for stored in parts() if parts is not None and not settings.basic else ():
        digest.update(_raw(stored))
    summary = counts.summary()
    noise: float | None = summary.noise
    if tensor.coding and tensor.coding.form == DEQUANTISED and method != "none" and held is not None:
        noise = tensor.coding.noise(held)
    found = None
    if summary.finite == summary.elements:
        found = _found(tensor, settings, method=method, gram=gram, held=held, summary=summary)
    return _Figures(summary, digest.hexdigest(), found, noise)


def _real(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """Return the type of a complex type's parts, and any other type unchanged."""
    return np.dtype("<f4") if dtype == np.dtype("<c8") else dtype


def _found(
    tensor: Tensor,
    settings: Settings,
    *,
    method: str,
    gram: Gram | None,
    held: NDArray[Any] | None,
    summary: TensorSummary,
) -> SingularValues | None:
    side = min(tensor.rows, tensor.cols)
    try:
        if gram is not None:
            return gram.found()
        if method == "vector":
            return SingularValues(np.array([summary.rms * math.sqrt(summary.finite)]))
        if method == "randomized":
            again = blocks_of(tensor) if held is None else blocks_of_array(held.reshape(tensor.rows, -1))
            return randomized_found(again, side, min(settings.rank_k, side), settings.seed)
        if held is not None:
            blocks = blocks_of_array(held.reshape(tensor.rows, tensor.cols))
            return svd_found(blocks) if method == "svd" else gram_found(blocks, side)
    except np.linalg.LinAlgError:
        return SingularValues(np.array([math.inf]))
    return None


def _summary_columns(summary: TensorSummary) -> Row:
    return {
        "mean": summary.mean,
        "std": summary.std,
        "var": summary.var,
        "sparsity": summary.sparsity,
        "finite": summary.finite,
        "nans": summary.nans,
        "infinities": summary.infinities,
        "zeros": summary.zeros,
        "near_zeros": summary.near_zeros,
        "near_zeros_rms": summary.near_zeros_rms,
        "subnormals": summary.subnormals,
        "rms": summary.rms,
        "min": summary.minimum,
        "max": summary.maximum,
        **dict(zip(QUANTILE_NAMES, summary.quantiles, strict=True)),
        "quantiles_exact": summary.quantiles_exact,
        "frobenius": summary.rms * math.sqrt(summary.finite) if summary.finite else 0.0,
    }


def _spectrum_columns(spectrum: Spectrum | None) -> Row:
    if spectrum is None:
        return {**dict.fromkeys(_SPECTRAL), "rank": None, "method": "none"}
    law = fit_power_law(spectrum.values) if spectrum.exact else None
    floor = spectrum.noise_floor
    return {
        "method": spectrum.method,
        "exact": spectrum.exact,
        "k": len(spectrum.values),
        "seed": spectrum.seed,
        "rank": spectrum.rank(SEED_RANK_TOLERANCE * spectrum.largest),
        "rank_f32tol": spectrum.rank(spectrum.tolerance),
        "tolerance": spectrum.tolerance,
        "rank_noise": None if floor is None else spectrum.rank(max(floor, spectrum.resolution)),
        "noise_floor": floor,
        "sigma_max": spectrum.largest,
        "sigma_min": float(spectrum.values[-1]) if spectrum.exact else None,
        "top_singular_values": json.dumps([float(value) for value in spectrum.values[:TOP]]),
        "stable_rank": spectrum.stable_rank,
        "effective_rank": spectrum.effective_rank,
        "captured_energy": spectrum.captured,
        "alpha": law.alpha if law else None,
        "alpha_ks": law.distance if law else None,
        "alpha_xmin": law.least if law else None,
        "alpha_tail": law.tail if law else None,
        "spectrum": spectrum.outline(),
    }


def _plain(value: Any) -> Any:
    """Return a value that every format can represent; non-finite values are missing."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _said(error: BaseException) -> str:
    expected = isinstance(error, OSError | ValueError) and str(error)
    return str(error) if expected else f"{type(error).__name__}: {error}"


def _finished(
    running: Mapping[Future[Any], Tensor], beat: Callable[[], None]
) -> Iterator[tuple[Future[Any], Tensor]]:
    pending = set(running)
    while pending:
        done, pending = wait(pending, timeout=_POLL, return_when="FIRST_COMPLETED")
        beat()
        for future in done:
            yield future, running[future]
