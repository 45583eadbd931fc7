"""Reads an archive while it is being written: each chunk once, as soon as it is complete."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from asysi.archive.dataset import find_segments
from asysi.archive.errors import MScanError, TornError
from asysi.archive.format import FOOTER_MAGIC, HEADER_BYTES, ChunkKind, chunk_size, parse_chunk, parse_header
from asysi.archive.segment import Segment, map_file, payload, read_points, segment_order

_FOOTER = FOOTER_MAGIC.to_bytes(8, "little")
_POLL_SECONDS = 0.2


@dataclass
class _SegmentPosition:
    """Read position in a segment."""

    inode: int = 0
    at: int = 0
    """Offset of the next chunk."""
    given: int = 0
    """METRICS and TENSOR chunks yielded so far."""
    skip: int = 0
    """Number of these to skip after the file was replaced."""
    closed: bool = False
    segment: Segment | None = field(default=None, repr=False)
    """Segment being read. It keeps the file mapped, so a deleted file still occupies disk blocks."""

    def close(self) -> None:
        """Stop reading the file: it has its footer, or was deleted to stay within the budget."""
        self.closed, self.segment = True, None


class MScanFollower:
    """Yields every chunk of a folder's segments once, in order, including torn and growing segments.

    If `recover` replaces a segment meanwhile, reading continues after the chunks already yielded.

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
        try:
            found = file.stat()
            if found.st_ino != place.inode:
                self._places[file] = place = _SegmentPosition(inode=found.st_ino, skip=place.given)
            elif place.closed or found.st_size <= place.at:
                return
            segment = place.segment = self._segment(map_file(file), file, place)
        except FileNotFoundError:
            place.close()
            return
        except TornError:
            return
        yield from self._chunks(segment, place)

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
                yield one, 0
