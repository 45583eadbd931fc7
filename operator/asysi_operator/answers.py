"""What a worker's /status and finish's last words say, read without trust. Pure.

Any part may be missing, or of another kind.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asysi_operator.manifests.kinds import Manifest

LIMIT = 256 * 1024
"""Bytes of an answer that are read at most."""
_CPUS = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")
_COUNT_LIMIT = 2**63 - 1
_QUALITY = ("fvu", "l0", "dead")


VERDICTS = ("LedgerBalanced", "DataSound")
"""Conditions of the experiment that finish decides."""
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9]{0,99}")


@dataclass(frozen=True)
class Verdict:
    """What finish says of the books, or of the data."""

    status: str
    """True | False | Unknown."""
    reason: str
    message: str


@dataclass(frozen=True)
class Answer:
    """An answer of /status; None is unknown."""

    phase: str | None = None
    cpus: str | None = None
    """Processors that the container may use, as in `taskset -c`."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """As `status.counters`."""
    sae: Mapping[str, float] = field(default_factory=dict)
    """As `status.sae`."""
    balanced: bool | None = None
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """As `LastWords.verdicts`, once finish knows them."""


@dataclass(frozen=True)
class LastWords:
    """The totals of an attempt that has ended."""

    counters: Mapping[str, int]
    sae: Mapping[str, float]
    balanced: bool | None
    unbalanced: Sequence[str]
    problems: Sequence[str]
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """By condition: on the books `LedgerBalanced`, on the data `DataSound`."""


def read_answer(body: bytes) -> Answer | None:
    """Return the answer in a body of /status, None when it is no JSON object."""
    answer = _object(body)
    if answer is None:
        return None
    cpus = answer.get("cpus")
    points = [point for point in _list(answer, "points") if isinstance(point, dict)]
    trained = [point for point in points if _count(point, "trained")]
    archived = _count(_part(_part(answer, "consumers"), "archiver"), "durable")
    return Answer(
        phase=_text(answer, "phase"),
        cpus=cpus if isinstance(cpus, str) and len(cpus) <= 253 and _CPUS.fullmatch(cpus) else None,
        counters=_counters(
            answer, archived, sum(_count(point, "trained") or 0 for point in points) if points else None
        ),
        sae=_quality({key: _mean(trained, key) for key in _QUALITY}),
        balanced=_flag(_part(answer, "ledger"), "balanced"),
        verdicts=_verdicts(answer),
    )


def read_last_words(message: str) -> LastWords | None:
    """Return the totals in finish's termination message, None when it says something else."""
    words = _object(message.encode())
    if words is None or "capture" not in words:
        return None
    ledger, sae = _part(words, "ledger"), _part(words, "sae")
    return LastWords(
        counters=_counters(words, _count(_part(words, "durable"), "archiver"), _count(words, "trained")),
        sae=_quality({key: _number(sae, key) for key in _QUALITY}),
        balanced=_flag(ledger, "balanced"),
        unbalanced=[str(line)[:253] for line in _list(ledger, "unbalanced")][:64],
        problems=[str(line) for line in _list(words, "problems")][:64],
        verdicts=_verdicts(words),
    )


def _verdicts(part: Manifest) -> dict[str, Verdict]:
    """Return the verdicts that are whole; others are as good as none."""
    found = {}
    for kind in VERDICTS:
        said = _part(_part(part, "conditions"), kind)
        status, reason, message = (_text(said, key) for key in ("status", "reason", "message"))
        if status in {"True", "False", "Unknown"} and reason and _REASON.fullmatch(reason):
            found[kind] = Verdict(status, reason, said["message"][:1024] if message else "")
    return found


def read_attempt(message: str) -> int | None:
    """Return the attempt's number in prepare's termination message, None when it says something else."""
    return _count(_object(message.encode()) or {}, "attempt")


def _counters(part: Manifest, archived: int | None, trained: int | None) -> dict[str, int]:
    capture = _part(part, "capture")
    dropped = capture.get("dropped")
    lost = (
        [count for key in dropped if (count := _count(dropped, key)) is not None]
        if isinstance(dropped, dict)
        else None
    )
    counts = {
        "seen": _count(capture, "seen"),
        "captured": _count(capture, "published"),
        "sampledOut": _count(capture, "sampledOut"),
        "dropped": None if lost is None else min(sum(lost), _COUNT_LIMIT),
        "archived": archived,
        "trained": trained,
    }
    return {key: count for key, count in counts.items() if count is not None}


def _quality(found: Mapping[str, float | None]) -> dict[str, float]:
    """Return what is known; a share that is none is not."""
    share = found["dead"]
    known = found if share is None or 0 <= share <= 1 else {**found, "dead": None}
    return {key: value for key, value in known.items() if value is not None}


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _part(part: Manifest, key: str) -> Manifest:
    value = part.get(key)
    return value if isinstance(value, dict) else {}


def _list(part: Manifest, key: str) -> list[Any]:
    value = part.get(key)
    return value[:4096] if isinstance(value, list) else []


def _text(part: Manifest, key: str) -> str | None:
    value = part.get(key)
    return value[:253] if isinstance(value, str) else None


def _flag(part: Manifest, key: str) -> bool | None:
    value = part.get(key)
    return value if isinstance(value, bool) else None


def _number(part: Manifest, key: str) -> float | None:
    value = part.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _count(part: Manifest, key: str) -> int | None:
    value = part.get(key)
    number = _number(part, key)
    return int(value) if number is not None and 0 <= int(number) < _COUNT_LIMIT else None  # type: ignore[arg-type]


def _mean(points: Sequence[Manifest], key: str) -> float | None:
    found = [number for point in points if (number := _number(point, key)) is not None]
    return round(sum(found) / len(found), 6) if found else None
