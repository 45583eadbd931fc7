"""Segments in an fsspec store (`s3://`, `gs://`, `https://`), read by ranges instead of as whole files.

The index is read once, from the end of the file; then each chunk is read with one request.
"""

from pathlib import Path
from typing import Any, cast

from asysi.archive.errors import TornError
from asysi.archive.segment import Segment, read_segment, segment_order
from asysi.contract.runtime import ARCHIVE_FOLDER
from asysi.locations import filesystem, reaching

_AHEAD_BYTES = (1 << 20) + (64 << 10)
"""Minimum bytes per request: a chunk of typical size with its header."""
_TAIL_BYTES = 1 << 20
"""Bytes at the end of the file read by the first request: enough for the index of a typical segment."""


class RemoteBytes:
    """A file in a store as sliceable bytes; caches the end of the file, with the index, and the last range.

    Args:
        files: an fsspec file system.
        path: path of the file in it.
    """

    def __init__(self, files: Any, path: str) -> None:
        self._files, self._path = files, path
        self._size = int(files.size(path))
        first = max(0, self._size - _TAIL_BYTES)
        self._tail = first, self._fetch(first, self._size)
        self._ahead = self._tail

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: slice) -> memoryview:
        """Return a range; if it is not cached, it is fetched with read-ahead."""
        start, stop, _ = key.indices(self._size)
        stop = max(start, stop)
        for first, held in (self._ahead, self._tail):
            if first <= start and stop <= first + len(held):
                return memoryview(held)[start - first : stop - first]
        held = self._fetch(start, min(self._size, max(stop, start + _AHEAD_BYTES)))
        self._ahead = start, held
        return memoryview(held)[: stop - start]

    def _fetch(self, start: int, end: int) -> bytes:
        if start == end:
            return b""
        found: bytes = self._files.cat_file(self._path, start=start, end=end)
        if len(found) != end - start:
            raise TornError(f"the store gave {len(found)} of {end - start} bytes", self._path, start)
        return found


def open_remote(address: str) -> list[Segment]:
    """Return the segments at an address: a segment, a folder of segments, or an output folder.

    Raises:
        ConfigError: the store cannot be reached, or its package is not installed.
        FileNotFoundError: there is no segment.
        VersionError, TornError, CorruptError: a segment cannot be read.
    """
    files, path = filesystem(address)
    with reaching(address):
        names = _names(files, path.rstrip("/"))
        found = [(name, RemoteBytes(files, name)) for name in names]
    if not found:
        raise FileNotFoundError(f"{address} holds no .mscan segment")
    # RemoteBytes replaces the mapping of a local file: only len() and slicing are used.
    return [read_segment(cast("memoryview", data), Path(name)) for name, data in found]


def _names(files: Any, path: str) -> list[str]:
    if path.endswith(".mscan"):
        return [path] if files.exists(path) else []
    for folder in (path, f"{path}/{ARCHIVE_FOLDER}"):
        if names := [str(name) for name in files.glob(f"{folder}/*.mscan")]:
            return sorted(names, key=lambda name: segment_order(Path(name)))
    return []
