"""Rebuilds the footer of a torn or damaged segment."""

import os
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asysi.archive.errors import MScanError, TornError
from asysi.archive.format import (
    CHUNK_BYTES,
    CHUNK_DTYPE,
    CHUNK_MAGIC,
    FILE_MAGIC,
    HEADER_BYTES,
    HEADER_DTYPE,
    MINOR,
    VERSION,
    ChunkKind,
    checksum,
    chunk_size,
    final_counts,
    pack_footer,
    pack_json,
    parse_header,
    points_json,
    record,
    seal,
)
from asysi.archive.segment import Segment, map_file, read_segment, rescan
from asysi.archive.verify import verify_data
from asysi.archive.writer import rewrite_counts, write_all
from asysi.files import sync

_NAME = re.compile(r"attempt-(\d{1,9})-segment-(\d{1,9})")


@dataclass(frozen=True)
class Recovery:
    """Result of `recover`."""

    path: Path
    changed: bool
    """False if the segment was intact."""
    chunks: int
    """Number of chunks kept."""
    damage: list[MScanError]
    """What was lost."""
    original: Path | None
    """Where the damaged original is kept; None if only an unfinished tail was lost."""


def recover(path: Path, progress: Callable[[int], None] = lambda _bytes: None) -> Recovery:
    """Rebuild the index of a segment from its chunks, and replace the file with the repaired one.

    Every chunk with valid checksums is kept, and nothing else. The repaired file is written next to the
    original, synced, then renamed. If more than an unfinished tail was lost, the original is kept as
    `….damaged`.

    Args:
        path: the segment.
        progress: called with the bytes of each chunk checked or copied; in total twice the file size.

    Raises:
        VersionError, TornError, CorruptError: there is nothing to recover.
        OSError: the storage failed; the original is untouched.
    """
    data = map_file(path)
    problems = verify_data(data, path, progress)
    if not problems:
        return Recovery(path, False, len(read_segment(data, path).entries), [], None)
    segment = rescan(data, path)
    fresh = path.with_name(f".{path.name}.recover")
    try:
        _write(segment, fresh, progress)
        lost = any(not isinstance(error, TornError) for error in segment.damage)
        original = _keep(path) if lost else None
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)
    return Recovery(path, True, len(segment.entries), segment.damage, original)


def _keep(path: Path) -> Path:
    kept = path.with_name(f"{path.name}.damaged")
    number = 1
    while kept.exists():
        kept = path.with_name(f"{path.name}.damaged-{number}")
        number += 1
    try:
        os.link(path, kept)
    except OSError:  # no hard links: the name is missing for a moment
        path.rename(kept)
    return kept


def _write(segment: Segment, fresh: Path, progress: Callable[[int], None]) -> None:
    start, digest = _start(segment)
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, start)
        entries, size = _copy(segment, fd, len(start), progress)
        points = sorted(segment.points.values(), key=lambda point: point.index)
        lost = sum(not isinstance(error, TornError) for error in segment.damage)
        counts = final_counts(
            entries,
            len(points),
            size,
            time.time_ns(),
            recovered=True,
            lost_chunks=lost,
            lost_rows=segment.lost_rows,
        )
        write_all(
            fd,
            pack_footer(
                key=segment.key,
                metadata_checksum=digest,
                counts=counts,
                entries=entries,
                points=points,
                offset=size,
            ),
        )
        os.fsync(fd)
        rewrite_counts(fd, counts)
        os.fsync(fd)
    finally:
        os.close(fd)


def _start(segment: Segment) -> tuple[bytes, int]:
    """Return the bytes before the first chunk, and the checksum of their metadata."""
    try:
        header, _ = parse_header(segment.data)
        text = bytes(segment.data[HEADER_BYTES : HEADER_BYTES + int(header["metadata_bytes"])])
        head = header.tobytes()
    except MScanError:
        text = pack_json({"recovered": "the file header was damaged, its metadata is lost"})
        name = _NAME.search(segment.path.name)
        head = record(
            HEADER_DTYPE,
            magic=FILE_MAGIC,
            version=VERSION,
            minor=MINOR,
            header_bytes=HEADER_BYTES,
            key=segment.key,
            attempt=int(name[1]) if name else 0,
            segment=int(name[2]) if name else 0,
            metadata_bytes=len(text),
            metadata_checksum=checksum(text),
        ).tobytes()
    return head + bytes(HEADER_BYTES - len(head)) + text, checksum(text)


def _copy(
    segment: Segment, fd: int, at: int, progress: Callable[[int], None]
) -> tuple[NDArray[np.void], int]:
    """Write one table of hook points, then every other chunk.

    Returns:
        The chunk headers, and the current file size.
    """
    data = segment.data
    table = pack_json(points_json(sorted(segment.points.values(), key=lambda point: point.index)))
    head = record(
        CHUNK_DTYPE,
        magic=CHUNK_MAGIC,
        key=segment.key,
        offset=at,
        kind=ChunkKind.POINTS,
        header_bytes=CHUNK_BYTES,
        stored_bytes=len(table),
        raw_bytes=len(table),
        records=len(segment.points),
        payload_checksum=checksum(table),
    )
    heads = []
    if segment.points:
        write_all(fd, head.tobytes(), table)
        heads, at = [head], at + chunk_size(head[0])
    totals: Counter[tuple[int, int]] = Counter()
    for entry in segment.entries[segment.entries["kind"] != ChunkKind.POINTS]:
        place = (int(entry["kind"]), int(entry["point"]))
        totals[place] += int(entry["rows"])
        first = int(entry["offset"])
        head = np.array([entry], CHUNK_DTYPE)
        head["offset"], head["number"], head["rows_total"] = at, len(heads), totals[place]
        write_all(fd, seal(head).tobytes(), data[first + CHUNK_BYTES : first + chunk_size(entry)])
        heads.append(head)
        at += chunk_size(entry)
        progress(chunk_size(entry))
    return np.concatenate(heads) if heads else segment.entries, at
