"""Time series of the report: the hook's timeline, the runner's events and the training curves."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asysi.report.data import Curve, EpochSeries, Event, TimelineSection

POINTS = 1200
"""Maximum number of points on the page; longer runs are downsampled."""
LINES = 200_000
"""Maximum number of lines read, counted from the end."""
EVENTS = 60
EPOCH_FIGURES = 60
_DRIFT = "drift/"


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects in a JSON Lines file; truncated or invalid lines are skipped."""
    try:
        lines = file.read_text(errors="replace").split("\n")[-LINES:]
    except OSError:
        return []
    return [found for line in lines if isinstance(found := _parse(line), dict)]


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def timeline(lines: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> TimelineSection | None:
    """Return the timeline of the run, downsampled to at most POINTS points; None if there are no lines.

    Args:
        lines: lines of `timeline.jsonl`: t, time, rate, offered, dropped, lag by reader.
        events: lines of `events.jsonl`: time, container, event, code, reason.
    """
    usable = [line for line in lines if isinstance(line.get("t"), int | float)]
    if not usable:
        return None
    step = -(-len(usable) // POINTS)
    groups = [usable[first : first + step] for first in range(0, len(usable), step)]
    names = list(dict.fromkeys(name for line in usable for name in line.get("lag", {})))
    began = float(usable[0].get("time", 0)) - float(usable[0]["t"])
    return TimelineSection(
        at=tuple(float(group[0]["t"]) for group in groups),
        rate=tuple(_mean(group, "rate") for group in groups),
        lag={
            name: tuple(max(_number(line.get("lag", {}), name) for line in group) for group in groups)
            for name in names
        },
        dropped=tuple(sum(_number(line, "dropped") for line in group) / len(group) for group in groups),
        offered=tuple(_mean(group, "offered") for group in groups),
        events=tuple(notable_events(events, began)),
    )


def _number(line: dict[str, Any], key: str) -> float:
    value = line.get(key, 0)
    return float(value) if isinstance(value, int | float) else 0.0


def _mean(group: list[dict[str, Any]], key: str) -> float:
    return sum(_number(line, key) for line in group) / len(group)


def notable_events(events: Sequence[dict[str, Any]], began: float) -> list[Event]:
    """Return the kills, failures and restarts, with the downtime of each container."""
    told: list[Event] = []
    left: dict[str, float] = {}
    for event in events:
        at, name, kind = _number(event, "time") - began, str(event.get("container")), event.get("event")
        code, reason = event.get("code"), event.get("reason")
        if kind == "restarted":
            away = f" after {at - left.pop(name):.1f} s" if name in left else ""
            told.append(Event(at, f"{name} was started again{away}", "restart"))
        elif kind == "killed":
            left.setdefault(name, at)
            told.append(Event(at, f"{name} was killed{_because(reason)}", "restart"))
        elif kind == "exited" and code not in (0, None):
            if name not in left:
                told.append(Event(at, f"{name} ended with exit code {code}{_because(reason)}", "restart"))
            left.setdefault(name, at)
    return told[-EVENTS:]


def _because(reason: object) -> str:
    return f": {reason}" if reason else ""


def curves(training: Mapping[str, Mapping[str, Any]]) -> Iterator[Curve]:
    """Yield the training curve of each autoencoder that has one.

    Args:
        training: contents of `training.json` by trainer and hook point: rows of trained, loss, fvu, l0, dead.
    """
    for trainer, points in training.items():
        for path, record in points.items():
            found = record.get("curve") if isinstance(record, dict) else None
            rows = [row for row in found if _usable(row)] if isinstance(found, list) else []
            if len(rows) > 1:
                trained, *series = zip(*rows, strict=True)
                name = f"{trainer}/{path}" if len(training) > 1 else path
                yield Curve(name, trained, *series)


def epochs(figures: object) -> tuple[EpochSeries, ...]:
    """Return the course of the watched model's own training.

    Args:
        figures: contents of `train/history.json`: for each epoch the figures by name, `drift/<module>` for
            drift. Anything else gives no series.
    """
    rows = [row for row in figures if isinstance(row, dict)][-POINTS:] if isinstance(figures, list) else []
    names = [str(name) for name in rows[-1]][:EPOCH_FIGURES] if rows else []
    return tuple(
        EpochSeries(
            name.removeprefix(_DRIFT), tuple(_finite(row.get(name)) for row in rows), name.startswith(_DRIFT)
        )
        for name in names
        if name not in {"epoch", "step"}
    )


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _usable(row: Any) -> bool:
    if not isinstance(row, list) or len(row) != 5 or row[0] is None:
        return False
    return all(value is None or (isinstance(value, int | float) and math.isfinite(value)) for value in row)
