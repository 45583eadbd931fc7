"""Packets as bytes, for streams that are not the ring: what the ring does in one native pass, in numpy."""

from dataclasses import replace

import numpy as np

from asysi.bus.packet import (
    HEADER_BYTES,
    HEADER_DTYPE,
    MAGIC,
    VERSION,
    ActivationPacket,
    Dtype,
    Quantization,
    RowFlag,
    payload_at,
)
from asysi.bus.quantization import Table, quantise


def converted(
    packet: ActivationPacket, quantization: Quantization, table: Table | None = None
) -> ActivationPacket:
    """Return the packet with its payload as `quantization` asks; what is that narrow already stays.

    Raises:
        ValueError: int8 by channel without a table.
    """
    dtype = Dtype(int(packet.header["dtype"]))
    if quantization is Quantization.NONE or dtype in {Dtype.INT8, Dtype.FP8_E4M3}:
        return packet
    header = packet.header.copy()
    header["quantization"], header["dtype"] = quantization, quantization.dtype or dtype
    made = quantise(packet.to_float32(), quantization, table)
    rows = packet.rows.copy()
    if made.saturated is not None:
        rows["flags"] |= np.where(made.saturated > 0, RowFlag.SATURATED, 0).astype(np.uint32)
    return replace(
        packet, header=header, rows=rows, scales=made.scales, payload=made.payload, table=made.table
    )


def saturated(packet: ActivationPacket, quantization: Quantization, table: Table | None) -> int:
    """Return how many values a conversion finds outside the ranges of their channels."""
    made = quantise(packet.to_float32(), quantization, table) if quantization.by_channel else None
    return 0 if made is None or made.saturated is None else int(made.saturated.sum())


def encode(packet: ActivationPacket, **fields: int) -> bytes:
    """Return the packet's wire form; `fields` are those of the header that the stream writes."""
    rows = len(packet.rows)
    beside = packet.scales if packet.table is None else packet.table
    scales = b"" if beside is None else beside.tobytes()
    payload = np.ascontiguousarray(packet.payload)
    header = np.zeros(1, HEADER_DTYPE)
    header[0] = packet.header
    header["magic"], header["version"], header["header_bytes"] = MAGIC, _version(packet), HEADER_BYTES
    header["rows"], header["width"] = payload.shape
    header["payload_bytes"], header["scale_bytes"] = payload.nbytes, len(scales)
    for name, value in fields.items():
        header[name] = value
    head = header.tobytes() + packet.rows.tobytes() + scales
    padding = bytes(payload_at(rows, len(scales)) - len(head))
    return b"".join((head, padding, payload.data if payload.size else b""))


def _version(packet: ActivationPacket) -> int:
    """Return the least version that reads a packet."""
    if packet.scores is not None:
        return VERSION
    return 3 if packet.table is not None or int(packet.header["dtype"]) == Dtype.FP8_E4M3 else 2
