"""Progress of a transfer on a terminal."""

import sys
import time
from typing import IO

PAUSE = 0.5
"""Seconds between two updates."""


class Meter:
    """A stream wrapper that counts bytes and shows the count on a terminal; otherwise silent."""

    def __init__(self, stream: IO[bytes], screen: IO[str] | None = None) -> None:
        self._stream, self._screen = stream, screen or sys.stderr
        self._visible = self._screen.isatty()
        self._shown = time.monotonic()
        self.bytes = 0

    def read(self, size: int = -1) -> bytes:
        """Read from the stream."""
        content = self._stream.read(size)
        self._count(len(content))
        return content

    def write(self, content: bytes) -> int:
        """Write to the stream."""
        count = self._stream.write(content)
        self._count(count)
        return count

    def close(self) -> None:
        """Clear the progress line; the stream stays open."""
        if self._visible:
            self._screen.write("\r\x1b[K")
            self._screen.flush()

    def _count(self, count: int) -> None:
        self.bytes += count
        if self._visible and time.monotonic() - self._shown > PAUSE:
            self._shown = time.monotonic()
            self._screen.write(f"\r\x1b[K{self.bytes / 2**20:,.1f} MiB")
            self._screen.flush()
