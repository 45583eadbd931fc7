"""Rows as they are written: JSON lines that only ever grow, in a file or in memory, and how far they may be
read.
"""

import fcntl
import os
import threading
from pathlib import Path
from typing import Any, Protocol

import xxhash

from asysi.contract.errors import ConfigError
from asysi.files import sync
from asysi.pipeline.streams.seal import sync_file


class Log(Protocol):
    """Where a node's rows go.

    Attributes:
        size: bytes in it.
        digest: running XXH3-128 of them, None where they are not kept for long enough to matter.
        volatile: whether it is lost with the process.
    """

    size: int
    digest: Any
    volatile: bool

    def open(self, size: int) -> None:
        """Open it with its first `size` bytes; what stands behind them is a torn tail and is cut off."""

    def append(self, data: bytes) -> None:
        """Add whole lines."""

    def sync(self) -> None:
        """Put what was added on the disk."""

    def close(self) -> None:
        """Let go of it."""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`."""

    def reader(self) -> "LogReader":
        """Return what reads it for another thread."""


class LogReader(Protocol):
    """Reads a log."""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`."""

    def close(self) -> None:
        """Let go of it."""


class FileLog:
    """Rows in a local file.

    Args:
        path: the file; its folder is made.
    """

    volatile = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.digest: Any = None
        self._out: int | None = None

    def open(self, size: int) -> None:
        """Open the file for writing with its first `size` bytes.

        Raises:
            ConfigError: somebody else writes to it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._out = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ConfigError(
                f"{self.path} is being written by another run: give this one another output"
            ) from None
        os.ftruncate(self._out, size)
        os.lseek(self._out, size, os.SEEK_SET)
        self.size = size
        if size == 0:
            self.digest = xxhash.xxh3_128()
            sync(self.path.parent)  # its rows are worth nothing without its name

    def append(self, data: bytes) -> None:
        """Add whole lines."""
        assert self._out is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._out, view) :]
        self.digest.update(data)
        self.size += len(data)

    def sync(self) -> None:
        """Put what was added on the disk."""
        assert self._out is not None
        sync_file(self._out)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`."""
        reader = self.reader()
        try:
            return reader.read(offset, length)
        finally:
            reader.close()

    def reader(self) -> "FileReader":
        """Return what reads it for another thread, also when it is closed here."""
        return FileReader(self.path)

    def close(self) -> None:
        """Close the file, which also gives up its lock."""
        if self._out is not None:
            os.close(self._out)
        self._out = None


class FileReader:
    """Reads a log's file with a descriptor of its own: its writer may close the log meanwhile."""

    def __init__(self, path: Path) -> None:
        self._in = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`."""
        return os.pread(self._in, length, offset)

    def close(self) -> None:
        """Close the file."""
        os.close(self._in)


class MemoryLog:
    """Rows in memory.

    Args:
        keep: bytes that may wait for their reader; writing waits beyond it. None keeps everything for later
        readers.
    """

    volatile = True

    def __init__(self, keep: int | None = None) -> None:
        self.keep = keep
        self.size = 0
        self.digest: Any = None
        self._held = bytearray()
        self._begin = 0
        self._lock = threading.Lock()

    def open(self, size: int) -> None:
        """Begin at offset `size`: what was before has been read, or is kept here."""
        with self._lock:
            if not self._begin <= size <= self.size:
                self._held.clear()
                self._begin = size
            del self._held[size - self._begin :]
            self.size = size

    def append(self, data: bytes) -> None:
        """Add whole lines."""
        with self._lock:
            self._held += data
            self.size += len(data)

    def full(self) -> bool:
        """Return whether writing should wait for the reader."""
        return self.keep is not None and self.size - self._begin > self.keep

    def sync(self) -> None:
        """Do nothing: there is no disk."""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; what lies before it is forgotten unless it is to be
        kept.
        """
        with self._lock:
            if self.keep is not None:
                del self._held[: offset - self._begin]
                self._begin = offset
            at = offset - self._begin
            return bytes(self._held[at : at + length])

    def reader(self) -> "MemoryLog":
        """Return itself."""
        return self

    def close(self) -> None:
        """Do nothing: rows stay for their readers."""


class StreamBridge:
    """What the next node may know of a log while it is written: how much is committed, and whether it ends.

    Attributes:
        size: committed bytes.
        rows: committed rows.
    """

    def __init__(self) -> None:
        self.size = self.rows = 0
        self._ended = False
        self._stopped = False
        self._changed = threading.Condition()

    def advance(self, size: int, rows: int) -> None:
        """Say that so much is committed."""
        with self._changed:
            self.size, self.rows = size, rows
            self._changed.notify_all()

    def end(self) -> None:
        """Say that nothing will follow."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Say that the writer ended before its end: readers take what is there and stop without sealing."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Whether nothing will follow."""
        return self._ended

    @property
    def stopped(self) -> bool:
        """Whether the writer ended before its end."""
        return self._stopped

    def wait(self, beyond: int, timeout: float) -> bool:
        """Wait until more than `beyond` bytes are committed or nothing will follow; return whether so."""
        with self._changed:
            return self._changed.wait_for(lambda: self.size > beyond or self._ended or self._stopped, timeout)
