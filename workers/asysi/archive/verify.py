"""Verifies a segment completely."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asysi.archive.errors import CorruptError, MScanError
from asysi.archive.format import (
    HEADER_BYTES,
    ChunkKind,
    chunk_size,
    final_counts,
    parse_footer,
    parse_header,
)
from asysi.archive.segment import Segment, map_file, read_points, read_segment


def verify(path: Path, progress: Callable[[int], None] = lambda _bytes: None) -> list[MScanError]:
    """Return all problems of a segment: checksums, sizes, order, and counts of header, footer and chunks.

    Args:
        path: the segment.
        progress: called with the bytes of each checked chunk.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        data = map_file(path)
    except MScanError as error:
        return [error]
    return verify_data(data, path, progress)


def verify_data(
    data: memoryview, path: Path, progress: Callable[[int], None] = lambda _bytes: None
) -> list[MScanError]:
    """Return all problems of the segment in `data`; see `verify`."""
    try:
        segment = read_segment(data, path)
    except MScanError as error:
        return [error.without_frames()]
    problems = [*_layout(segment), *_counts(segment)]
    totals: Counter[tuple[int, int]] = Counter()
    defined: set[int] = set()
    for chunk in range(len(segment.entries)):
        try:
            _check_chunk(segment, chunk, totals, defined)
        except MScanError as error:
            problems.append(error.without_frames())
        progress(chunk_size(segment.entries[chunk]))
    if not problems and defined != set(segment.points):
        problems.append(CorruptError("the footer's hook points are not those of the chunks", path))
    return problems


def _layout(segment: Segment) -> list[MScanError]:
    """Check that the chunks are contiguous from the header to the footer."""
    header, _ = parse_header(segment.data)
    at = HEADER_BYTES + int(header["metadata_bytes"])
    for number, entry in enumerate(segment.entries):
        if int(entry["offset"]) != at or int(entry["number"]) != number:
            return [CorruptError("the index names another place or number", segment.path, at, number)]
        at += chunk_size(entry)
    if parse_footer(segment.data).offset != at:
        return [CorruptError("bytes between the last chunk and the footer", segment.path, at)]
    return []


def _counts(segment: Segment) -> list[MScanError]:
    assert segment.counts is not None
    said = segment.counts[0]
    end = parse_footer(segment.data).offset
    found = final_counts(segment.entries, len(segment.points), end, int(said["closed_ns"]))[0]
    names = ("points", "chunks", "metrics_records", "packets", "tensor_rows", "bytes")
    return [
        CorruptError(f"the footer counts {said[name]} {name}, the index {found[name]}", segment.path, end)
        for name in names
        if said[name] != found[name]
    ]


def _check_chunk(segment: Segment, chunk: int, totals: Counter[tuple[int, int]], defined: set[int]) -> None:
    entry = segment.entries[chunk]
    kind, point = int(entry["kind"]), int(entry["point"])
    if kind == ChunkKind.POINTS:
        defined.update(p.index for p in read_points(segment, chunk))
        return
    if point not in defined:
        raise _wrong(segment, chunk, f"hook point {point} is not defined before it is used")
    rows = _check_metrics(segment, chunk) if kind == ChunkKind.METRICS else _check_packets(segment, chunk)
    totals[kind, point] += rows
    if (rows, totals[kind, point]) != (int(entry["rows"]), int(entry["rows_total"])):
        raise _wrong(
            segment, chunk, f"{rows} rows make {totals[kind, point]}, the header says {entry['rows_total']}"
        )


def _check_metrics(segment: Segment, chunk: int) -> int:
    records = segment.records(chunk)
    if np.any(records["hook_point"] != segment.entries[chunk]["point"]):
        raise _wrong(segment, chunk, "records of another hook point")
    _check_range(segment, chunk, "step", records["step"])
    _check_range(segment, chunk, "sample", records["sample"])
    return len(records)


def _check_packets(segment: Segment, chunk: int) -> int:
    rows = 0
    for packet in segment.packets(chunk):
        rows += len(packet.rows)
        _check_range(segment, chunk, "step", packet.header["step"])
        _check_range(segment, chunk, "sequence", packet.header["sequence"])
        _check_range(segment, chunk, "sample", packet.rows["sample"])
    return rows


def _check_range(segment: Segment, chunk: int, name: str, values: NDArray[np.generic] | np.generic) -> None:
    entry = segment.entries[chunk]
    if np.any(values < entry[f"{name}_first"]) or np.any(values > entry[f"{name}_last"]):
        raise _wrong(segment, chunk, f"a {name} outside {entry[f'{name}_first']} to {entry[f'{name}_last']}")


def _wrong(segment: Segment, chunk: int, problem: str) -> CorruptError:
    return CorruptError(problem, segment.path, int(segment.entries["offset"][chunk]), chunk)
