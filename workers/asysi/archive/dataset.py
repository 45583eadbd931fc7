"""Reads an archive: all segments of a folder as one, lazily, by hook point, step and sample."""

import heapq
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asysi.archive.errors import MScanError
from asysi.archive.format import METRICS_DTYPE, ChunkKind
from asysi.archive.segment import Segment, open_segment, segment_order
from asysi.bus.packet import ActivationPacket
from asysi.contract.runtime import ARCHIVE_FOLDER
from asysi.locations import is_remote

Range = tuple[int, int]
"""Half-open interval [from, to)."""


class Address(NamedTuple):
    """What identifies a packet within an experiment."""

    attempt: int
    shard: int
    sequence: int


def find_segments(path: Path) -> list[Path]:
    """Return the segments at a path (file, folder, or output folder with `archive/`) in order of writing.

    Raises:
        FileNotFoundError: there are none.
    """
    if path.is_file():
        return [path]
    for folder in (path, path / ARCHIVE_FOLDER):
        if found := sorted(folder.glob("*.mscan"), key=segment_order):
            return found
    raise FileNotFoundError(f"{path} holds no .mscan segment")


def open_segments(path: str | Path, *, scan: bool = False) -> list[Segment]:
    """Return the segments of a path or of an address in a store; see `MScanDataset`."""
    if isinstance(path, str) and is_remote(path):
        from asysi.archive.remote import open_remote  # noqa: PLC0415 - fsspec takes its time

        return open_remote(path)
    return [open_segment(file, scan=scan) for file in find_segments(Path(path))]


