"""Packets as bytes, for buses that are not the ring: what the ring does in one native pass, in numpy."""

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
    payload_at,
)


def converted(packet: ActivationPacket, quantization: Quantization) -> ActivationPacket:
    """Return the packet with its payload as `quantization` asks; what is that narrow already stays.

    Raises:
        ValueError: there is no such conversion.
    """
    dtype = Dtype(int(packet.header["dtype"]))
    if quantization is Quantization.NONE or dtype in {Dtype.INT8, Dtype.FP8_E4M3}:
        return packet
    header = packet.header.copy()
    header["quantization"] = quantization
    values = packet.to_float32()
    if quantization is Quantization.BF16:
        bits = values.view(np.uint32)
        header["dtype"] = Dtype.BFLOAT16
        return replace(
            packet, header=header, payload=((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        )
    if quantization is Quantization.INT8:
        scales = np.abs(values).max(axis=1) / np.float32(127)
        header["dtype"] = Dtype.INT8
        return replace(
            packet, header=header, scales=scales, payload=np.rint(values / scales[:, None]).astype(np.int8)
        )
    raise ValueError(f"there is no conversion to {quantization.name}")


def encode(packet: ActivationPacket, **fields: int) -> bytes:
    """Return the packet's wire form; `fields` are those of the header that the stream writes."""
    rows = len(packet.rows)
    scales = b"" if packet.scales is None else packet.scales.tobytes()
    payload = packet.payload.tobytes()
    header = np.zeros(1, HEADER_DTYPE)
    header[0] = packet.header
    header["magic"], header["version"], header["header_bytes"] = MAGIC, VERSION, HEADER_BYTES
    header["rows"], header["width"] = packet.payload.shape
    header["payload_bytes"], header["scale_bytes"] = len(payload), len(scales)
    for name, value in fields.items():
        header[name] = value
    head = header.tobytes() + packet.rows.tobytes() + scales
    return head + bytes(payload_at(rows, len(scales)) - len(head)) + payload
