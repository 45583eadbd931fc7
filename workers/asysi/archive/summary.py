"""Summary tables of an archive."""

from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from asysi.archive.dataset import MScanDataset
from asysi.archive.format import ChunkKind, CountsFlag, chunk_size
from asysi.archive.retired import read_retired
from asysi.archive.segment import Segment
from asysi.contract.runtime import ARCHIVE_FOLDER

_ROWS = (ChunkKind.METRICS, ChunkKind.TENSOR)


def segments_table(dataset: MScanDataset) -> Table:
    """Return one row per segment: time, size, and state."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("attempt", "segment"):
        table.add_column(name, justify="right")
    table.add_column("created (UTC)", no_wrap=True)
    table.add_column("closed", no_wrap=True)
    for name in ("chunks", "rows", "steps", "size"):
        table.add_column(name, justify="right")
    for segment in dataset.segments:
        entries = segment.entries
        data = entries[entries["kind"] != ChunkKind.POINTS]
        table.add_row(
            str(segment.attempt),
            str(segment.number),
            plain(str(segment.metadata.get("created", "?"))[:19].replace("T", " ")),
            _state(segment),
            f"{len(entries):,}",
            f"{max(int(entries['rows'][entries['kind'] == kind].sum()) for kind in _ROWS):,}",
            f"{data['step_first'].min()}–{data['step_last'].max()}" if len(data) else "",
            _bytes(len(segment.data)),
        )
    return table


def points_table(dataset: MScanDataset) -> Table:
    """Return one row per hook point: rows, steps, samples, stored bytes."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("hook point", overflow="fold")
    for name in ("rows", "width", "steps", "samples", "size", "bytes/row"):
        table.add_column(name, justify="right")
    for path in dataset.points:
        chunks = [segment.entries[chunk] for kind in _ROWS for segment, chunk in dataset.chunks(kind, path)]
        size = sum(chunk_size(chunk) for chunk in chunks)
        rows = {kind: sum(int(c["rows"]) for c in chunks if c["kind"] == kind) for kind in ChunkKind}
        most = max(rows.values())
        widths = {p.width for segment in dataset.segments for p in segment.points.values() if p.path == path}
        table.add_row(
            plain(path),
            f"{most:,}",
            str(max(widths) or "?"),
            _span("step", chunks),
            _span("sample", chunks),
            _bytes(size),
            f"{size / most:,.0f}" if most else "",
        )
    return table


def retired_lines(path: Path) -> list[str]:
    """Return a sentence about segments deleted to stay within a disk budget; empty if there are none."""
    found = [one for folder in (path, path / ARCHIVE_FOLDER, path.parent) for one in read_retired(folder)]
    if not found:
        return []
    rows = sum(sum(one["rows"].values()) for one in found)
    size = _bytes(sum(one["bytes"] for one in found))
    count = sum(one["segments"] for one in found)
    stored = sum(one["uploaded"] for one in found)
    where = f"; {stored:,} of them are at output.uri" if stored else ""
    return [
        f"{count:,} older segments ({rows:,} rows, {size}) were deleted to keep to archive.maxSize{where}"
    ]


def plain(text: str) -> Text:
    """Sanitise untrusted text from an archive: no markup, no control characters."""
    return Text("".join(c if c.isprintable() else "�" for c in text))


def _span(name: str, chunks: list[np.void]) -> str:
    if not chunks:
        return ""
    return f"{min(int(c[f'{name}_first']) for c in chunks)}–{max(int(c[f'{name}_last']) for c in chunks)}"


def _state(segment: Segment) -> str:
    if segment.counts is None:
        return "open or torn"
    if int(segment.counts["flags"][0]) & CountsFlag.RECOVERED:
        return "recovered"
    closed = np.datetime64(int(segment.counts["closed_ns"][0]) % 2**63, "ns")
    return str(closed)[11:19]


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
