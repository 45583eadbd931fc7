"""What happened to the containers: one JSON line an event, which the report reads."""

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
    """Refuse a file of events that a run is writing now.

    Raises:
        ConfigError: somebody holds its lock.
    """
    if path.exists():
        Events(path).close()


class Events:
    """Appends events to a file, which stays locked: who cannot have the lock sees that a run is writing here.

    Attributes:
        lost: events that could not be written: they are a description of the run, and no reason to end it.

    Raises:
        ConfigError: another run writes this file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open(
            "ab", buffering=0
        )  # nothing waits to be written: a full disk loses a line, no more
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
        """End what a killed runner left of a line, so that the next one stands on its own."""
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
        """Append an event: time is Unix time in seconds, code an exit code, reason a few words."""
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
        """Write, or lose, a line; one that was cut short is ended before the next."""
        text = b"\n" + text if self._torn else text
        try:
            written = self._file.write(text)
            self._torn = written < len(text)
        except OSError:
            written = 0
        self.lost += written < len(text)

    def close(self) -> None:
        """Make the events durable and let the file go."""
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
