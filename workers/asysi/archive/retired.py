"""Segments deleted to stay within a disk budget, oldest closed first, and the rows in them.

`archive/retired.json` is written before a segment is deleted, so that no row disappears without a record.
"""

import json
from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

from asysi.archive.errors import MScanError
from asysi.archive.format import ChunkKind
from asysi.archive.segment import Segment, open_segment, parse_segment_name, segment_order
from asysi.files import sync, write_atomic

RETIRED_FILE = "retired.json"


def durable_rows(segment: Segment, *, tensors: bool) -> Counter[str]:
    """Return the rows per hook point that a segment holds with metrics and, with `tensors`, payload."""
    found: dict[ChunkKind, Counter[str]] = {ChunkKind.METRICS: Counter(), ChunkKind.TENSOR: Counter()}
    for entry in segment.entries:
        if (kind := ChunkKind(int(entry["kind"]))) in found:
            found[kind][segment.points[int(entry["point"])].path] += int(entry["rows"])
    return found[ChunkKind.METRICS] & found[ChunkKind.TENSOR] if tensors else found[ChunkKind.METRICS]


def read_retired(folder: Path) -> list[dict[str, Any]]:
    """Return what was deleted of each attempt, oldest first.

    Each entry has `attempt`, `name` of the segment deleted last, the number of `segments`, how many of them
    the store of `output.uri` holds (`uploaded`), their `bytes`, and their `rows` by hook point.

    Raises:
        MScanError: the record cannot be read.
    """
    file = folder / RETIRED_FILE
    if not file.exists():
        return []
    try:
        found = json.loads(file.read_text())["segments"]
        return _by_attempt(
            {
                "name": _name(one["name"]),
                "attempt": int(one["attempt"]),
                "segments": int(one.get("segments", 1)),  # earlier versions wrote an entry for each
                "uploaded": int(one.get("uploaded", 0)),
                "bytes": int(one["bytes"]),
                "rows": {str(point): int(rows) for point, rows in one["rows"].items()},
            }
            for one in found
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MScanError(f"the record of deleted segments cannot be read: {error}", file) from None


def _by_attempt(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry for each attempt, so that the record does not grow with what was deleted.

    Only the last name of an attempt is kept: the files of all before it are gone.
    """
    merged: dict[int, dict[str, Any]] = {}
    for one in entries:
        before = merged.get(one["attempt"], {"segments": 0, "uploaded": 0, "bytes": 0, "rows": {}})
        merged[one["attempt"]] = {
            **one,
            "segments": before["segments"] + one["segments"],
            "uploaded": before["uploaded"] + one["uploaded"],
            "bytes": before["bytes"] + one["bytes"],
            "rows": dict(Counter(before["rows"]) + Counter(one["rows"])),
        }
    return list(merged.values())


def _name(text: object) -> str:
    if not isinstance(text, str) or parse_segment_name(text) is None:
        raise ValueError(f"{text!r:.80} is not the name of a segment")
    return text


def retired_rows(folder: Path, attempt: int) -> Counter[str]:
    """Return the deleted rows of an attempt by hook point, after completing an interrupted deletion."""
    rows: Counter[str] = Counter()
    for one in read_retired(folder):
        (folder / one["name"]).unlink(missing_ok=True)
        if one["attempt"] == attempt:
            rows += Counter(one["rows"])
    return rows


def retire(
    folder: Path, budget: int, *, tensors: bool, uploaded: Set[str] = frozenset()
) -> tuple[Counter[str], int]:
    """Delete the oldest closed segments until the archive fits in `budget` bytes; always keep the newest.

    Args:
        folder: the archive.
        budget: bytes.
        tensors: whether a row is complete only with its payload.
        uploaded: names of the segments that a store holds.

    Returns:
        The deleted rows by hook point, and how many of the deleted segments no store holds.

    Raises:
        OSError: the storage failed.
    """
    names = folder.glob("attempt-*-segment-*.mscan")
    segments = sorted((path for path in names if parse_segment_name(path.name)), key=segment_order)
    sizes = {path: path.stat().st_size for path in segments}
    rows: Counter[str] = Counter()
    gone = 0
    for path in segments[:-1]:
        if sum(sizes.values()) <= budget:
            break
        try:
            segment = open_segment(path)
        except MScanError:
            continue  # torn or damaged: its content is unknown, and `recover` may need it
        held = durable_rows(segment, tensors=tensors)
        done = {"name": path.name, "attempt": segment.attempt, "segments": 1}
        done["uploaded"] = int(path.name in uploaded)
        done |= {"bytes": sizes.pop(path), "rows": dict(held)}
        record = {"segments": _by_attempt([*read_retired(folder), done])}
        write_atomic(folder / RETIRED_FILE, json.dumps(record))
        path.unlink()
        sync(folder)
        rows += held
        gone += path.name not in uploaded
    return rows, gone
