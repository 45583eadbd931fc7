"""Element types: their names in files, their numpy types, and the error of rounding to them."""

from functools import cache

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

STORED: dict[str, np.dtype[np.generic]] = {
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F6_E2M3": np.dtype(ml_dtypes.float6_e2m3fn),
    "F6_E3M2": np.dtype(ml_dtypes.float6_e3m2fn),
    "F4": np.dtype(ml_dtypes.float4_e2m1fn),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""The numpy type of each safetensors type; every value is represented exactly."""
PACKED_BITS: dict[str, int] = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Bits per element of the types that are packed in files; in numpy each element takes one byte."""


def stored_bytes(stored: str, elements: int) -> int | None:
    """Return the bytes that elements take in a file, None if they do not fill the last byte."""
    bits = elements * PACKED_BITS.get(stored, 8 * STORED[stored].itemsize)
    return bits // 8 if bits % 8 == 0 else None


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return packed elements as one per byte; the first is in the least significant bits.

    This is the order of torch's float4_e2m1fn_x2. No library writes 6-bit elements from torch or numpy yet;
    the same order is assumed for them.

    Args:
        packed: [n] bytes; n is a multiple of 3 if `bits` is 6.
        bits: 4 or 6.
    """
    if bits == 4:
        return np.stack([packed & 0xF, packed >> 4], axis=1).reshape(-1)
    one, two, three = packed.reshape(-1, 3).astype(np.uint32).T
    word = one | two << 8 | three << 16
    return np.stack([word >> shift & 0x3F for shift in (0, 6, 12, 18)], axis=1).astype(np.uint8).reshape(-1)


def is_float(dtype: np.dtype[np.generic]) -> bool:
    """Return whether it is a floating-point type of numpy or ml_dtypes."""
    return dtype.kind == "f" or dtype in _EXTENDED


def is_narrow(dtype: np.dtype[np.generic]) -> bool:
    """Return whether it is a float with few enough bits to count all patterns: 8 or 16."""
    return is_float(dtype) and dtype.itemsize <= 2


@cache
def pattern_values(dtype: np.dtype[np.generic]) -> NDArray[np.float64]:
    """Return the value of every bit pattern, [2**bits] float64, including NaN and infinities."""
    unsigned = np.uint8 if dtype.itemsize == 1 else np.uint16
    patterns = np.arange(1 << (8 * dtype.itemsize), dtype=unsigned)
    with np.errstate(invalid="ignore"):
        return patterns.view(dtype).astype(np.float64)


def mantissa_bits(dtype: np.dtype[np.generic]) -> int:
    """Return the number of stored significand bits: 7 for bfloat16, 23 for float32."""
    return int(ml_dtypes.finfo(dtype).nmant)  # type: ignore[no-untyped-call]


def smallest_normal(dtype: np.dtype[np.generic]) -> float:
    """Return the smallest positive number that is not subnormal."""
    return float(ml_dtypes.finfo(dtype).smallest_normal)  # type: ignore[no-untyped-call]


def spacing(values: NDArray[np.float64], dtype: np.dtype[np.generic]) -> NDArray[np.float64]:
    """Return the distance from each value to its neighbour in `dtype`: 2**(exponent − mantissa bits)."""
    size = np.maximum(np.abs(values), smallest_normal(dtype))
    distance: NDArray[np.float64] = np.exp2(np.floor(np.log2(size)) - mantissa_bits(dtype))
    return distance


_EXTENDED = {dtype for dtype in STORED.values() if dtype.kind == "V"}
_EXTENDED |= {np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)}
