"""Range reads of a checkpoint's file: with pread, memory-mapped, or from any fsspec address."""

import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from asysi.locations import filesystem, reaching

Backend = Literal["pread", "mmap"]
Bytes = NDArray[np.uint8]


class Storage(Protocol):
    """A file from which any range can be read. Safe to use from several threads."""

    name: str
    size: int

    def read(self, start: int, stop: int, into: Bytes | None = None) -> Bytes:
        """Return the bytes from `start` up to, but not including, `stop`, possibly in the memory of `into`.

        Raises:
            OSError: the file is too short.
        """

    def close(self) -> None:
        """Close the file."""


class _Local:
    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()


class PreadFile(_Local):
    """Reads into its own memory: only the requested bytes are held."""

    def read(self, start: int, stop: int, into: Bytes | None = None) -> Bytes:
        """Return a copy of the range, in `into` if given: allocating memory costs more than the copy."""
        out = np.empty(stop - start, np.uint8) if into is None else into[: stop - start]
        view, done = memoryview(out.data), 0
        while done < len(out):
            count = os.preadv(self._descriptor, [view[done:]], start + done)
            if count == 0:
                raise OSError(f"{self.name} ended at byte {start + done} while it was read")
            done += count
        return out


class MmapFile(_Local):
    """Maps the file: nothing is copied, and the page cache is shared. Fatal if the file shrinks."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._map = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) if self.size else None

    def read(self, start: int, stop: int, into: Bytes | None = None) -> Bytes:
        """Return a view of the range, which keeps the mapping alive."""
        if stop > self.size:
            raise OSError(f"{self.name} has {self.size} bytes, byte {stop} was asked for")
        if self._map is None or start == stop:
            return np.empty(0, np.uint8)
        return np.frombuffer(self._map, np.uint8, stop - start, start)


class RemoteFile:
    """A file at an fsspec address; each read is one range request, retried on failure."""

    def __init__(self, url: str, *, attempts: int = 4) -> None:
        self._filesystem, self._path = remote(url)
        self.name = url
        with reaching(url):
            self.size = int(self._filesystem.size(self._path))
        self._attempts = attempts

    def read(self, start: int, stop: int, into: Bytes | None = None) -> Bytes:
        """Return the range."""
        if start == stop:
            return np.empty(0, np.uint8)
        for attempt in range(self._attempts):
            try:
                found = self._filesystem.cat_file(self._path, start=start, end=stop)
            except (OSError, TimeoutError):
                if attempt + 1 == self._attempts:
                    raise
                continue
            if len(found) == stop - start:
                return np.frombuffer(found, np.uint8)
        raise OSError(f"{self.name}: {stop - start} bytes at {start} were asked for, fewer came")

    def close(self) -> None:
        """Do nothing: no resource is held between reads."""


def remote(url: str) -> tuple[Any, str]:
    """Return the fsspec file system for an address, and the path in it.

    Raises:
        ConfigError: the package for its protocol is not installed.
    """
    return filesystem(url)


def is_remote(source: str) -> bool:
    """Return whether `source` is an address rather than a path."""
    return "://" in source and not source.startswith("file://")


def open_storage(source: str, backend: Backend) -> Storage:
    """Open a local file with `backend`, or an fsspec address.

    Raises:
        OSError: it cannot be opened.
    """
    if is_remote(source):
        return RemoteFile(source)
    return (MmapFile if backend == "mmap" else PreadFile)(Path(source))


_LFS = b"version https://git-lfs.github.com/spec/"


def lfs_pointer_size(source: str) -> str | None:
    """Return the file size that a Git LFS pointer states, None if the file is not a pointer."""
    storage = open_storage(source, "pread")
    try:
        head = storage.read(0, min(storage.size, 512)).tobytes() if storage.size < 1024 else b""
    finally:
        storage.close()
    if not head.startswith(_LFS):
        return None
    sizes = [
        line.split()[-1] for line in head.decode("utf-8", "replace").splitlines() if line.startswith("size ")
    ]
    return sizes[0] if sizes else "an unknown number of"
