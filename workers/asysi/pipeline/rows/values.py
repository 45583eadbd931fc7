"""Lossless conversion of rows to JSON lines and back; values that JSON cannot represent are rejected.

JSON has no NaN and no bytes, and most parsers turn integers beyond 64 bits into floats. Here, integers of any
size are exact in both directions, and numpy scalars and arrays become numbers and lists.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson

_NULL = b"null"
_PLAIN_KINDS = frozenset("biuf")
"""numpy kinds that JSON supports: booleans, integers and floats."""
_DOUBLE = 8
"""Bytes of the largest float that JSON parsers support."""

loads = msgspec.json.Decoder().decode
"""Parses JSON; integers are exact. Of duplicate names in an object, the last one wins.

Raises ValueError for invalid JSON."""


class LossyValueError(ValueError):
    """A value that JSON cannot represent exactly."""


def dumps(value: Any) -> bytes:
    """Return a value as JSON that `loads` turns into an equal value.

    Raises:
        LossyValueError: a part of it is something that JSON cannot hold; it says where.
    """
    try:
        text = orjson.dumps(value, plain)
    except TypeError:
        return exact(value)
    if _NULL in text:
        refuse_non_finite(value)
    return text


def canonical(value: Any) -> bytes:
    """Return a value as JSON with sorted keys, so that equal values give equal texts.

    Raises:
        LossyValueError: a part of it is something that JSON cannot hold; it says where.
    """
    try:
        return orjson.dumps(value, plain, orjson.OPT_SORT_KEYS)
    except TypeError:
        return json.dumps(_tree(value, ""), sort_keys=True, ensure_ascii=False).encode()


def exact(value: Any) -> bytes:
    """Return a value as JSON where orjson fails, on integers beyond 64 bits.

    Raises:
        LossyValueError: a part of it is something that JSON cannot hold; it says where.
    """
    try:
        tree = _tree(value, "")
        return json.dumps(tree, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise LossyValueError(f"text with half of a surrogate pair is not UTF-8 ({error})") from error


def plain(value: Any) -> Any:
    """Convert a numpy scalar or array to plain values; for `orjson.dumps(default=)`.

    Raises:
        TypeError: any other type.
    """
    held: Any = getattr(value, "dtype", None)
    kind = getattr(held, "kind", "")
    if kind == "U" or (kind in _PLAIN_KINDS and held.itemsize <= _DOUBLE):
        return value.item() if getattr(value, "ndim", 0) == 0 else value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def refuse_non_finite(value: Any) -> None:
    """Reject NaN and infinity, which JSON writers turn into null.

    Raises:
        LossyValueError: a value is not finite; the message gives its path.
    """
    for path, number in _non_finite(value, ""):
        raise LossyValueError(
            f"{path or 'the value'} is {number}, which JSON does not have: return None or a finite number"
        )


def _non_finite(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        if not math.isfinite(value):
            yield path, float(value)
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _non_finite(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _non_finite(part, f"{path}[{place}]")
    elif hasattr(value, "dtype"):
        yield from _non_finite(plain(value), path)


def _tree(value: Any, path: str) -> Any:
    """Convert a value to types that Python's json supports."""
    if value is None or type(value) in {bool, int, str}:
        return value
    if isinstance(value, float):
        refuse_non_finite({path or "the value": value})
        return float(value)
    if isinstance(value, dict):
        return {_name(name, path): _tree(part, f"{path}.{name}" if path else str(name))
                for name, part in value.items()}  # fmt: skip
    if isinstance(value, list | tuple):
        return [_tree(part, f"{path}[{place}]") for place, part in enumerate(value)]
    if hasattr(value, "dtype"):
        try:
            return _tree(plain(value), path)
        except TypeError:
            raise _refusal(value, path) from None
    try:
        return orjson.loads(orjson.dumps(value))
    except TypeError as error:
        raise _refusal(value, path) from error


def _name(name: Any, path: str) -> str:
    if not isinstance(name, str):
        raise LossyValueError(f"{path or 'the row'} has the key {name!r}: keys are text in JSON")
    return name


def _refusal(value: Any, path: str) -> LossyValueError:
    kind = type(value).__name__
    return LossyValueError(
        f"{path or 'the value'} is a {kind}, which JSON does not have: return text, numbers, booleans, None,"
        " lists or dicts of these"
    )
