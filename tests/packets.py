"""Packets as the bus gives them, for tests of what reads and stores them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from asysi.bus.packet import HEADER_DTYPE, MAGIC, ROW_DTYPE, VERSION, ActivationPacket, Dtype

_DTYPES = {
    np.dtype("<f4"): Dtype.FLOAT32,
    np.dtype("<f2"): Dtype.FLOAT16,
    np.dtype("<u2"): Dtype.BFLOAT16,
    np.dtype("i1"): Dtype.INT8,
}


def header_of(**fields: Any) -> np.void:
    """Return a packet's header with these fields, the rest zero."""
    header = np.zeros(1, HEADER_DTYPE)
    for name, value in {"magic": MAGIC, "version": VERSION, "header_bytes": 192, **fields}.items():
        header[name] = value
    return header[0]


def packet_of(
    payload: NDArray[Any],
    sequence: int = 0,
    point: str = "a",
    *,
    rows: NDArray[np.void] | None = None,
    scales: NDArray[np.float32] | None = None,
    **fields: Any,
) -> ActivationPacket:
    """Return a packet with this payload [rows, width], whose dtype is that of the payload.

    Args:
        payload: the elements; `<u2` stands for bfloat16.
        sequence: its sequence number, and its step unless `fields` has another.
        point: path of its hook point.
        rows: row records; zeros by default.
        scales: scale of each row.
        fields: further fields of the header.
    """
    count, width = payload.shape
    header = header_of(
        **{
            "sequence": sequence,
            "step": sequence,
            "rows": count,
            "width": width,
            "dtype": _DTYPES[payload.dtype],
            "payload_bytes": payload.nbytes,
            "scale_bytes": 0 if scales is None else scales.nbytes,
            **fields,
        }
    )
    return ActivationPacket(header, point, rows_of(count) if rows is None else rows, scales, payload)


def rows_of(count: int, **fields: Any) -> NDArray[np.void]:
    """Return row records with these fields, the rest zero."""
    rows = np.zeros(count, ROW_DTYPE)
    for name, value in fields.items():
        rows[name] = value
    return rows


def as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return float32 values cut to bfloat16."""
    return (values.view(np.uint32) >> 16).astype("<u2")
