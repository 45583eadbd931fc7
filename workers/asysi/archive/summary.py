"""Tables of what an archive holds."""

from datetime import UTC, datetime

import numpy as np
from rich.table import Table

from asysi.archive.dataset import MScanDataset
from asysi.archive.format import ChunkKind, CountsFlag, chunk_size
from asysi.archive.segment import Segment


def segments_table(dataset: MScanDataset) -> Table:
    """Return a row a segment: when, how much, whether it is whole."""
    table = Table(title="segments")
    for name in ("segment", "created", "state"):
        table.add_column(name, overflow="fold")
    for name in ("chunks", "packets", "rows", "steps", "size"):
        table.add_column(name, justify="right")
    for segment in dataset.segments:
        entries = segment.entries
        data = entries[entries["kind"] != ChunkKind.POINTS]
        table.add_row(
            segment.path.name,
            str(segment.metadata.get("created", "?"))[:19],
            _state(segment),
            f"{len(entries):,}",
            f"{int(entries['records'][entries['kind'] == ChunkKind.TENSOR].sum()):,}",
            f"{int(entries['rows'][entries['kind'] == ChunkKind.METRICS].sum()):,}",
            f"{data['step_first'].min()}–{data['step_last'].max()}" if len(data) else "",
            _bytes(len(segment.data)),
        )
    return table


def points_table(dataset: MScanDataset) -> Table:
    """Return a row a hook point: rows, steps, samples, stored bytes."""
    table = Table(title="hook points")
    table.add_column("hook point", overflow="fold")
    for name in ("rows", "width", "steps", "samples", "size", "bytes/row"):
        table.add_column(name, justify="right")
    for path in dataset.points:
        chunks = [
            segment.entries[chunk]
            for kind in (ChunkKind.METRICS, ChunkKind.TENSOR)
            for segment, chunk in dataset.chunks(kind, path)
        ]
        size = sum(chunk_size(chunk) for chunk in chunks)
        rows = {kind: sum(int(c["rows"]) for c in chunks if c["kind"] == kind) for kind in ChunkKind}
        most = max(rows.values())
        widths = {p.width for segment in dataset.segments for p in segment.points.values() if p.path == path}
        table.add_row(
            path,
            f"{most:,}",
            str(max(widths) or "?"),
            _span("step", chunks),
            _span("sample", chunks),
            _bytes(size),
            f"{size / most:,.0f}" if most else "",
        )
    return table


def _span(name: str, chunks: list[np.void]) -> str:
    if not chunks:
        return ""
    return f"{min(int(c[f'{name}_first']) for c in chunks)}–{max(int(c[f'{name}_last']) for c in chunks)}"


def _state(segment: Segment) -> str:
    if segment.counts is None:
        return "open or torn"
    flags, closed = int(segment.counts["flags"][0]), int(segment.counts["closed_ns"][0])
    word = "recovered" if flags & CountsFlag.RECOVERED else "closed"
    return f"{word} {datetime.fromtimestamp(closed / 1e9, UTC):%H:%M:%S}"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
