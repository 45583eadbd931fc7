"""Progress of a run, from which the next attempt resumes."""

import json
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asysi.contract.runtime import HOST_FOLDER

PROGRESS_FILE = HOST_FOLDER / "progress.json"
"""{attempt, step, attempts, tokens, sequences, opened, repeated_steps, repeated_tokens}: the last completed
step, and the last step of every attempt that completed one; the content tokens of all steps so far; the
sequences read so far, and how many of them began with BOS or CLS; steps that two attempts have captured,
because the first was killed before it recorded them, and their content tokens.
"""
MARK_FILE = HOST_FOLDER / "last-step"
"""The last step whose capture began, as eight bytes; written at every step, thus ahead of the progress."""


@dataclass(frozen=True, slots=True)
class HostProgress:
    """Progress of earlier attempts."""

    next_step: int = 0
    """Step after the last completed one."""
    attempts: Mapping[str, int] = field(default_factory=dict)
    """Last step of each attempt that completed one."""
    tokens: int | None = None
    """Content tokens of all steps so far; None if they were not counted."""
    sequences: int = 0
    """Sequences read so far."""
    opened: int = 0
    """How many of these began with BOS or CLS."""
    repeated_steps: int = 0
    """Steps that two attempts have captured."""
    repeated_tokens: int = 0
    """Their content tokens."""


class StepMark:
    """The last step whose capture began; it survives a kill of the process, not a loss of power.

    A step costs one write of eight bytes without a sync. If the file cannot be written, as on a full volume,
    nothing is recorded any more, and steps that are repeated later are not counted.

    Args:
        file: the file; its folder is made.
    """

    def __init__(self, file: Path) -> None:
        self.last = -1
        """Last step of earlier attempts, -1 if none is known."""
        self._fd: int | None = None
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            found = os.pread(self._fd, _MARK.size, 0)
            self.last = _MARK.unpack(found)[0] if len(found) == _MARK.size else -1

    def put(self, step: int) -> None:
        """Record a step, unless an earlier attempt came further."""
        if self._fd is not None and step > self.last:
            try:
                os.pwrite(self._fd, _MARK.pack(step), 0)
            except OSError:
                self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


_MARK = struct.Struct("<q")


def read_progress(output: Path) -> HostProgress:
    """Return the recorded progress of earlier attempts; missing or damaged records count as no progress."""
    try:
        record = json.loads((output / PROGRESS_FILE).read_text())
    except (OSError, ValueError):
        return HostProgress()
    step = _whole(record, "step")
    if step is None:
        return HostProgress()
    counted = _whole(record, "sequences"), _whole(record, "opened")
    sequences, opened = (0, 0) if None in counted else counted
    repeated = _whole(record, "repeated_steps") or 0, _whole(record, "repeated_tokens") or 0
    attempts, tokens = _attempts(record, step), _whole(record, "tokens")
    return HostProgress(step + 1, attempts, tokens, sequences or 0, opened or 0, *repeated)


def _attempts(record: dict[str, Any], step: int) -> dict[str, int]:
    number = _whole(record, "attempt")
    found = record.get("attempts", {} if number is None else {number: step})
    if not isinstance(found, dict):
        return {}
    return {str(number): last for number in found if (last := _whole(found, number)) is not None}


def _whole(record: Any, key: Any) -> int | None:
    value = record.get(key) if isinstance(record, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
