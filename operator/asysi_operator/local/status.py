"""What finish says about the run, read without trust: any part of it may be missing or of another kind."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Consumer:
    """A reader of a ring."""

    name: str
    lag: float | None
    """Largest unread share of a shard, 0..1."""
    lapped: int
    """Rows that were overwritten before it came to them."""
    state: str


@dataclass(frozen=True)
class Point:
    """A hook point's autoencoder."""

    path: str
    fvu: float | None
    l0: float | None
    dead: float | None
    """Share of latents that are dead, 0..1."""


@dataclass(frozen=True)
class Status:
    """Where the run stands; None is unknown."""

    phase: str = "starting"
    steps: int | None = None
    steps_total: int | None = None
    tokens: int | None = None
    tokens_total: int | None = None
    passes_begun: int | None = None
    tokens_per_second: float | None = None
    rate: float | None = None
    seen: int = 0
    published: int = 0
    sampled_out: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows dropped at capture, by reason."""
    steps_dropped: int = 0
    consumers: tuple[Consumer, ...] = ()
    points: tuple[Point, ...] = ()

    @property
    def share_done(self) -> float | None:
        """Share of the run that is done, 0..1."""
        done, total = (
            (self.tokens, self.tokens_total) if self.tokens_total else (self.steps, self.steps_total)
        )
        return min(1.0, done / total) if done is not None and total else None


def read_status(body: bytes) -> Status | None:
    """Return the status in an answer of /status, None when it is no JSON object."""
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    if not isinstance(answer, dict):
        return None
    progress, capture = _part(answer, "progress"), _part(answer, "capture")
    return Status(
        phase=_text(answer, "phase") or "running",
        steps=_count(progress, "steps"),
        steps_total=_count(progress, "stepsTotal"),
        tokens=_count(progress, "tokens"),
        tokens_total=_count(progress, "tokensTotal"),
        passes_begun=_count(progress, "pass"),
        tokens_per_second=_number(progress, "tokensPerSecond"),
        rate=_number(answer, "rate"),
        seen=_count(capture, "seen") or 0,
        published=_count(capture, "published") or 0,
        sampled_out=_count(capture, "sampledOut") or 0,
        dropped=_counts(_part(capture, "dropped")),
        steps_dropped=_count(capture, "stepsDropped") or 0,
        consumers=tuple(_consumer(name, item) for name, item in _part(answer, "consumers").items()),
        points=tuple(_point(item) for item in _parts(answer, "points")),
    )


def _consumer(name: str, item: object) -> Consumer:
    part = item if isinstance(item, dict) else {}
    return Consumer(
        name, _number(part, "lag"), _count(part, "lapped") or 0, _text(part, "state") or "unknown"
    )


def _point(item: dict[str, Any]) -> Point:
    path = _text(item, "path") or "?"
    if _count(item, "trained") == 0:  # its gauges have not been written yet
        return Point(path, None, None, None)
    return Point(path, _number(item, "fvu"), _number(item, "l0"), _number(item, "dead"))


def _part(part: dict[str, Any], key: str) -> dict[str, Any]:
    value = part.get(key)
    return value if isinstance(value, dict) else {}


def _parts(part: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = part.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(part: dict[str, Any], key: str) -> str | None:
    value = part.get(key)
    return value if isinstance(value, str) else None


def _number(part: dict[str, Any], key: str) -> float | None:
    value = part.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _count(part: dict[str, Any], key: str) -> int | None:
    number = _number(part, key)
    return None if number is None else int(number)


def _counts(part: dict[str, Any]) -> dict[str, int]:
    return {key: count for key in part if (count := _count(part, key))}
