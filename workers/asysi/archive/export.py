"""Exports an archive to other formats, one file per hook point.

Rows are streamed: only a few chunks are in memory. Files appear atomically: they are written under a
temporary name, synced, then renamed.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from asysi.archive.dataset import MScanDataset, Range
from asysi.archive.format import METRICS_DTYPE, ChunkKind
from asysi.archive.sinks import SUFFIX, Columns, Format, atomic_sink, require
from asysi.bus.packet import RowFlag, document_positions
from asysi.contract.errors import ConfigError
from asysi.model.globs import match_glob

Content = Literal["metrics", "tensors"]
_GROUP_ROWS = 8192
_GROUP_BYTES = 32 << 20
"""Rows and bytes at which a batch is written: a Parquet row group."""
_LINEAGE = ("sample", "sequence", "position", "token")
_PLACE = {*_LINEAGE, "step", "flags", "hook_point", "call_index", "document_position"}
_MEASURED = [name for name in METRICS_DTYPE.names or () if name not in _PLACE]


def export(
    dataset: MScanDataset,
    folder: Path,
    *,
    output_format: Format,
    content: Content,
    points: str = "**",
    steps: Range | None = None,
    samples: Range | None = None,
    dtype: str = "float32",
    progress: Callable[[int], None] = lambda _bytes: None,
) -> list[Path]:
    """Write one file per hook point to `folder`, and return the files.

    Args:
        dataset: the archive.
        folder: created if missing; files of the same name are replaced.
        output_format: `parquet`, `arrow` (IPC file), `safetensors` or `npz`.
        content: `metrics`, the records of every row, or `tensors`, the rows themselves with their lineage.
        points: glob on the paths of hook points: `*` stops at a dot, `**` crosses dots.
        steps: range of steps [from, to).
        samples: range of samples [from, to).
        dtype: type of the exported activations: `float32` or `float16`.
        progress: called with the bytes of each written batch.

    Raises:
        ConfigError: no hook point matches, the archive has no such content, or pyarrow is missing.
        MScanError: the archive is damaged; the partially written file is removed.
    """
    require(output_format)
    chosen = match_points(dataset.points, points)
    if next(dataset.chunks(_KIND[content]), None) is None:
        raise ConfigError(f"the archive holds no {content}, only the other content (archive.tensors was off)")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for point in chosen:
        path = folder / f"{file_name(point)}.{content}{SUFFIX[output_format]}"
        if path in written:
            path = folder / f"{file_name(point)}-{len(written)}.{content}{SUFFIX[output_format]}"
        batches = (
            _metrics(dataset, point, steps, samples)
            if content == "metrics"
            else _tensors(dataset, point, steps, samples, np.dtype(dtype))
        )
        with atomic_sink(path, output_format, {"hook_point": point}) as write:
            for columns in _grouped(batches):
                write(columns)
                progress(_size(columns))
        if path.exists():
            written.append(path)
    return written


_KIND = {"metrics": ChunkKind.METRICS, "tensors": ChunkKind.TENSOR}


def exported_bytes(dataset: MScanDataset, content: Content, points: str) -> int:
    """Return the payload bytes that an export reads, according to the index."""
    return sum(
        int(segment.entries["raw_bytes"][chunk])
        for point in match_points(dataset.points, points)
        for segment, chunk in dataset.chunks(_KIND[content], point)
    )


def match_points(points: list[str], glob: str) -> list[str]:
    """Return the matching points; raises ConfigError if there are none."""
    if chosen := match_glob(glob, points):
        return chosen
    raise ConfigError(
        f"no hook point matches {glob!r}; the archive holds {', '.join(map(repr, points)) or 'none'}"
    )


def file_name(point: str) -> str:
    """Return a safe file name for a hook point's path."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", point).lstrip(".")[:191] or "point"


def _metrics(
    dataset: MScanDataset, point: str, steps: Range | None, samples: Range | None
) -> Iterator[Columns]:
    for records in dataset.records(point, steps=steps, samples=samples):
        yield {
            "step": records["step"],
            **{name: records[name] for name in _LINEAGE},
            "document_position": records["document_position"],
            "call_index": records["call_index"],
            "holdout": (records["flags"] & RowFlag.HOLDOUT) != 0,
            **{name: records[name] for name in _MEASURED},
        }


def _tensors(
    dataset: MScanDataset, point: str, steps: Range | None, samples: Range | None, dtype: np.dtype[np.generic]
) -> Iterator[Columns]:
    for packet, values in dataset.blocks(point, steps=steps, samples=samples):
        rows = len(packet.rows)
        yield {
            "attempt": np.full(rows, packet.header["attempt"], np.uint32),
            "step": np.full(rows, packet.header["step"], np.uint64),
            **{name: packet.rows[name] for name in _LINEAGE},
            "document_position": document_positions(packet.rows),
            "call_index": np.full(rows, packet.header["call_index"], np.uint32),
            "holdout": (packet.rows["flags"] & RowFlag.HOLDOUT) != 0,
            "kind": np.full(rows, packet.header["kind"], np.uint16),
            "activation": values.astype(dtype, copy=False),
        }


def _size(columns: Columns) -> int:
    return sum(column.nbytes for column in columns.values())


def _grouped(batches: Iterator[Columns]) -> Iterator[Columns]:
    """Combine batches into groups large enough for a write."""
    held: list[Columns] = []
    rows = size = 0
    for columns in batches:
        held.append(columns)
        rows += len(columns["step"])
        size += _size(columns)
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield _join(held)
            held, rows, size = [], 0, 0
    if rows:
        yield _join(held)


def _join(batches: list[Columns]) -> Columns:
    return {name: np.concatenate([columns[name] for columns in batches]) for name in batches[0]}
