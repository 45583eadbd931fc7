"""Event log of the containers: one JSON line per event, read by the report."""

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from asysi.contract.errors import ConfigError

Event = Literal["started", "exited", "killed", "restarted"]


def refuse_busy(path: Path) -> None:
    """Reject an event log that another run is writing.

    Raises:
        ConfigError: another process holds its lock.
    """
    if path.exists():
        Events(path).close()


class Events:
    """Appends events to a file and holds a lock on it, which shows that a run is writing to the directory.

    Attributes:
        lost: number of events that could not be written; losing one does not end the run.

    Raises:
        ConfigError: another run is writing this file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)  # unbuffered: a full disk loses a single line
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ConfigError(
                f"a run is writing to {path.parent}: wait for its end, or choose another folder with --output"
            ) from error

        self.lost, self._torn = 0, False
        self._end_torn_line()

    def _end_torn_line(self) -> None:
        """Terminate a partial line left by a killed runner."""
        content = Path(self._file.name).read_bytes()
        if content and not content.endswith(b"\n"):
            self._append(b"\n")

    def write(
        self,
        container: str,
        event: Event,
        *,
        attempt: int,
        code: int | None = None,
        reason: str | None = None,
    ) -> None:
        """Append an event with its Unix time in seconds, exit code and a short reason."""
        line = {
            "time": round(time.time(), 3),
            "container": container,
            "event": event,
            "attempt": attempt,
            "code": code,
            "reason": reason,
        }
        self._append(json.dumps(line).encode() + b"\n")

    def _append(self, text: bytes) -> None:
        """Write a line, or count it as lost; a partial line is terminated before the next."""
        text = b"\n" + text if self._torn else text
        try:
            written = self._file.write(text)
            self._torn = written < len(text)
        except OSError:
            written = 0
        self.lost += written < len(text)

    def close(self) -> None:
        """Flush the events to disk and release the file."""
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