class MScanDataset:
    """The segments of an experiment, ordered by attempt and number.

    Args:
        path: a segment, a folder of segments, or an output folder with `archive/` in it; or the address of
            one of these in an fsspec store, like `s3://bucket/run`, which is read by ranges.
        scan: whether segments without a footer (torn, or still being written) are read up to their last
            intact chunk; otherwise they are errors.
        verify: whether payloads are checked against their checksums when read. Without it, bits that flipped
            on disk are read as data.

    Raises:
        FileNotFoundError: there is no segment.
        VersionError, TornError, CorruptError: a segment cannot be read. Any method may raise the same for a
            damaged chunk.
    """

    def __init__(self, path: str | Path, *, scan: bool = False, verify: bool = True) -> None:
        segments = open_segments(path, scan=scan)
        for segment in segments:
            segment.verify = verify
        self.segments = sorted(
            segments, key=lambda segment: (segment.attempt, segment.number, segment.path.name)
        )
        """Segments in the order in which they were written."""
        paths = [s.points[index].path for s in self.segments for index in sorted(s.points)]
        self.points = list(dict.fromkeys(paths))
        """Unique paths of the hook points; `metrics` refers to them by index."""

    def chunks(
        self,
        kind: ChunkKind,
        point: str | None = None,
        *,
        steps: Range | None = None,
        samples: Range | None = None,
    ) -> Iterator[tuple[Segment, int]]:
        """Yield segment and number of the chunks that may contain matching rows, without reading them."""
        for segment in self.segments:
            entries = segment.entries
            chosen = entries["kind"] == kind
            if point is not None:
                indices = [p.index for p in segment.points.values() if p.path == point]
                chosen &= np.isin(entries["point"], indices)
            for name, bounds in (("step", steps), ("sample", samples)):
                if bounds is not None:
                    chosen &= (entries[f"{name}_last"] >= bounds[0]) & (entries[f"{name}_first"] < bounds[1])
            for chunk in np.flatnonzero(chosen):
                yield segment, int(chunk)

    def records(
        self, point: str | None = None, *, steps: Range | None = None, samples: Range | None = None
    ) -> Iterator[NDArray[np.void]]:
        """Yield METRICS records per chunk, [n] of METRICS_DTYPE; `hook_point` is an index into `points`."""
        place = {path: index for index, path in enumerate(self.points)}
        for segment, chunk in self.chunks(ChunkKind.METRICS, point, steps=steps, samples=samples):
            records = segment.records(chunk)
            if steps is not None or samples is not None:
                records = records[_inside(records["step"], steps) & _inside(records["sample"], samples)]
            here = int(segment.entries["point"][chunk])
            if (index := place[segment.points[here].path]) != here:
                records = records.copy()
                records["hook_point"] = index
            yield records

    def metrics(
        self, point: str | None = None, *, steps: Range | None = None, samples: Range | None = None
    ) -> NDArray[np.void]:
        """Return the METRICS records of a hook point, or of all, as one array [n] of METRICS_DTYPE."""
        parts = list(self.records(point, steps=steps, samples=samples))
        return np.concatenate(parts) if parts else np.zeros(0, METRICS_DTYPE)

    def packets(
        self, point: str | None = None, *, steps: Range | None = None, samples: Range | None = None
    ) -> Iterator[ActivationPacket]:
        """Yield complete packets chunk by chunk; with `samples`, those with a matching row."""
        for segment, chunk in self.chunks(ChunkKind.TENSOR, point, steps=steps, samples=samples):
            for packet in segment.packets(chunk):
                if not _within(int(packet.header["step"]), steps):
                    continue
                if samples is None or _inside(packet.rows["sample"], samples).any():
                    yield packet

    def tensors(
        self, point: str, *, steps: Range | None = None, samples: Range | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the rows of a hook point as float32 blocks [rows, width], dequantised."""
        for _, block in self.blocks(point, steps=steps, samples=samples):
            yield block

    def blocks(
        self, point: str, *, steps: Range | None = None, samples: Range | None = None
    ) -> Iterator[tuple[ActivationPacket, NDArray[np.float32]]]:
        """Yield each packet reduced to the matching rows, together with these rows as float32."""
        for packet in self.packets(point, steps=steps, samples=samples):
            chosen = cut(packet, _inside(packet.rows["sample"], samples))
            yield chosen, chosen.to_float32()

    def addresses(self) -> set[Address]:
        """Return the address of every packet; every payload is checked on the way."""
        return set(_whereabouts(self))

    def ordered(self) -> Iterator[tuple[Address, ActivationPacket]]:
        """Yield all packets by attempt, shard and sequence: the order in which each shard published them."""
        streams: dict[tuple[int, int], dict[str, list[tuple[Segment, int]]]] = {}
        for segment, chunk in self.chunks(ChunkKind.TENSOR):
            entry = segment.entries[chunk]
            of_points = streams.setdefault((segment.attempt, int(entry["shard"])), {})
            of_points.setdefault(segment.points[int(entry["point"])].path, []).append((segment, chunk))
        for (attempt, shard), of_points in sorted(streams.items(), key=itemgetter(0)):
            for packet in heapq.merge(*map(_stream, of_points.values()), key=_sequence):
                yield Address(attempt, shard, _sequence(packet)), packet


def replay(dataset: MScanDataset, log: Iterable[tuple[int, int, int]]) -> Iterator[ActivationPacket]:
    """Yield the packets that a consumer logged, in log order, bit for bit as it saw them.

    Args:
        dataset: the archive of the same experiment.
        log: (attempt, shard, sequence) of each packet consumed.

    Raises:
        MScanError: a packet of the log is not in the archive.
    """
    where = _whereabouts(dataset)
    held: dict[tuple[int, int], dict[int, ActivationPacket]] = {}
    for address in log:
        place = where.get(Address(*address))
        if place is None:
            raise MScanError(f"the archive holds no packet (attempt, shard, sequence) = {tuple(address)}")
        if place not in held:
            if len(held) >= _HELD_CHUNKS:
                del held[next(iter(held))]
            number, chunk = place
            held[place] = {_sequence(p): p for p in dataset.segments[number].packets(chunk)}
        else:
            held[place] = held.pop(place)  # LRU: move to the end
        yield held[place][address[2]]


_HELD_CHUNKS = 64
"""Decompressed chunks cached by `replay`: at least one per hook point of a typical experiment."""


def _whereabouts(dataset: MScanDataset) -> dict[Address, tuple[int, int]]:
    """Return segment and chunk of every packet."""
    where: dict[Address, tuple[int, int]] = {}
    for number, segment in enumerate(dataset.segments):
        for chunk in np.flatnonzero(segment.entries["kind"] == ChunkKind.TENSOR):
            shard = int(segment.entries["shard"][chunk])
            for packet in segment.packets(int(chunk)):
                where[Address(segment.attempt, shard, _sequence(packet))] = number, int(chunk)
    return where


def _stream(chunks: list[tuple[Segment, int]]) -> Iterator[ActivationPacket]:
    for segment, chunk in chunks:
        yield from segment.packets(chunk)


def _sequence(packet: ActivationPacket) -> int:
    return int(packet.header["sequence"])


def _within(value: int, bounds: Range | None) -> bool:
    return bounds is None or bounds[0] <= value < bounds[1]


def _inside(values: NDArray[Any], bounds: Range | None) -> NDArray[np.bool_]:
    if bounds is None:
        return np.ones(len(values), np.bool_)
    return np.asarray((values >= bounds[0]) & (values < bounds[1]))


def cut(packet: ActivationPacket, keep: NDArray[np.bool_]) -> ActivationPacket:
    """Return the packet with only the rows in `keep`; its header still describes the complete packet."""
    return packet if keep.all() else packet.select(keep)
