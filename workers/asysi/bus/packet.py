"""The wire format of a packet: a fixed little-endian header, one record per row, scales, payload.

    header (192 bytes) | rows × ROW_DTYPE | scales | zeros | rows × width elements

Scales are what the elements need to be read back, so that every packet says it by itself: nothing for floats;
rows × float32 for fp8 and for int8 with a scale per row; for int8 by channel width × float32 mean, then
width × float32 scale. Gradients that were joined to their activations have rows × 2 float32 scores there.

The elements are aligned to 64 bytes, so that no vector load or store is split across two cache lines. The
C++ counterpart of the header is `native/include/asysi/packet.hpp`; a test checks that both layouts match.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = 0x4B505341  # "ASPK" in memory
VERSION = 4
"""The newest. A packet states the least version that reads it: 4 with scores, 3 for fp8 and int8 by channel,
else 2."""
_READABLE = frozenset({2, 3, VERSION})
HEADER_BYTES = 192
PAYLOAD_ALIGNMENT = 64


class Kind(IntEnum):
    """Content type of a packet."""

    ACTIVATION = 0
    GRADIENT = 1
    PARAMETER_GRADIENT = 2


_KINDS = {
    "activations": Kind.ACTIVATION,
    "gradients": Kind.GRADIENT,
    "parameterGradients": Kind.PARAMETER_GRADIENT,
}
"""By name in `capture.kinds`."""


def kinds_named(names: Sequence[str]) -> tuple[Kind, ...]:
    """Return the kinds with names of the spec, each once, in the order of their numbers."""
    return tuple(sorted({_KINDS[name] for name in names}))


def account_name(path: str, kind: Kind = Kind.ACTIVATION) -> str:
    """Return the account name of a hook point and kind; for activations, only the path."""
    return path if kind is Kind.ACTIVATION else f"{path}:{kind.name.lower()}"


def split_account(name: str) -> tuple[str, Kind]:
    """Return the hook point and the kind of an account; the inverse of `account_name`."""
    for kind in (Kind.GRADIENT, Kind.PARAMETER_GRADIENT):
        if name.endswith(suffix := account_name("", kind)):
            return name.removesuffix(suffix), kind
    return name, Kind.ACTIVATION


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
    """How the payload was reduced on its way. Everything rounds to nearest, ties to even.

    Bounds are of |x - x̂| for finite x, apart from the last bits of float32 arithmetic.
    """

    NONE = 0
    BF16 = 1
    """bfloat16: at most |x|/256. NaN and infinities stay."""
    FP8 = 2
    """E4M3, a scale per row, max|x|/448: at most |x|/16, or scale/1024 near 0. Not finite: read as NaN."""
    INT8 = 3
    """A scale per row, max|x|/127: at most scale/2. NaN becomes 0, an infinity the largest value."""
    INT8_CHANNEL = 4
    """A frozen mean and scale per channel: at most scale/2 within mean ± 127.5 scales. What lies beyond is
    stored as the end of that range, its row flagged SATURATED. Not finite: read as NaN."""

    @property
    def dtype(self) -> Dtype | None:
        """Type of the elements that it makes; None where they stay as they are."""
        return _MADE.get(self)

    @property
    def by_channel(self) -> bool:
        """Whether packets carry a mean and a scale per channel instead of a scale per row."""
        return self is Quantization.INT8_CHANNEL


_MADE = {
    Quantization.BF16: Dtype.BFLOAT16,
    Quantization.FP8: Dtype.FP8_E4M3,
    Quantization.INT8: Dtype.INT8,
    Quantization.INT8_CHANNEL: Dtype.INT8,
}


class PacketFlag(IntFlag):
    """Flags of a packet."""

    RECOMPUTED = 1
    """Recomputed by activation checkpointing."""
    LOSS_SCALED = 2
    REDUCED = 4
    """Reduced over ranks."""
    STEP_INCOMPLETE = 8
    """A later packet of the same step did not fit."""


NO_SAMPLE = 2**64 - 1
"""`sample` of a row that belongs to no row of the input: the gradient of a parameter over a batch."""
NO_TOKEN = -1
"""`token` of a row that belongs to no token: the gradient of a parameter."""
NO_POSITION = 2**32 - 1
"""`position` of such a row."""
PARAMETER_STATISTICS = ("mean", "std", "l2", "min", "max", "sparsity", "nan_count", "inf_count")
"""Elements of a row of the kind PARAMETER_GRADIENT: statistics of the gradient, as in METRICS records."""


class Reduction(IntEnum):
    """How the loss of a backward pass was reduced over tokens."""

    UNKNOWN = 0
    MEAN = 1
    SUM = 2


class RowFlag(IntFlag):
    """Flags of a row."""

    HOLDOUT = 1
    """The row belongs to a held-out document and is never trained on."""
    IN_DOCUMENT = 2
    """Bits 8 to 31 of the flags hold the token's position in its document."""
    SATURATED = 4
    """A value lay outside the range of its channel and is stored as the end of it."""


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
        ("saturated", "<u4"),  # capture: values that the host's device stored as the end of their range
        ("loss_scale", "<f4"),  # that was divided out of a gradient; 0: the packet holds none
        ("accumulated", "<u4"),  # backward passes that add up to an optimiser step; 0 if unknown
        ("microbatch", "<u4"),  # which of these, from 0
        ("reduction", "<u2"),  # Reduction
        ("reserved", "V50"),
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


