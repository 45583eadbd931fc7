"""The segments of one attempt: opened on the first write, closed when full, never reopened."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from asysi.archive.codec import Compression
from asysi.archive.errors import MScanError
from asysi.archive.measure import measure
from asysi.archive.recover import recover
from asysi.archive.retired import durable_rows, read_retired, retire, retired_rows
from asysi.archive.segment import Segment, open_segment
from asysi.archive.writer import MScanWriter, SeqInfo
from asysi.bus.packet import ActivationPacket

log = logging.getLogger("asysi")


def segment_name(attempt: int, segment: int) -> str:
    """Return the file name of a segment."""
    return f"attempt-{attempt:04d}-segment-{segment:04d}.mscan"


@dataclass
class Series:
    """Writes packets, and the metrics of their rows, to consecutive segments."""

    folder: Path
    attempt: int
    metadata: Mapping[str, object]
    """Metadata for each segment's header."""
    points: Sequence[tuple[str, str | None, int]] = ()
    """Hook points known beforehand: path, alias, width."""
    tensors: bool = True
    """Whether to store payloads in addition to the metrics of their rows."""
    compression: Compression = "none"
    rotate: int = 1 << 30
    """Size in bytes at which a segment is closed and the next one started."""
    rotate_seconds: float | None = None
    """Age in seconds at which a non-empty segment is closed; None means only its size counts."""
    budget: int | None = None
    """Maximum bytes of the folder's segments; above it the oldest closed ones are deleted. None: no limit."""
    number: int = 0
    """Number of the next segment."""
    retired: int = 0
    """Rows deleted since the start to stay within the budget."""
    uploaded: Callable[[], Set[str]] | None = None
    """Returns the names of the segments that a store holds; None: there is no store."""
    clock: Callable[[], float] = time.monotonic
    closed_bytes: int = 0
    rows: int = 0
    """Rows appended since the start."""
    packets: int = 0
    _writer: MScanWriter | None = field(default=None, repr=False)
    _begun: float = field(default=0.0, repr=False)

    @property
    def size(self) -> int:
        """Bytes written since the start, excluding buffered ones."""
        return self.closed_bytes + (self._writer.size if self._writer else 0)

    @property
    def buffered(self) -> int:
        """Buffered payload bytes of unfinished chunks."""
        return self._writer.buffered if self._writer else 0

    @property
    def full(self) -> bool:
        """Whether the segment is large or old enough to be closed."""
        if self._writer is None:
            return False
        old = self.rotate_seconds is not None and self.clock() - self._begun >= self.rotate_seconds
        return old or self._writer.size + self._writer.buffered >= self.rotate

    def append(self, packet: ActivationPacket) -> None:
        """Append a packet; its bytes are copied. It is durable after the next `flush` or `close`."""
        writer = self._writer = self._writer or self._begin()
        sequence, width = int(packet.header["sequence"]), int(packet.header["width"])
        writer.append_records(measure(packet), SeqInfo(packet.point, packet.shard, sequence, sequence, width))
        if self.tensors:
            writer.append_tensor(packet, packet.shard)
        self.rows += len(packet.rows)
        self.packets += 1

    def flush(self) -> None:
        """Sync everything appended so far to storage."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> bool:
        """Close the open segment, if any; return whether there was one."""
        if self._writer is None:
            return False
        self._writer.close()
        self.closed_bytes += self._writer.size
        self._writer = None
        if self.budget is not None:
            self._keep_to(self.budget)
        return True

    def _keep_to(self, budget: int) -> None:
        there = self.uploaded() if self.uploaded else frozenset()
        rows, gone = retire(self.folder, budget, tensors=self.tensors, uploaded=there)
        if rows.total() and gone:
            before = ", before they were uploaded," if self.uploaded else ""
            log.warning(
                "the oldest segments, %d rows,%s were deleted to keep to archive.maxSize",
                rows.total(),
                before,
            )
        self.retired += rows.total()

    def _begin(self) -> MScanWriter:
        path = self.folder / segment_name(self.attempt, self.number)
        writer = MScanWriter(
            path,
            self.metadata,
            points=self.points,
            compression=self.compression,
            attempt=self.attempt,
            segment=self.number,
        )
        self.number += 1
        self._begun = self.clock()
        return writer


def resume(folder: Path, attempt: int, *, tensors: bool) -> tuple[int, Counter[str]]:
    """Repair the segments that a killed archiver left in this attempt or earlier ones.

    The footer of torn segments is rebuilt; a segment without intact data is renamed to `….damaged`.

    Args:
        folder: the archive.
        attempt: number of the attempt.
        tensors: whether a row is complete only with its payload.

    Returns:
        The number of the next segment, and the durable rows per hook point, including deleted ones.
    """
    rows: Counter[str] = Counter()
    number = 0
    for leftover in (*folder.glob(".*.new"), *folder.glob(".*.recover")):
        leftover.unlink()
    rows += retired_rows(folder, attempt)
    for one in read_retired(folder):
        if one["attempt"] == attempt:
            number = max(number, int(one["name"].split("-segment-")[1].split(".")[0]) + 1)
    for path in sorted(folder.glob("attempt-*-segment-*.mscan")):
        if int(path.name.split("-")[1]) < attempt:  # if the whole pod was killed, they are still unrepaired
            _mended(path)
    for path in sorted(folder.glob(f"attempt-{attempt:04d}-segment-*.mscan*")):
        number = max(number, int(path.name.split("-segment-")[1].split(".")[0]) + 1)
        if path.suffix == ".mscan" and (segment := _mended(path)):
            rows += durable_rows(segment, tensors=tensors)
    return number, rows


def _mended(path: Path) -> Segment | None:
    try:
        return open_segment(path)
    except MScanError as error:
        log.warning("%s", error)
    try:
        done = recover(path)
    except MScanError:
        aside = path.with_name(f"{path.name}.damaged")
        path.rename(aside)
        log.error("%s holds nothing that can be read: set aside as %s", path, aside.name)  # noqa: TRY400
        return None
    log.info("%s recovered: %d chunks kept, %d left out", path, done.chunks, len(done.damage))
    return open_segment(path)
