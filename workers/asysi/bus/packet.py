"""The wire format of a packet: a fixed little-endian header, one record per row, scales, payload.

    header (192 bytes) | rows × ROW_DTYPE | rows × float32 scale (int8 only) | zeros | rows × width elements

The elements are aligned to 64 bytes, so that no vector load or store is split across two cache lines. The
C++ counterpart of the header is `native/include/asysi/packet.hpp`; a test checks that both layouts match.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = 0x4B505341  # "ASPK" in memory
VERSION = 2
HEADER_BYTES = 192
PAYLOAD_ALIGNMENT = 64


class Kind(IntEnum):
    """Content type of a packet."""

    ACTIVATION = 0
    GRADIENT = 1
    PARAMETER_GRADIENT = 2


def account_name(path: str, kind: Kind = Kind.ACTIVATION) -> str:
    """Return the account name of a hook point and kind; for activations, only the path."""
    return path if kind is Kind.ACTIVATION else f"{path}:{kind.name.lower()}"


class Dtype(IntEnum):
    """Type of the payload's elements."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2
    INT8 = 3
    FP8_E4M3 = 4

    @property
    def itemsize(self) -> int:
        """Size of an element in bytes."""
        return {0: 4, 1: 2, 2: 2, 3: 1, 4: 1}[self.value]


class Quantization(IntEnum):
    """Quantisation of the payload; the spec uses the names in lower case."""

    NONE = 0
    BF16 = 1
    FP8 = 2
    INT8 = 3


class PacketFlag(IntFlag):
    """Flags of a packet."""

    RECOMPUTED = 1
    """Recomputed by activation checkpointing."""
    LOSS_SCALED = 2
    REDUCED = 4
    """Reduced over ranks."""
    STEP_INCOMPLETE = 8
    """A later packet of the same step did not fit."""


class RowFlag(IntFlag):
    """Flags of a row."""

    HOLDOUT = 1
    """The row belongs to a held-out document and is never trained on."""
    IN_DOCUMENT = 2
    """Bits 8 to 31 of the flags hold the token's position in its document."""


_POSITION_BITS = 8
"""Number of flag bits below the position in the document."""
FLAG_MASK = (1 << _POSITION_BITS) - 1
MOST_POSITION = (1 << (32 - _POSITION_BITS)) - 1
"""Maximum position in a document, 16,777,215; larger positions are clamped to it."""


HEADER_DTYPE = np.dtype(
    [
        ("magic", "<u4"),
        ("version", "<u2"),
        ("header_bytes", "<u2"),
        ("sequence", "<u8"),  # of the ring's shard; the ring writes it
        ("source", "<u8"),  # bus: (capture sequence << 16) | part, the mark where a restarted hook resumes
        ("rows_before", "<u8"),  # rows published for this account before this packet; the ring writes it
        ("step", "<u8"),
        ("captured_ns", "<u8"),  # CLOCK_MONOTONIC
        ("sampling_rate", "<f8"),
        ("generation", "<u4"),  # of the producer; the ring writes it
        ("attempt", "<u4"),
        ("rank", "<u4"),
        ("account", "<u4"),  # hook point's index in the ring's table of names
        ("call_index", "<u4"),
        ("rows", "<u4"),
        ("width", "<u4"),  # elements in a row
        ("step_rows", "<u4"),  # data rows of the whole step at this hook point
        ("step_kept", "<u4"),  # of these, rows that were kept
        ("batch", "<u4"),  # shape of the tensor in the model: batch × length × width
        ("length", "<u4"),
        ("part", "<u2"),
        ("parts", "<u2"),
        ("kind", "<u2"),
        ("dtype", "<u2"),
        ("quantization", "<u2"),
        ("flags", "<u2"),
        ("payload_bytes", "<u8"),
        ("scale_bytes", "<u4"),
        ("reserved", "V68"),
    ]
)
assert HEADER_DTYPE.itemsize == HEADER_BYTES

ROW_DTYPE = np.dtype(
    [
        ("sample", "<u8"),  # input row: its `_i`, or its line number
        ("sequence", "<u4"),  # which sequence of the step's batch
        ("position", "<u4"),  # token's position in its sequence
        ("token", "<i4"),
        ("flags", "<u4"),  # RowFlag; with IN_DOCUMENT, the upper bits hold the position in the document
    ]
)
assert ROW_DTYPE.itemsize == 24


def place_in_document(rows: NDArray[np.void], positions: NDArray[np.int32], known: NDArray[np.bool_]) -> None:
    """Store known document positions in the flags of `rows`; all arrays have the same shape."""
    placed = np.minimum(positions, MOST_POSITION).astype(np.uint32) << np.uint32(_POSITION_BITS)
    rows["flags"] |= np.where(known, placed | np.uint32(RowFlag.IN_DOCUMENT), np.uint32(0))


