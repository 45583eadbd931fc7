"""Sources of a node's rows, as blocks of complete lines.

Whatever the format, a source is a sequence of JSON lines with offsets: those of the file if it is JSON lines
itself, otherwise those of its deterministic conversion. A last line without a newline is treated as if it had
one. Only newlines end a line: other Unicode separators are text.
"""

import bisect
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import xxhash

from asysi.contract.errors import ConfigError
from asysi.locations import filesystem
from asysi.pipeline.formats.compression import BrokenFileError
from asysi.pipeline.formats.format_detection import BOM
from asysi.pipeline.rows.blocks import RowBlock, lines_of
from asysi.pipeline.rows.ids import FIELD
from asysi.pipeline.rows.values import loads
from asysi.pipeline.streams.open_files import is_written
from asysi.pipeline.streams.row_log import Log, LogReader, StreamBridge
from asysi.pipeline.streams.seal import SealError, read_seal, seal_path

CHUNK = 1 << 18
"""Bytes per read, and approximate maximum size of a block."""

_FEW = 256
_SAY_AFTER = 0.5
"""Seconds without a new row after which a line is logged."""
_log = logging.getLogger("asysi.pipeline")


class Feed(Protocol):
    """Bytes of a source, in order."""

    @property
    def size(self) -> int | None:
        """Total number of bytes, None if not known yet."""

    @property
    def ended(self) -> bool:
        """Whether all bytes were read."""

    def open(self, offset: int) -> Any:
        """Seek to an offset and return the running XXH3-128 of the bytes before it (None if they are
        gone).
        """

    def read(self) -> bytes:
        """Return the next bytes; empty if it has ended or none are available yet."""

    def wait(self, timeout: float) -> None:
        """Wait until there may be more bytes, up to `timeout` seconds."""

    def close(self) -> None:
        """Release its resources."""


