"""Progress of a run, from which the next attempt resumes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asysi.contract.runtime import HOST_FOLDER

PROGRESS_FILE = HOST_FOLDER / "progress.json"
"""{attempt, step, attempts, tokens, sequences, opened}: the last completed step, and the last step of every
attempt that completed one; the content tokens of all steps so far; the sequences read so far, and how many of
them began with BOS or CLS.
"""


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
    return HostProgress(
        step + 1, _attempts(record, step), _whole(record, "tokens"), sequences or 0, opened or 0
    )


def _attempts(record: dict[str, Any], step: int) -> dict[str, int]:
    number = _whole(record, "attempt")
    found = record.get("attempts", {} if number is None else {number: step})
    if not isinstance(found, dict):
        return {}
    return {str(number): last for number in found if (last := _whole(found, number)) is not None}


def _whole(record: Any, key: Any) -> int | None:
    value = record.get(key) if isinstance(record, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