def rows_that_fit(chunk_bytes: int, row_bytes: int, scale_bytes: int = 0, table_bytes: int = 0) -> int:
    """Return how many rows fit a chunk as one packet, each of `row_bytes` payload and `scale_bytes` scale.

    `table_bytes` are those of means and scales of the channels, once in each packet.
    """
    rows = max(
        0, (chunk_bytes - HEADER_BYTES - table_bytes) // (ROW_DTYPE.itemsize + scale_bytes + row_bytes)
    )
    while rows and payload_at(rows, table_bytes + rows * scale_bytes) + rows * row_bytes > chunk_bytes:
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
    """[rows], of fp8 and of int8 with a scale per row; [rows, 2], the scores of gradients."""
    payload: NDArray[np.generic]
    """[rows, width]: float32, float16, int8, uint16 holding bfloat16 bits, or uint8 holding those of E4M3."""
    shard: int = 0
    """Part of the stream that carried it; the header's sequence counts in it."""
    table: NDArray[np.float32] | None = None
    """[2, width], mean and scale of each channel, of int8 by channel."""

    def select(self, rows: slice | NDArray[np.generic]) -> "ActivationPacket":
        """Return the packet with these of its rows alone; its header still describes the whole."""
        scales = None if self.scales is None else self.scales[rows]
        return replace(self, rows=self.rows[rows], scales=scales, payload=self.payload[rows])

    @property
    def scores(self) -> NDArray[np.float32] | None:
        """[rows, 2] of gradients that were joined to their activations: ⟨a, g⟩ and ΔSC = −⟨a − ā, g⟩.

        NaN for rows whose activation was missed. None for other packets.
        """
        return self.scales if self.scales is not None and self.scales.ndim == 2 else None

    def to_float32(self) -> NDArray[np.float32]:
        """Return the rows as a new float32 array [rows, width], read back from however they are stored."""
        scales = None if self.scores is not None else self.scales
        return read_back(self.payload, Dtype(int(self.header["dtype"])), scales, self.table)


def read_back(
    payload: NDArray[np.generic],
    dtype: Dtype,
    scales: NDArray[np.float32] | None = None,
    table: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return elements [rows, width], stored as `dtype`, as new float32: the one way back from every form."""
    if dtype is Dtype.BFLOAT16:
        return (payload.astype(np.uint32) << 16).view(np.float32)
    fp8 = dtype is Dtype.FP8_E4M3
    values: NDArray[np.float32] = E4M3[payload.view(np.uint8)] if fp8 else payload.astype(np.float32)
    if table is not None:
        values *= table[1]
        values += table[0]
        values[payload == NOT_FINITE] = np.nan
    elif scales is not None:
        values *= scales[:, None]
    return values


NOT_FINITE = -128
"""Element of int8 by channel that stands for what is not finite."""


def _e4m3() -> NDArray[np.float32]:
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, code & 7
    magnitude = np.where(exponent > 0, np.ldexp(8 + fraction, exponent - 10), np.ldexp(fraction, -9))
    magnitude[(code & 0x7F) == 0x7F] = np.nan
    return np.asarray(np.where(code < 128, magnitude, -magnitude), np.float32)


E4M3 = _e4m3()
"""[256] The number that each pattern of OCP FP8 E4M3 stands for: no infinities, 448 at most."""


ELEMENTS: dict[int, np.dtype[Any]] = {
    Dtype.FLOAT32.value: np.dtype("<f4"),
    Dtype.BFLOAT16.value: np.dtype("<u2"),
    Dtype.FLOAT16.value: np.dtype("<f2"),
    Dtype.INT8.value: np.dtype("i1"),
    Dtype.FP8_E4M3.value: np.dtype("u1"),
}
"""Elements of a payload, by dtype; bfloat16 and E4M3 are their bits."""
_SCALE = np.dtype("<f4")
# magic, version, account, rows, width, dtype, quantization, payload_bytes, scale_bytes: a structured scalar
# takes longer for each of them than struct does for all.
_SIZES = struct.Struct("<IH62xI4xII22xHH2xQI")


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
    magic, version, account, rows, width, number, quantization, payload_bytes, scale_bytes = (
        _SIZES.unpack_from(buffer)
    )
    if magic != MAGIC or version not in _READABLE:
        raise ValueError(f"no packet of version 2 to {VERSION}: magic {magic:#x}, version {version}")
    if number not in ELEMENTS:
        raise ValueError(f"packet has the unknown dtype {number}")
    element = ELEMENTS[number]
    start = payload_at(rows, scale_bytes)
    by_channel = quantization == Quantization.INT8_CHANNEL and number == Dtype.INT8
    scored = version == VERSION and element.itemsize > 1 and scale_bytes == rows * 8 > 0
    scales_fit = scale_bytes == width * 8 if by_channel else scored or scale_bytes in {0, rows * 4}
    if payload_bytes != rows * width * element.itemsize or not scales_fit:
        announced = f"{payload_bytes} + {scale_bytes} bytes"
        raise ValueError(f"packet of {rows} × {width} {Dtype(number).name} announces {announced}")
    if start + payload_bytes > len(buffer):
        end = start + payload_bytes
        raise ValueError(f"packet announces {end} bytes, the chunk holds {len(buffer)}")
    if account >= len(points):
        raise ValueError(f"packet names hook point {account}, the ring knows {len(points)}")
    scales = np.frombuffer(buffer, _SCALE, scale_bytes // 4, HEADER_BYTES + rows * ROW_DTYPE.itemsize)
    if scored:
        scales = scales.reshape(rows, 2)
    return ActivationPacket(
        np.frombuffer(buffer, HEADER_DTYPE, 1)[0],
        points[account],
        np.frombuffer(buffer, ROW_DTYPE, rows, HEADER_BYTES),
        scales if scale_bytes and not by_channel else None,
        np.frombuffer(buffer, element, rows * width, start).reshape(rows, width),
        shard,
        scales.reshape(2, width) if by_channel else None,
    )