def document_positions(rows: NDArray[np.void]) -> NDArray[np.uint32]:
    """Return the position of each row's token in its document, or in its sequence if that is unknown."""
    flags = rows["flags"]
    known = (flags & RowFlag.IN_DOCUMENT) != 0
    return np.where(known, flags >> _POSITION_BITS, rows["position"]).astype(np.uint32)


def payload_at(rows: int, scale_bytes: int) -> int:
    """Return the byte offset of the payload in a packet with `rows` rows."""
    end = HEADER_BYTES + rows * ROW_DTYPE.itemsize + scale_bytes
    return end + -end % PAYLOAD_ALIGNMENT


def rows_that_fit(chunk_bytes: int, row_bytes: int, scale_bytes: int = 0) -> int:
    """Return how many rows, of `row_bytes` payload and `scale_bytes` scale each, fit a chunk as a packet."""
    rows = max(0, (chunk_bytes - HEADER_BYTES) // (ROW_DTYPE.itemsize + scale_bytes + row_bytes))
    while rows and payload_at(rows, rows * scale_bytes) + rows * row_bytes > chunk_bytes:
        rows -= 1  # at most three times: the padding is smaller than three records
    return rows


@dataclass(frozen=True, slots=True)
class ActivationPacket:
    """A packet as a consumer sees it: views into the ring, valid until its batch is released."""

    header: np.void
    """Record of HEADER_DTYPE."""
    point: str
    """Exact path of the hook point."""
    rows: NDArray[np.void]
    """[rows] of ROW_DTYPE."""
    scales: NDArray[np.float32] | None
    """[rows]; int8 only."""
    payload: NDArray[np.generic]
    """[rows, width]: float32, float16, int8, or uint16 holding bfloat16 bits."""
    shard: int = 0
    """Shard that carried the packet; the header's sequence is per shard."""

    def to_float32(self) -> NDArray[np.float32]:
        """Return the rows as a new float32 array [rows, width], scales applied."""
        dtype = Dtype(int(self.header["dtype"]))
        if dtype is Dtype.BFLOAT16:
            return (self.payload.astype(np.uint32) << 16).view(np.float32)
        values = self.payload.astype(np.float32)
        return values * self.scales[:, None] if self.scales is not None else values


_ELEMENTS: dict[int, np.dtype[Any]] = {
    Dtype.FLOAT32.value: np.dtype("<f4"),
    Dtype.BFLOAT16.value: np.dtype("<u2"),
    Dtype.FLOAT16.value: np.dtype("<f2"),
    Dtype.INT8.value: np.dtype("i1"),
    Dtype.FP8_E4M3.value: np.dtype("u1"),
}
_SCALE = np.dtype("<f4")
# magic, version, account, rows, width, dtype, payload_bytes, scale_bytes: struct unpacks all of them faster
# than a structured scalar returns one.
_SIZES = struct.Struct("<IH62xI4xII22xH4xQI")


def parse_packet(buffer: memoryview, points: list[str], shard: int = 0) -> ActivationPacket:
    """Return the packet in `buffer` without copying.

    Args:
        buffer: the published bytes of a chunk.
        points: names of the hook points, by account.
        shard: shard that carried the packet.

    Raises:
        ValueError: the bytes are not a packet of this version, or its sizes are inconsistent.
    """
    if len(buffer) < HEADER_BYTES:
        raise ValueError(f"a packet has at least {HEADER_BYTES} bytes, this one {len(buffer)}")
    magic, version, account, rows, width, number, payload_bytes, scale_bytes = _SIZES.unpack_from(buffer)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"no packet of version {VERSION}: magic {magic:#x}, version {version}")
    if number not in _ELEMENTS:
        raise ValueError(f"packet has the unknown dtype {number}")
    element = _ELEMENTS[number]
    start = payload_at(rows, scale_bytes)
    if payload_bytes != rows * width * element.itemsize or scale_bytes not in {0, rows * 4}:
        announced = f"{payload_bytes} + {scale_bytes} bytes"
        raise ValueError(f"packet of {rows} × {width} {Dtype(number).name} announces {announced}")
    if start + payload_bytes > len(buffer):
        end = start + payload_bytes
        raise ValueError(f"packet announces {end} bytes, the chunk holds {len(buffer)}")
    if account >= len(points):
        raise ValueError(f"packet names hook point {account}, the ring knows {len(points)}")
    records_end = HEADER_BYTES + rows * ROW_DTYPE.itemsize
    return ActivationPacket(
        np.frombuffer(buffer, HEADER_DTYPE, 1)[0],
        points[account],
        np.frombuffer(buffer, ROW_DTYPE, rows, HEADER_BYTES),
        np.frombuffer(buffer, _SCALE, rows, records_end) if scale_bytes else None,
        np.frombuffer(buffer, element, rows * width, start).reshape(rows, width),
        shard,
    )