class LineSource:
    """Blocks of complete lines from a feed.

    Args:
        feed: the bytes.
        stored: whether rows contain their `_i`.
        window: the part of the source that the feed reads.
    """

    def __init__(self, feed: Feed, *, stored: bool, window: "Window | None" = None) -> None:
        self.feed, self.stored = feed, stored
        self.first_row, self.begin = (window.first_row, window.begin) if window else (0, 0)
        self._buffer, self._at, self._row, self._offset = b"", 0, self.first_row, self.begin
        self._broken: BrokenFileError | None = None
        self._lines: list[bytes] | None = None
        """The lines of the last cut, if it split them."""

    def open(self, row: int, offset: int) -> Any:
        """Seek to line number `row` at `offset`; return the running digest of the bytes before it."""
        self._buffer, self._at, self._row, self._offset = b"", 0, row, offset
        self._broken = None
        return self.feed.open(offset)

    @property
    def row(self) -> int:
        """Number of the next row."""
        return self._row

    @property
    def offset(self) -> int:
        """Offset of the next row in bytes."""
        return self._offset

    @property
    def ended(self) -> bool:
        """Whether all rows were taken."""
        return self._broken is None and self.feed.ended and self._at == len(self._buffer)

    def take(self, limit: int, align: int = 1) -> RowBlock | None:
        """Return up to `limit` rows, or None if there are none (yet).

        Args:
            limit: maximum number of rows, a multiple of `align`.
            align: the number of rows is a multiple of this, except at the end.

        Raises:
            ConfigError: the last line is torn, or a compressed file is truncated.
        """
        cap = CHUNK
        while True:
            end, rows = self._cut(limit, cap)
            full = rows >= limit or len(self._buffer) - self._at >= cap
            whole = rows - rows % align
            if full and whole:
                break
            if full:
                cap *= 2  # the rows are longer than usual
                continue
            if self.feed.ended or self._broken:
                whole = rows
                break
            if not self._fill() and not self.feed.ended:
                if not whole:
                    return None
                break
        if whole < rows:
            end, rows = self._cut(whole, cap)
        if not rows:
            if self._broken:
                raise BrokenFileError(
                    f"{self._broken}: the {self._row:,} rows before it are kept; get the whole file, and"
                    " resume with --accept-changes"
                ) from self._broken
            if self._at < len(self._buffer):
                raise ConfigError(
                    f"the source ends within row {self._row}: its writer was cut off; run that again"
                )
            return None
        data = self._buffer[self._at : end]
        block = RowBlock(self._row, rows, self._offset + len(data), data, self.stored, self._lines)
        self._lines = None
        self._at, self._row, self._offset = end, block.last, block.end
        return block

    def wait(self, timeout: float) -> None:
        """Wait until there may be more rows, up to `timeout` seconds."""
        self.feed.wait(timeout)

    def close(self) -> None:
        """Close the feed."""
        self.feed.close()

    def _fill(self) -> bool:
        try:
            data = self.feed.read()
        except BrokenFileError as error:
            self._broken = error  # raised once the rows before it have been taken
            return True
        if data:
            self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
            self._at = 0
        return bool(data)

    def _cut(self, limit: int, cap: int) -> tuple[int, int]:
        """Return the end of the last of up to `limit` lines within `cap` bytes, and the number of
        lines.
        """
        at, buffer = self._at, self._buffer
        self._lines = None
        if limit <= _FEW:
            end = at
            for rows in range(limit):
                following = buffer.find(b"\n", end) + 1
                if not following:
                    return end, rows
                end = following
            return end, limit
        end = max(at, buffer.rfind(b"\n", at, at + cap) + 1)
        lines = lines_of(buffer[at:end])  # the worker needs them, and counting newlines would take as long
        if len(lines) > limit:
            end -= sum(map(len, lines[limit:])) + len(lines) - limit
            del lines[limit:]
        self._lines = lines
        return end, len(lines)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a source, split at line boundaries.

    Attributes:
        begin, end: offsets, bytes.
        first_row: number of its first row.
    """

    begin: int
    end: int
    first_row: int


class FilesFeed:
    """Complete files, concatenated.

    Args:
        urls: paths or fsspec URLs, uncompressed.
        window: the part to read; offsets refer to the whole.
    """

    def __init__(self, urls: Sequence[str], window: Window | None = None) -> None:
        self._files = [filesystem(url) for url in urls]
        sizes = [files.size(path) for files, path in self._files]
        ends = [_ends(files, path, size) for (files, path), size in zip(self._files, sizes, strict=True)]
        self._skips = [len(BOM) if head == BOM else 0 for head, _ in ends]
        self._lengths = [size - skip for size, skip in zip(sizes, self._skips, strict=True)]
        torn = [length > 0 and tail != b"\n" for length, (_, tail) in zip(self._lengths, ends, strict=True)]
        self._bases = [0, *itertools.accumulate(map(int.__add__, self._lengths, map(int, torn)))]
        self._window = window
        self._end = window.end if window else self._bases[-1]
        self._at = 0
        self._stream: Any = None
        self._open_at = -1
        self.size: int | None = self._end
        self.ended = False

    def open(self, offset: int) -> Any:
        """Seek to an offset; the digest covers the bytes from the start of the window."""
        digest = xxhash.xxh3_128()
        self._at = self._window.begin if self._window else 0
        offset = max(offset, self._at)
        self.ended = self._at >= self._end
        while self._at < offset and (data := self._read(min(CHUNK, offset - self._at))):
            digest.update(data)
        self.ended = self._at >= self._end
        return digest

    def read(self) -> bytes:
        """Return the next bytes."""
        data = self._read(min(CHUNK, self._end - self._at)) if not self.ended else b""
        self.ended = not data or self._at >= self._end
        return data

    def wait(self, timeout: float) -> None:
        """Return at once: the files are complete."""

    def lines_before(self, offset: int) -> int:
        """Return how many lines end before an offset."""
        self._at, lines = 0, 0
        while self._at < offset and (data := self._read(min(CHUNK, offset - self._at))):
            lines += data.count(b"\n")
        return lines

    def line_from(self, offset: int) -> int:
        """Return the start of the first line at or after an offset."""
        if offset <= 0:
            return 0
        self._at = offset - 1
        while self._at < self._end:
            began = self._at
            data = self._read(min(1 << 16, self._end - self._at))
            if not data:
                break
            found = data.find(b"\n")
            if found >= 0:
                return began + found + 1
        return self._end

    def close(self) -> None:
        """Close the open file."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._open_at = None, -1

    def _read(self, length: int) -> bytes:
        if length <= 0 or self._at >= self._bases[-1]:
            return b""
        index = bisect.bisect_right(self._bases, self._at) - 1
        offset = self._at - self._bases[index]
        if offset == self._lengths[index]:
            data = b"\n"  # the newline missing after the file's last line
        else:
            data = self._file(index, offset).read(min(length, self._lengths[index] - offset))
            if not data:
                raise ConfigError(f"{self._files[index][1]} became shorter while it was read")
        self._at += len(data)
        return data

    def _file(self, index: int, offset: int) -> BinaryIO:
        if self._open_at != index or self._stream is None:
            self.close()
            files, path = self._files[index]
            self._stream, self._open_at = files.open(path, "rb"), index
        stream: BinaryIO = self._stream
        if stream.tell() != offset + self._skips[index]:
            stream.seek(offset + self._skips[index])
        return stream


