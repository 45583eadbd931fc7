"""Writes `timeline.jsonl`: one line per second about the state of the run."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asysi.bus.states import ReaderState
from asysi.hook.totals import ConsumerTotals, StreamTotals


def timeline_entry(before: StreamTotals, after: StreamTotals, rate: float) -> dict[str, Any]:
    """Return the content of a line: the changes from `before` to `after`.

    `offered`, `kept` and `consumed` are rows per second; `dropped`, `drops` and `lapped` are rows in the
    interval; `lag` is the unread share of a ring at its end. Rows are summed over all hook points.
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
    """Counts the restarts of each worker: transitions from gone to attached."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts = dict(counts)
        self._gone: set[str] = set()

    def observe(self, totals: StreamTotals) -> None:
        """Compare the workers' states with those of the previous call."""
        self.counts["hook"] = max(0, totals.bus.generation - 1)
        for name, consumer in totals.bus.consumers.items():
            self.counts.setdefault(name, 0)
            if consumer.state is ReaderState.GONE:
                self._gone.add(name)
            elif name in self._gone and consumer.state is ReaderState.ATTACHED:
                self._gone.discard(name)
                self.counts[name] += 1


class Timeline:
    """Appends lines to the file; restarted workers and new attempts continue it.

    Args:
        path: the file; a partial last line left by a killed writer is removed.
        attempt: number of the attempt.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        self._path, self._attempt = path, attempt
        lines = _mend(path)
        first, last = (lines[0], lines[-1]) if lines else ({}, {})
        self._began = float(first.get("time", time.time()))
        self.restarts = Restarts(last.get("restarts", {}) if last.get("attempt") == attempt else {})
        self._file = path.open("ab", buffering=0)  # unbuffered: failed writes are not retried

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
    """Truncate an incomplete last line; return the lines that contain JSON objects."""
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
