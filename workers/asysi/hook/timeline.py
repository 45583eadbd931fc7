"""`timeline.jsonl`: a line a second of what the run was doing."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asysi.bus.states import ReaderState
from asysi.hook.totals import ConsumerTotals, StreamTotals


def describe(before: StreamTotals, after: StreamTotals, rate: float) -> dict[str, Any]:
    """Return a line's content: what happened from `before` to `after`.

    `offered`, `kept` and `consumed` are rows a second; `dropped`, `drops` and `lapped` rows in the interval;
    `lag` is the share of a ring that is unread, at its end. Rows count all hook points together.
    """
    seconds = max(1e-9, after.at - before.at)
    drops = _grown(before.capture.dropped, after.capture.dropped)
    for reason, rows in _grown(before.bus.dropped, after.bus.dropped).items():
        drops[f"bus_{reason}"] = rows
    return {
        "rate": round(rate, 6),
        "steps": after.steps,
        "offered": round(max(0, after.offered - before.offered) / seconds, 1),
        "kept": round((sum(after.capture.published) - sum(before.capture.published)) / seconds, 1),
        "consumed": {
            name: round((sum(now.consumed) - sum(then.consumed)) / seconds, 1)
            for name, then, now in _pairs(before, after)
        },
        "lag": {name: round(now.lag, 4) for name, _, now in _pairs(before, after)},
        "dropped": sum(drops.values()),
        "drops": drops,
        "lapped": {name: now.lapped - then.lapped for name, then, now in _pairs(before, after)},
    }


def _pairs(before: StreamTotals, after: StreamTotals) -> list[tuple[str, ConsumerTotals, ConsumerTotals]]:
    rings = ((before.capture, after.capture), (before.bus, after.bus))
    return [
        (name, then.consumers[name], totals) for then, now in rings for name, totals in now.consumers.items()
    ]


def _grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {reason: more for reason, rows in after.items() if (more := rows - before.get(reason, 0))}


class Restarts:
    """How often each worker came back: whoever is seen attached after having been seen gone."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts = dict(counts)
        self._gone: set[str] = set()

    def look(self, totals: StreamTotals) -> None:
        """Compare the workers' states with those of the last look."""
        self.counts["hook"] = max(0, totals.bus.generation - 1)
        for name, consumer in totals.bus.consumers.items():
            self.counts.setdefault(name, 0)
            if consumer.state is ReaderState.GONE:
                self._gone.add(name)
            elif name in self._gone and consumer.state is ReaderState.ATTACHED:
                self._gone.discard(name)
                self.counts[name] += 1


class Timeline:
    """Appends lines to the file. A restarted worker and a new attempt go on in it.

    Args:
        path: the file; what a killed writer left of a line at its end is cut off.
        attempt: number of the attempt.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        self._path, self._attempt = path, attempt
        lines = _mend(path)
        first, last = (lines[0], lines[-1]) if lines else ({}, {})
        self._began = float(first.get("time", time.time()))
        self.restarts = Restarts(last.get("restarts", {}) if last.get("attempt") == attempt else {})
        self._file = path.open("ab", buffering=0)  # what could not be written is not tried again

    def append(self, content: Mapping[str, Any]) -> None:
        """Append a line: `time` (Unix), `t` (seconds since the file's first line), the attempt, `content`."""
        now = time.time()
        line = {
            "t": round(now - self._began, 3),
            "time": round(now, 3),
            "attempt": self._attempt,
            **content,
            "restarts": self.restarts.counts,
        }
        self._file.write(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _mend(path: Path) -> list[dict[str, Any]]:
    """Cut off an unfinished last line; return the lines that hold objects."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [line for text in whole.splitlines() if isinstance(line := _parse(text), dict)]


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
