"""Joins segments into fewer and larger ones; every packet and record keeps its bytes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from asysi.archive.codec import Compression
from asysi.archive.dataset import MScanDataset
from asysi.archive.format import ChunkKind
from asysi.archive.segment import Segment
from asysi.archive.series import segment_name
from asysi.archive.writer import MScanWriter, SeqInfo
from asysi.contract.errors import ConfigError


def merge(
    datasets: Sequence[MScanDataset],
    folder: Path,
    *,
    rotate: int = 1 << 30,
    compression: Compression = "none",
    progress: Callable[[int], None] = lambda _bytes: None,
) -> list[Path]:
    """Write the segments of archives into a new folder, each attempt separately, and return the files.

    Args:
        datasets: archives of one experiment.
        folder: created if missing; it must not contain segments yet.
        rotate: size in bytes at which a segment is closed and the next one started.
        compression: compression of the written chunks.
        progress: called with the payload bytes of each copied chunk.

    Raises:
        ConfigError: the archives belong to several experiments or contain a segment twice, or the folder
            already contains segments.
        MScanError: a segment is damaged; the files written so far are removed.
    """
    segments = sorted((s for d in datasets for s in d.segments), key=lambda s: (s.attempt, s.number))
    _check(segments, folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = _Target(folder, rotate, compression)
    try:
        for _, group in groupby(segments, key=lambda segment: segment.attempt):
            target.take(list(group), progress)
    except BaseException:
        for file in target.files:
            file.unlink(missing_ok=True)
        raise
    return target.files


def _check(segments: list[Segment], folder: Path) -> None:
    names = {str(segment.metadata.get("experiment")) for segment in segments}
    if len(names) > 1:
        raise ConfigError(f"the segments are of several experiments ({', '.join(sorted(names))}): merge one")
    seen: dict[tuple[int, int], Path] = {}
    for segment in segments:
        place = (segment.attempt, segment.number)
        if place in seen:
            raise ConfigError(
                f"{seen[place]} and {segment.path} are both segment {place[1]} of attempt {place[0]}: give "
                "each archive once"
            )
        seen[place] = segment.path
    if any(folder.glob("*.mscan")):
        raise ConfigError(f"{folder} already holds segments: choose another folder")


@dataclass
class _Target:
    """Destination of the merged segments."""

    folder: Path
    rotate: int
    compression: Compression
    files: list[Path] = field(default_factory=list)

    def segment(self, source: Segment, metadata: Mapping[str, object], number: int) -> MScanWriter:
        """Return the writer of the next segment, which starts with the hook points of the source segment."""
        path = self.folder / segment_name(source.attempt, number)
        known = sorted(source.points.values(), key=lambda point: point.index)
        writer = MScanWriter(
            path,
            metadata,
            points=[(point.path, point.alias, point.width) for point in known],
            compression=self.compression,
            attempt=source.attempt,
            segment=number,
        )
        self.files.append(path)
        return writer

    def take(self, segments: list[Segment], progress: Callable[[int], None]) -> None:
        """Copy the segments of one attempt."""
        own = {"created", "hook_points"}
        metadata = {name: value for name, value in segments[0].metadata.items() if name not in own}
        metadata["merged"] = [segment.path.name for segment in segments]
        chunks = ((segment, chunk) for segment in segments for chunk in range(len(segment.entries)))
        writer: MScanWriter | None = None
        number = 0
        with ExitStack() as stack:
            for segment, chunk in chunks:
                if writer is None or writer.size + writer.buffered >= self.rotate:
                    stack.close()
                    writer = stack.enter_context(self.segment(segment, metadata, number))
                    number += 1
                _copy(segment, chunk, writer)
                progress(int(segment.entries["raw_bytes"][chunk]))


def _copy(segment: Segment, chunk: int, writer: MScanWriter) -> None:
    entry = segment.entries[chunk]
    if entry["kind"] == ChunkKind.POINTS:
        return
    shard = int(entry["shard"])
    if entry["kind"] == ChunkKind.TENSOR:
        for packet in segment.packets(chunk):
            writer.append_tensor(packet, shard)
        return
    point = segment.points[int(entry["point"])]
    first, last = int(entry["sequence_first"]), int(entry["sequence_last"])
    writer.append_records(segment.records(chunk), SeqInfo(point.path, shard, first, last, point.width))
