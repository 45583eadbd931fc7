"""Compression of chunks, and the byte shuffle before it.

The shuffle writes the first byte of every element, then the second byte of every element, and so on.
Exponents of neighbouring activations differ little, so they compress well once they are adjacent.
"""

from enum import IntEnum
from typing import Literal, NamedTuple, TypeAlias

import lz4.block
import numpy as np
import zstandard

Compression = Literal["none", "zstd", "lz4"]
Bytes: TypeAlias = bytes | bytearray | memoryview
_ZSTD_LEVEL = 1
"""Higher levels hardly compress activations further, and the archiver shares a core."""
_WINDOW = 64 << 20
_LZ4_RATIO = 255
"""Maximum compression ratio of LZ4."""
SHUFFLED = 0x100
MOST_ELEMENT = 4096
"""Maximum bytes of an element."""


class Codec(IntEnum):
    """How a payload is stored."""

    NONE = 0
    ZSTD = 1
    LZ4 = 2
    SHUFFLED_ZSTD = SHUFFLED | 1
    SHUFFLED_LZ4 = SHUFFLED | 2


class Packed(NamedTuple):
    """A payload as stored."""

    codec: Codec
    stored: Bytes
    element: int
    """Bytes of an element; 0 if the payload is not shuffled."""


def pack(compression: Compression, payload: memoryview, element: int) -> Packed:
    """Return the payload compressed, or unchanged if it does not shrink.

    Args:
        compression: `none`, `zstd` or `lz4`.
        payload: the bytes.
        element: bytes of an element to shuffle by; 0 or 1 disables shuffling.
    """
    if compression == "none":
        return Packed(Codec.NONE, payload, 0)
    shuffled = 1 < element <= MOST_ELEMENT
    source = shuffle(payload, element) if shuffled else payload
    if compression == "zstd":
        codec, stored = Codec.ZSTD, zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(source)
    else:
        codec, stored = Codec.LZ4, lz4.block.compress(source, store_size=False)
    if len(stored) >= len(payload):
        return Packed(Codec.NONE, payload, 0)
    return Packed(Codec(codec | SHUFFLED), stored, element) if shuffled else Packed(codec, stored, 0)


def unpack(packed: Packed, raw: int) -> Bytes:
    """Return the payload, never holding more than twice its announced size.

    Args:
        packed: the stored payload.
        raw: size of the payload in bytes, bounded by the caller.

    Raises:
        ValueError: it does not decompress to `raw` bytes.
    """
    codec, block, element = packed
    if (codec & SHUFFLED != 0) != (element > 1) or element > MOST_ELEMENT:
        raise ValueError(f"codec {codec:d} with elements of {element} bytes")
    if codec is Codec.NONE:
        if len(block) != raw:
            raise ValueError(f"{len(block)} bytes are stored, {raw} announced")
        return block
    plain = _zstd(block, raw) if codec & ~SHUFFLED == Codec.ZSTD else _lz4(block, raw)
    return unshuffle(plain, element) if element else plain


def shuffle(data: Bytes, element: int) -> bytes:
    """Return the bytes of whole elements, all first bytes first; trailing bytes follow unchanged."""
    whole = len(data) - len(data) % element
    table = np.frombuffer(data, np.uint8, whole).reshape(-1, element)
    return table.T.tobytes() + bytes(memoryview(data)[whole:])


def unshuffle(data: Bytes, element: int) -> memoryview:
    """Undo `shuffle`."""
    whole = len(data) - len(data) % element
    out = np.empty(len(data), np.uint8)
    out[:whole].reshape(-1, element).T[:] = np.frombuffer(data, np.uint8, whole).reshape(element, -1)
    out[whole:] = np.frombuffer(data, np.uint8, len(data) - whole, whole)
    return out.data


def _zstd(block: Bytes, raw: int) -> bytes:
    try:
        announced = zstandard.frame_content_size(block)
        if announced != raw:
            raise ValueError(f"a frame of {announced} bytes, {raw} announced")
        plain = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompress(
            block, max_output_size=raw, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    if len(plain) != raw:
        raise ValueError(f"{len(plain)} bytes, {raw} announced")
    return plain


def _lz4(block: Bytes, raw: int) -> bytes:
    if raw > _LZ4_RATIO * (len(block) + 1):
        raise ValueError(f"{len(block)} bytes of LZ4 cannot hold {raw}")
    try:
        plain: bytes = lz4.block.decompress(block, uncompressed_size=raw)
    except (lz4.block.LZ4BlockError, OverflowError) as error:
        raise ValueError(str(error)) from None
    if len(plain) != raw:
        raise ValueError(f"{len(plain)} bytes, {raw} announced")
    return plain