def _ends(files: Any, path: str, size: int) -> tuple[bytes, bytes]:
    """Return the first bytes of a file, which may be a byte order mark, and its last one."""
    if not size:
        return b"", b""
    return files.cat_file(path, start=0, end=min(len(BOM), size)), files.cat_file(
        path, start=size - 1, end=size
    )


class ConvertedFeed:
    """A source that can only be read from its start: other formats and compressed files.

    Args:
        convert: returns the JSON lines in pieces, deterministically.
    """

    def __init__(self, convert: Callable[[], Iterator[bytes]]) -> None:
        self._convert = convert
        self._pieces: Iterator[bytes] = iter(())
        self._over = b""
        self.size: int | None = None
        self.ended = False

    def open(self, offset: int) -> Any:
        """Convert from the start up to an offset."""
        digest = xxhash.xxh3_128()
        self._pieces, self._over, self.ended = self._convert(), b"", False
        while offset > 0 and (data := self.read()):
            digest.update(data[:offset])
            self._over, offset = data[offset:], offset - len(data[:offset])
        return digest

    def read(self) -> bytes:
        """Return the next bytes."""
        data, self._over = self._over, b""
        if not data:
            data = next(self._pieces, b"")
            self.ended = not data
        return data

    def wait(self, timeout: float) -> None:
        """Return at once: the source is complete."""

    def close(self) -> None:
        """Drop the conversion."""
        self._pieces = iter(())


class LogFeed:
    """The committed output of another node in this process.

    Args:
        log: the rows.
        bridge: progress of the writer.
    """

    def __init__(self, log: Log, bridge: StreamBridge) -> None:
        self._log, self._bridge, self._at = log, bridge, 0
        self._reader: LogReader | None = None
        self._waited = self._said = 0.0

    @property
    def size(self) -> int | None:
        """Committed bytes."""
        return self._bridge.size

    @property
    def ended(self) -> bool:
        """Whether the writer has ended and everything was read."""
        return self._bridge.ended and self._at >= self._bridge.size

    @property
    def stopped(self) -> bool:
        """Whether the writer stopped early and all committed bytes were read."""
        return self._bridge.stopped and self._at >= self._bridge.size

    def open(self, offset: int) -> Any:
        """Go to an offset."""
        self._at = 0
        if self._log.volatile:
            self._at = offset
            return None
        digest = xxhash.xxh3_128()
        while self._at < offset and (data := self._bytes(min(CHUNK, offset - self._at))):
            digest.update(data)
            self._at += len(data)
        return digest

    def read(self) -> bytes:
        """Return the next committed bytes."""
        if self._at >= self._bridge.size:
            return b""
        data = self._bytes(min(CHUNK, self._bridge.size - self._at))
        self._at += len(data)
        return data

    def wait(self, timeout: float) -> None:
        """Wait until more is committed, or the writer has ended."""
        if self._bridge.wait(self._at, timeout):
            self._waited, self._said = 0.0, 0.0
            return
        self._waited += timeout
        if self._waited >= max(_SAY_AFTER, 2 * self._said):  # with back-off
            self._said = self._waited
            _log.info("[EOF Retry] no new rows for %.1f s: the previous node is still running", self._waited)

    def close(self) -> None:
        """Close the reader; the log itself belongs to its node."""
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def _bytes(self, length: int) -> bytes:
        if self._reader is None:
            self._reader = self._log.reader()
        return self._reader.read(self._at, length)


