"""The header of a safetensors file: parsed as untrusted input, with a separate error per inconsistency.

Layout: the header length n as 8 little-endian bytes; n bytes of JSON that map name → {dtype, shape,
data_offsets}, and `__metadata__`, text to text; then the tensors' bytes. Offsets count from the header's end.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from asysi.weights.errors import (
    DuplicateNameError,
    GapError,
    HeaderError,
    HeaderSizeError,
    OverlapError,
    TruncatedShardError,
    WeightsError,
)
from asysi.weights.reading.dtypes import STORED, stored_bytes
from asysi.weights.reading.storage import Storage

_LENGTH = 8
MAX_HEADER = 100_000_000
"""Maximum size of a header in bytes: the limit of the safetensors library."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor's place in its file."""

    name: str
    stored: str
    """Name of the element type, a key of `STORED`."""
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    stop: int

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Numpy type of the elements."""
        return STORED[self.stored]


@dataclass(frozen=True, slots=True)
class Header:
    """The parsed header of a file, and its inconsistencies."""

    entries: Mapping[str, Entry]
    """The tensors that can be read, by name."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[WeightsError, ...] = ()


def read_header(storage: Storage) -> Header:
    """Return the header; tensors with inconsistent entries are in `problems` and not in `entries`.

    Raises:
        TruncatedShardError: the file is too short to hold the header length.
        HeaderSizeError: the header is larger than the file, or than the limit.
        HeaderError: it is not a JSON object.
    """
    if storage.size < _LENGTH:
        raise TruncatedShardError(
            f"{storage.name}: {storage.size} bytes are too few for a safetensors file; fetch it again"
        )
    length = int.from_bytes(storage.read(0, _LENGTH).tobytes(), "little")
    if length > MAX_HEADER or _LENGTH + length > storage.size:
        raise HeaderSizeError(
            f"{storage.name}: its header claims {length:,} bytes, the file has {storage.size:,} and a header "
            f"may have {MAX_HEADER:,}: this is not a safetensors file, or it was cut; fetch it again"
        )
    return parse_header(storage.read(_LENGTH, _LENGTH + length).tobytes(), storage.name, storage.size)


def parse_header(text: bytes, name: str, size: int) -> Header:
    """Parse the header JSON `text` of the file `name`, which has `size` bytes.

    Raises:
        HeaderError: it is not a JSON object.
    """
    twice: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(key for key, times in Counter(key for key, _ in items).items() if times > 1)
        return dict(items)

    try:
        content = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{name}: its header is not valid JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise HeaderError(f"{name}: its header is {type(content).__name__}, no object; fetch it again")
    metadata = content.pop("__metadata__", None) or {}
    problems: list[WeightsError] = []
    entries: dict[str, Entry] = {}
    begin = _LENGTH + len(text)
    for tensor, value in content.items():
        if tensor in twice:
            problems.append(
                DuplicateNameError(f"{name}: {tensor} is in the header twice, so it is ambiguous", (tensor,))
            )
            continue
        try:
            entries[tensor] = _entry(tensor, value, begin, name)
        except HeaderError as error:
            problems.append(error)
    if len(problems) == 0:
        problems += _gaps(entries, begin, size, name)
    for bad in (*_overlaps(entries, name), *_truncated(entries, size, name)):
        problems.append(bad)
        for lost in bad.tensors:
            entries.pop(lost, None)
    return Header(entries, metadata if _is_text(metadata) else {}, tuple(problems))


def _entry(tensor: str, value: Any, begin: int, name: str) -> Entry:
    def refuse(why: str) -> HeaderError:
        return HeaderError(f"{name}: {tensor} {why}; fetch it again", (tensor,))

    if not isinstance(value, dict):
        raise refuse("has no dtype, shape and data_offsets")
    stored, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(stored, str) or stored not in STORED:
        raise HeaderError(
            f"{name}: {tensor} has the type {stored!r}, which is none of {', '.join(STORED)}", (tensor,)
        )
    if not _are_counts(shape) or shape is None:
        raise refuse(f"has the shape {shape!r}")
    if not _are_counts(offsets) or offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"has the offsets {offsets!r}")
    needed = stored_bytes(stored, math.prod(shape))
    if needed is None:
        raise refuse(f"has the shape {shape} of {stored}, which ends within a byte")
    if offsets[1] - offsets[0] != needed:
        raise refuse(f"has {offsets[1] - offsets[0]:,} bytes, its shape {shape} of {stored} needs {needed:,}")
    return Entry(tensor, stored, tuple(shape), begin + offsets[0], begin + offsets[1])


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 2**63 for one in value)


def _is_text(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())


def _overlaps(entries: Mapping[str, Entry], name: str) -> list[WeightsError]:
    order = sorted((one for one in entries.values() if one.start < one.stop), key=lambda one: one.start)
    found: list[WeightsError] = []
    widest: Entry | None = None
    for entry in order:
        if widest is not None and entry.start < widest.stop:
            found.append(
                OverlapError(
                    f"{name}: {widest.name} and {entry.name} share the bytes from {entry.start:,}: neither "
                    "can be trusted; fetch it again",
                    (widest.name, entry.name),
                )
            )
        if widest is None or entry.stop > widest.stop:
            widest = entry
    return found


def _truncated(entries: Mapping[str, Entry], size: int, name: str) -> list[WeightsError]:
    lost = tuple(entry.name for entry in entries.values() if entry.stop > size)
    if not lost:
        return []
    end = max(entry.stop for entry in entries.values())
    return [
        TruncatedShardError(
            f"{name}: it has {size:,} of {end:,} bytes, the rest is missing; fetch it again",
            lost,
        )
    ]


def _gaps(entries: Mapping[str, Entry], begin: int, size: int, name: str) -> list[WeightsError]:
    at = begin
    for entry in sorted(entries.values(), key=lambda one: (one.start, one.stop)):
        if entry.start > at:
            return [GapError(f"{name}: bytes {at:,} to {entry.start:,} belong to no tensor; fetch it again")]
        at = max(at, entry.stop)
    if size > at:
        return [GapError(f"{name}: {size - at:,} bytes after the last tensor belong to none; fetch it again")]
    return []
