"""Encodes data embedded in the page: typed arrays as base64, and JSON safe inside a script element."""

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = {"uint8": "u1", "uint16": "u2", "uint32": "u4", "float32": "f4"}


def pack(array: NDArray[Any]) -> dict[str, str]:
    """Return `array`, flattened and little-endian, as {type, base64}; unsigned integers are narrowed.

    Raises:
        ValueError: the page does not support the array's dtype.
    """
    if array.dtype.kind == "u":
        array = array.astype(np.min_scalar_type(int(array.max()) if array.size else 0))
    name = _TYPES.get(array.dtype.name)
    if name is None:
        raise ValueError(f"a page holds no arrays of {array.dtype.name}")
    raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"t": name, "b": base64.b64encode(raw).decode("ascii")}


def embed(value: object) -> str:
    """Return `value` as JSON that is safe inside a script element: without <, >, & and line separators."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
