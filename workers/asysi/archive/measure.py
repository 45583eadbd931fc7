"""Computes METRICS records of rows, vectorised over blocks."""

import numpy as np
from numpy.typing import NDArray

from asysi.archive.format import METRICS_DTYPE
from asysi.bus.packet import FLAG_MASK, ActivationPacket, document_positions

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
    measure_rows(packet.to_float32(), records)
    return records


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