class FollowFeed:
    """A local file that another process may still be writing; it ends when it is sealed.

    Args:
        path: the file.
        patience: seconds without growth, seal or writer after which reading fails.
    """

    size: int | None = None

    def __init__(self, path: Path, patience: float) -> None:
        self._path, self._patience = path, patience
        self._at = 0
        self._sealed: int | None = None
        self._moved = time.monotonic()
        self._stream: BinaryIO | None = None

    @property
    def ended(self) -> bool:
        """Whether the file is sealed and everything was read."""
        return self._sealed is not None and self._at >= self._sealed

    def open(self, offset: int) -> Any:
        """Go to an offset."""
        digest = xxhash.xxh3_128()
        self._at = 0
        while self._at < offset and (data := self._read(offset - self._at)):
            digest.update(data)
        return digest

    def read(self) -> bytes:
        """Return the next bytes."""
        return self._read(CHUNK)

    def wait(self, timeout: float) -> None:
        """Wait until the file has grown or is sealed.

        Raises:
            ConfigError: an unfinished output of a node does not grow, and has neither seal nor writer.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not self._changed():
            time.sleep(0.05)
        if not self._changed():
            _log.info("[EOF Retry] %s has no seal and no new rows; waiting for its writer", self._path)
            if time.monotonic() - self._moved > self._patience and not is_written([self._path]):
                if self._path.exists() and not brings_ids(FilesFeed([str(self._path)])):
                    self._sealed = self._at  # a regular file closed by its writer
                    return
                raise ConfigError(
                    f"{self._path} has no {seal_path(self._path.name)} and no writer: call seal() "
                    "on it if"
                    " it is complete, or resume what writes it"
                )

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _changed(self) -> bool:
        seal = read_seal(str(self._path))
        size = self._path.stat().st_size if self._path.exists() else 0
        if seal is not None:
            if size < seal.bytes:
                raise SealError(f"{self._path} was cut: its seal says {seal.bytes} bytes, {size} are left")
            self._sealed = seal.bytes
            return True
        return size > self._at

    def _read(self, length: int) -> bytes:
        if self._sealed is None:
            self._changed()
        if self._stream is None:
            if not self._path.exists():
                return b""
            self._stream = self._path.open("rb", buffering=0)
        self._stream.seek(self._at)
        data = self._stream.read(min(length, CHUNK))
        if data:
            self._at += len(data)
            self._moved = time.monotonic()
        return data


def first_row(feed: Feed) -> dict[str, Any]:
    """Return the first row of a source, empty if it has no valid row."""
    buffer = b""
    with suppress(BrokenFileError):  # said when it is read
        feed.open(0)
        while b"\n" not in buffer and (data := feed.read()):
            buffer += data
    feed.close()
    try:
        row = loads(buffer.partition(b"\n")[0])
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def brings_ids(feed: Feed) -> bool:
    """Return whether the first row of a source contains `_i`."""
    return FIELD in first_row(feed)
