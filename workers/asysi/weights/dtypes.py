"""Element types: their names in files, in numpy, and what rounding to them costs."""

from functools import cache

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

STORED: dict[str, np.dtype[np.generic]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
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
"""The types of safetensors, as numpy has them: every value is kept exactly."""


def is_float(dtype: np.dtype[np.generic]) -> bool:
    """Return whether it is a type of floating-point numbers, numpy's or ml_dtypes'."""
    return dtype.kind == "f" or dtype in _EXTENDED


def is_narrow(dtype: np.dtype[np.generic]) -> bool:
    """Return whether it is a float of so few bits that all its patterns can be counted: 8 or 16."""
    return is_float(dtype) and dtype.itemsize <= 2


@cache
def pattern_values(dtype: np.dtype[np.generic]) -> NDArray[np.float64]:
    """Return the value of every bit pattern, [2**bits] float64, NaN and infinities among them."""
    unsigned = np.uint8 if dtype.itemsize == 1 else np.uint16
    patterns = np.arange(1 << (8 * dtype.itemsize), dtype=unsigned)
    with np.errstate(invalid="ignore"):
        return patterns.view(dtype).astype(np.float64)


def mantissa_bits(dtype: np.dtype[np.generic]) -> int:
    """Return the stored bits of the significand: 7 of bfloat16, 23 of float32."""
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
