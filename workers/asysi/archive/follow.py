"""Reads an archive while it is being written: each chunk once, as soon as it is complete."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asysi.archive.dataset import find_segments
from asysi.archive.errors import MScanError, TornError
from asysi.archive.format import FOOTER_MAGIC, HEADER_BYTES, ChunkKind, chunk_size, parse_chunk, parse_header
from asysi.archive.retired import read_retired
from asysi.archive.segment import (
    Segment,
    map_open_file,
    parse_segment_name,
    payload,
    read_points,
    segment_order,
)
from asysi.contract.runtime import ARCHIVE_FOLDER

_FOOTER = FOOTER_MAGIC.to_bytes(8, "little")
_POLL_SECONDS = 0.2


class MissedSegments(NamedTuple):
    """Segments of an attempt that were deleted to stay within the disk budget before they were read."""

    attempt: int
    segments: int
    rows: int
    """Rows in them, over all hook points."""


@dataclass
class _SegmentPosition:
    """Read position in a segment."""

    fd: int | None = None
    """The open file, so that a segment that is deleted meanwhile is still read to its end."""
    inode: int = 0
    at: int = 0
    """Offset of the next chunk."""
    given: int = 0
    """METRICS and TENSOR chunks yielded so far."""
    skip: int = 0
    """Number of these to skip after the file was replaced."""
    rows: int = 0
    """Rows in the METRICS chunks yielded so far."""
    closed: bool = False
    segment: Segment | None = field(default=None, repr=False)
    """Segment being read. It keeps the file mapped, so a deleted file still occupies disk blocks."""

    def close(self) -> None:
        """Stop reading the file: it has its footer, or was deleted without one."""
        if self.fd is not None:
            os.close(self.fd)
        self.closed, self.segment, self.fd = True, None, None

    def __del__(self) -> None:
        self.close()


class MScanFollower:
    """Yields every chunk of a folder's segments once, in order, including torn and growing segments.

    If `recover` replaces a segment meanwhile, reading continues after the chunks already yielded. A segment
    that the disk budget deletes while it is read is read to its end; `missed` reports those that were deleted
    before.

    Args:
        path: a segment, a folder of segments, or an output folder.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._places: dict[Path, _SegmentPosition] = {}

    @property
    def closed(self) -> bool:
        """Whether every segment seen so far has its footer."""
        return bool(self._places) and all(place.closed for place in self._places.values())

    def missed(self) -> list[MissedSegments]:
        """Return what the disk budget had deleted before this follower could read it, by attempt.

        Raises:
            MScanError: the record of deleted segments cannot be read.
        """
        found = [one for folder in (self._path, self._path / ARCHIVE_FOLDER) for one in read_retired(folder)]
        return [missing for one in found if (missing := self._missed_of(one)).segments]

    def _missed_of(self, retired: Mapping[str, Any]) -> MissedSegments:
        """Subtract the deleted segments that were read from all that were deleted of an attempt."""
        attempt, last = parse_segment_name(retired["name"]) or (-1, -1)
        segments, rows = int(retired["segments"]), Counter(retired["rows"]).total()
        for file, place in self._places.items():
            here, number = parse_segment_name(file.name) or (-1, -1)
            # The record is written before the file is deleted; a torn one before it stays.
            gone = number == last or (number < last and not file.exists())
            if here == attempt and gone and place.given:
                segments, rows = segments - 1, rows - place.rows
        return MissedSegments(attempt, max(0, segments), max(0, rows))

    def poll(self) -> Iterator[tuple[Segment, int]]:
        """Yield segment and number of the chunks completed since the last call.

        Raises:
            VersionError, CorruptError: a segment has an unsupported version or is damaged.
        """
        try:
            files = find_segments(self._path)
        except FileNotFoundError:
            files = []
        unfinished = [file for file, place in self._places.items() if not place.closed]  # perhaps deleted
        for file in sorted({*files, *unfinished}, key=segment_order):
            yield from self._read(file, self._places.setdefault(file, _SegmentPosition()))

    def follow(
        self, until: Callable[[], bool] = lambda: False, *, seconds: float = _POLL_SECONDS
    ) -> Iterator[tuple[Segment, int]]:
        """Yield chunks as they appear, polling every `seconds`, until `until` is true and nothing is left."""
        while True:
            last = until()
            yield from self.poll()
            if last:
                return
            time.sleep(seconds)

    def _read(self, file: Path, place: _SegmentPosition) -> Iterator[tuple[Segment, int]]:
        deleted = False
        try:
            inode = file.stat().st_ino
            if inode != place.inode:
                place.close()
                fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                place = _SegmentPosition(fd, inode, skip=place.given, rows=place.rows)
                self._places[file] = place
        except FileNotFoundError:
            deleted = True
        try:
            if place.fd is not None and os.fstat(place.fd).st_size > place.at:
                segment = place.segment = self._segment(map_open_file(place.fd, file), file, place)
                yield from self._chunks(segment, place)
        except TornError:
            pass
        if deleted:
            place.close()

    def _segment(self, data: memoryview, file: Path, place: _SegmentPosition) -> Segment:
        if place.segment is not None:
            place.segment.data = data
            return place.segment
        header, metadata = parse_header(data)
        place.at = HEADER_BYTES + int(header["metadata_bytes"])
        none = np.zeros(0, np.dtype(np.void))
        attempt, number = int(header["attempt"]), int(header["segment"])
        return Segment(file, data, metadata, attempt, number, int(header["key"]), {}, none, None)

    def _chunks(self, segment: Segment, place: _SegmentPosition) -> Iterator[tuple[Segment, int]]:
        data = segment.data
        while place.at < len(data):
            if data[place.at : place.at + 8] == _FOOTER:
                place.close()
                return
            try:
                head = parse_chunk(data, place.at, segment.key)
                if head["kind"][0] != ChunkKind.POINTS:
                    payload(data, head[0])
            except TornError:
                return
            except MScanError as error:
                raise type(error)(error.problem, segment.path, error.offset) from None
            place.at += chunk_size(head[0])
            one = Segment(
                segment.path, data, segment.metadata, segment.attempt, segment.number, segment.key,
                segment.points, head, None,
            )  # fmt: skip
            if head["kind"][0] == ChunkKind.POINTS:
                segment.points.update({point.index: point for point in read_points(one, 0)})
                continue
            place.given += 1
            if place.given > place.skip:
                place.rows += int(head["rows"][0]) * (head["kind"][0] == ChunkKind.METRICS)
                yield one, 0
