"""Rows of an archive as JSON objects, for people and for line-based tools."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from asysi.archive.dataset import Range
from asysi.archive.format import METRICS_DTYPE, ChunkKind
from asysi.archive.segment import Segment
from asysi.bus.packet import ActivationPacket, Kind, RowFlag, document_positions

_NUMBERS = [name for name in METRICS_DTYPE.names or () if name not in {"hook_point", "kind", "flags"}]
Row = dict[str, Any]


def rows_of(
    chunks: Iterable[tuple[Segment, int]],
    kind: ChunkKind,
    wanted: Callable[[str], bool],
    *,
    steps: Range | None = None,
    samples: Range | None = None,
) -> Iterator[Row]:
    """Yield the rows in chunks of one kind; non-finite numbers become None.

    Args:
        chunks: segment and number of each chunk, from a dataset or a follower.
        kind: METRICS or TENSOR.
        wanted: whether a hook point is selected.
        steps: range of steps [from, to).
        samples: range of rows of the input [from, to).

    Raises:
        MScanError: a chunk is damaged.
    """
    for segment, chunk in chunks:
        entry = segment.entries[chunk]
        point = segment.points.get(int(entry["point"]))
        if entry["kind"] != kind or point is None or not wanted(point.path):
            continue
        found = _metrics(segment, chunk) if kind is ChunkKind.METRICS else _tensors(segment, chunk)
        for row in found:
            if _in(row["step"], steps) and _in(row["sample"], samples):
                yield {"attempt": segment.attempt, "hook_point": point.path, **row}


def _in(value: int, bounds: Range | None) -> bool:
    return bounds is None or bounds[0] <= value < bounds[1]


def _metrics(segment: Segment, chunk: int) -> Iterator[Row]:
    for record in segment.records(chunk):
        row: Row = {"kind": _kind(record["kind"]), "holdout": bool(int(record["flags"]) & RowFlag.HOLDOUT)}
        for name in _NUMBERS:
            row[name] = _plain(record[name].item())
        yield row


def _tensors(segment: Segment, chunk: int) -> Iterator[Row]:
    for packet in segment.packets(chunk):
        yield from _rows(packet)


def _rows(packet: ActivationPacket) -> Iterator[Row]:
    header, places = packet.header, document_positions(packet.rows)
    for row, place, values in zip(packet.rows, places, packet.to_float32(), strict=True):
        yield {
            "kind": _kind(header["kind"]),
            "holdout": bool(int(row["flags"]) & RowFlag.HOLDOUT),
            **{name: int(row[name]) for name in ("sample", "sequence", "position", "token")},
            "step": int(header["step"]),
            "call_index": int(header["call_index"]),
            "document_position": int(place),
            "activation": [_plain(value) for value in values.tolist()],
        }


def _kind(number: np.integer[Any]) -> str | int:
    return Kind(int(number)).name.lower() if int(number) in set(Kind) else int(number)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
