"""Computes METRICS records of rows, vectorised over blocks."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from asysi.archive.format import METRICS_DTYPE
from asysi.bus.packet import (
    FLAG_MASK,
    NO_POSITION,
    NO_TOKEN,
    PARAMETER_STATISTICS,
    ActivationPacket,
    Kind,
    document_positions,
)

_BLOCK_ELEMENTS = 1 << 16
"""Elements per block, so that a block and its temporaries fit into the CPU cache."""


def measure(packet: ActivationPacket) -> NDArray[np.void]:
    """Return the METRICS record of every row of a packet, [rows] of METRICS_DTYPE; `hook_point` stays 0."""
    records = np.zeros(len(packet.rows), METRICS_DTYPE)
    for name in ("sample", "sequence", "position", "token"):
        records[name] = packet.rows[name]
    records["flags"] = packet.rows["flags"] & FLAG_MASK
    records["document_position"] = document_positions(packet.rows)
    for name in ("step", "kind", "call_index"):
        records[name] = packet.header[name]
    for name in ("grad_norm", "input_x_gradient", "delta_sc"):
        records[name] = np.nan
    values = packet.to_float32()
    if int(packet.header["kind"]) == Kind.PARAMETER_GRADIENT:  # measured where it was captured
        for name, column in zip(PARAMETER_STATISTICS, values.T, strict=True):
            records[name] = column
    else:
        measure_rows(values, records)
    if int(packet.header["kind"]) != Kind.ACTIVATION:
        records["grad_norm"] = records["l2"]
    if (scores := packet.scores) is not None:
        records["input_x_gradient"], records["delta_sc"] = scores.T
    return records


def measure_values(
    values: NDArray[np.float32], rows: NDArray[np.void], *, step: int, call_index: int = 0
) -> NDArray[np.void]:
    """Return METRICS records [rows] of activations that come from no packet.

    Args:
        values: [rows, width].
        rows: [rows] of ROW_DTYPE: the token of each row.
        step: number of the step.
        call_index: which call of the module in its step, from 0.
    """
    records = np.zeros(len(rows), METRICS_DTYPE)
    for name in ("sample", "sequence", "position", "token"):
        records[name] = rows[name]
    records["flags"] = rows["flags"] & FLAG_MASK
    records["document_position"] = document_positions(rows)
    records["step"], records["kind"], records["call_index"] = step, Kind.ACTIVATION, call_index
    for name in ("grad_norm", "input_x_gradient", "delta_sc"):
        records[name] = np.nan
    measure_rows(values, records)
    return records


def measure_parameter_gradient(
    gradient: NDArray[np.float32], *, sample: int, step: int, flags: int = 0
) -> NDArray[np.void]:
    """Return the METRICS record [1] of the gradient of a parameter, measured as one row of all its elements.

    It has no token: `token` is NO_TOKEN, `position` and `document_position` are NO_POSITION, `sequence` and
    `call_index` are 0. `grad_norm` is `l2`; `input_x_gradient` and `delta_sc`, which belong to activations,
    are NaN.

    Args:
        gradient: the gradient, of any shape.
        sample: row of the input whose loss was differentiated.
        step: number of the step.
        flags: RowFlag of the sample: whether it is held out.
    """
    records = np.zeros(1, METRICS_DTYPE)
    records["sample"], records["step"], records["kind"] = sample, step, Kind.PARAMETER_GRADIENT
    records["token"], records["flags"] = NO_TOKEN, flags & FLAG_MASK
    records["position"] = records["document_position"] = NO_POSITION
    _measure_large(gradient.reshape(-1), records[0])
    records["grad_norm"] = records["l2"]
    records["input_x_gradient"] = records["delta_sc"] = np.nan
    return records


def _measure_large(values: NDArray[np.float32], record: np.void) -> None:
    """Measure one row of up to millions of elements [n], summed in float64."""
    count = total = squares = centred = 0.0
    least, most = np.inf, -np.inf
    for block in _finite_blocks(values):
        count, total = count + len(block), total + block.sum()
        squares += np.square(block).sum()
        least, most = min(least, block.min(initial=np.inf)), max(most, block.max(initial=-np.inf))
    mean = total / count if count else np.nan
    for block in _finite_blocks(values):
        centred += np.square(block - mean).sum()
    with np.errstate(over="ignore"):
        record["mean"], record["l2"] = mean, np.sqrt(squares) if count else np.nan
        record["std"] = np.sqrt(centred / count) if count else np.nan
    record["min"], record["max"] = (least, most) if count else (np.nan, np.nan)
    record["sparsity"] = 1 - np.count_nonzero(values) / len(values) if len(values) else np.nan
    record["nan_count"], record["inf_count"] = np.isnan(values).sum(), np.isinf(values).sum()


def _finite_blocks(values: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    for first in range(0, len(values), _BLOCK_ELEMENTS):
        block = values[first : first + _BLOCK_ELEMENTS]
        yield block[np.isfinite(block)].astype(np.float64)


def measure_rows(values: NDArray[np.float32], records: NDArray[np.void]) -> None:
    """Fill mean to inf_count of `records` [rows] from `values` [rows, width]."""
    rows, width = values.shape
    if width == 0:
        for name in ("mean", "std", "l2", "min", "max", "sparsity"):
            records[name] = np.nan
        return
    step = max(1, _BLOCK_ELEMENTS // width)
    for first in range(0, rows, step):
        _measure_block(values[first : first + step], records[first : first + step])


def _measure_block(values: NDArray[np.float32], records: NDArray[np.void]) -> None:
    width = values.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", values, values)
        mean = values.sum(axis=1) / np.float32(width)
        centred = values - mean[:, None]
        variance = np.einsum("ij,ij->i", centred, centred) / np.float32(width)
    records["mean"] = mean
    records["std"] = np.sqrt(variance)
    records["l2"] = np.sqrt(squares)
    records["min"] = values.min(axis=1)
    records["max"] = values.max(axis=1)
    records["sparsity"] = 1 - np.count_nonzero(values, axis=1) / width
    for row in np.flatnonzero(~np.isfinite(squares)):
        _measure_row(values[row], records[row])


def _measure_row(values: NDArray[np.float32], record: np.void) -> None:
    """Measure a row whose squares overflow float32: it contains NaN, infinities or very large numbers."""
    record["nan_count"] = np.isnan(values).sum()
    record["inf_count"] = np.isinf(values).sum()
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        for name in ("mean", "std", "l2", "min", "max"):
            record[name] = np.nan
        return
    with np.errstate(over="ignore"):
        record["mean"], record["std"] = finite.mean(), finite.std()
        record["l2"] = np.sqrt(np.square(finite).sum())
        record["min"], record["max"] = finite.min(), finite.max()
