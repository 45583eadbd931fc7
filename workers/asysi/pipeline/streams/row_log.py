"""Append-only logs of JSON lines, in a file or in memory, and the committed length for readers."""

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
    """The log that a node's rows are written to.

    Attributes:
        size: size in bytes.
        digest: running XXH3-128, None if rows are not kept.
        volatile: whether it is lost with the process.
    """

    size: int
    digest: Any
    volatile: bool

    def open(self, size: int) -> None:
        """Open it with its first `size` bytes; a torn tail after them is truncated."""

    def append(self, data: bytes) -> None:
        """Add whole lines."""

    def sync(self) -> None:
        """Sync appended data to disk."""

    def close(self) -> None:
        """Close it."""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`."""

    def reader(self) -> "LogReader":
        """Return a reader for another thread."""


class LogReader(Protocol):
    """Reads a log."""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`."""

    def close(self) -> None:
        """Let go of it."""


class FileLog:
    """Rows in a local file.

    Args:
        path: the file; its folder is created.
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
            ConfigError: another process writes to it.
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
            sync(self.path.parent)  # makes the directory entry durable, without which the rows would be lost

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
        """Return a reader for another thread, independent of this log being closed."""
        return FileReader(self.path)

    def close(self) -> None:
        """Close the file, which also gives up its lock."""
        if self._out is not None:
            os.close(self._out)
        self._out = None


class FileReader:
    """Reads a log's file with its own descriptor, because the writer may close the log."""

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
        keep: maximum unread bytes, beyond which writing blocks. None keeps everything for later readers.
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
        """Start at offset `size`; earlier rows have been read or are kept."""
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
        """Return up to `length` bytes from `offset`; earlier bytes are dropped unless everything is
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
    """Progress of a log's writer for the next node: how much is committed, and whether it has ended.

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
        """Set the committed size and rows, and notify readers."""
        with self._changed:
            self.size, self.rows = size, rows
            self._changed.notify_all()

    def end(self) -> None:
        """Mark the log as complete."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Mark the writer as stopped early: readers take the committed rows and stop without sealing."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Whether the log is complete."""
        return self._ended

    @property
    def stopped(self) -> bool:
        """Whether the writer stopped early."""
        return self._stopped

    def wait(self, beyond: int, timeout: float) -> bool:
        """Wait until more than `beyond` bytes are committed or the writer has ended; False on timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self.size > beyond or self._ended or self._stopped, timeout)
