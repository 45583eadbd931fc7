"""Reads finish's verdict as untrusted input: any part may be missing or of the wrong type."""

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKS = {"ok": "✓", "unknown": "?", "warning": "!", "fail": "✕"}
"""Symbol for each level."""


@dataclass(frozen=True)
class RunVerdict:
    """Contents of `verdict.json`."""

    level: str
    sentence: str
    """Both verdicts in words."""
    ledger: tuple[str, str]
    """Status and message of the condition LedgerBalanced."""
    findings: tuple[tuple[str, str], ...] = ()
    """Level and text of each finding, worst first."""
    figures: tuple[tuple[str, float | None, str], ...] = ()
    """For each hook point with a trainer: path, held-out FVU, and a caveat."""

    @property
    def mark(self) -> str:
        """The symbol in front of the summary."""
        return MARKS.get(self.level, "?")


def read_verdict(file: Path) -> RunVerdict | None:
    """Return the verdict in `file`, or None if there is none."""
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or _text(record, "level") not in MARKS:
        return None
    ledger = _part(_part(record, "conditions"), "LedgerBalanced")
    return RunVerdict(
        record["level"],
        _text(record, "sentence"),
        (_text(ledger, "status"), _text(ledger, "message")),
        tuple((_text(one, "level"), _text(one, "text")) for one in _parts(record, "findings")),
        tuple(_figure(point, sae) for point in _parts(record, "points") for sae in _parts(point, "saes")),
    )


def _figure(point: Mapping[str, Any], sae: Mapping[str, Any]) -> tuple[str, float | None, str]:
    path, fvu, without = _text(point, "path"), _number(sae, "fvu"), _number(sae, "fvuWithoutOutlier")
    outlier = _part(point, "outlier")
    if why := _text(sae, "why"):
        return path, fvu, why
    if without is not None and (_number(outlier, "share") or 0.0) > OUTLIER:
        return path, fvu, f"{without:.3f} without {_text(outlier, 'name')}"
    return path, fvu, ""


OUTLIER = 0.5
"""Share of the variance above which the FVU is shown together with the FVU without the outlier."""


def _part(part: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = part.get(key)
    return value if isinstance(value, dict) else {}


def _parts(part: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = part.get(key)
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text(part: Mapping[str, Any], key: str) -> str:
    value = part.get(key)
    return value if isinstance(value, str) else ""


def _number(part: Mapping[str, Any], key: str) -> float | None:
    value = part.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    with contextlib.suppress(OverflowError):  # an integer that no float can be
        return number if math.isfinite(number := float(value)) else None
    return None
