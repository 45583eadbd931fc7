"""Writes a segment: append, flush, close. Flushed data survives a kill and a power loss."""

import ctypes
import errno
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from asysi.archive.background import JobQueue
from asysi.archive.codec import Bytes, Compression, pack
from asysi.archive.errors import MScanError
from asysi.archive.format import (
    CHUNK_BYTES,
    CHUNK_DTYPE,
    CHUNK_MAGIC,
    FILE_MAGIC,
    HEADER_BYTES,
    HEADER_DTYPE,
    MAX_CHUNK_BYTES,
    MAX_POINTS,
    METRICS_DTYPE,
    MINOR,
    VERSION,
    ChunkKind,
    SegmentPoint,
    checksum,
    final_counts,
    pack_footer,
    pack_json,
    padding,
    points_json,
    record,
)
from asysi.bus.packet import ActivationPacket, Kind, account_name, payload_at
from asysi.files import sync

_SPARE_BUFFERS = 48
"""Enough for all queued chunks and some being filled, so that no buffer is allocated twice."""
_WAITING_BYTES = 32 << 20
"""Maximum payload bytes queued for storage; above it `append` blocks."""
_WRITEBACK_BYTES = 8 << 20
"""Bytes after which writeback is started in the kernel, so that `flush` has little left to wait for."""
_NOT_REWRITABLE = {errno.ESPIPE, errno.EPERM, errno.EOPNOTSUPP, errno.EROFS}


class SeqInfo(NamedTuple):
    """Origin of records. As a tuple, the fields come in this order; as a mapping, they have these names."""

    point: str
    """Exact path of the hook point."""
    shard: int = 0
    first: int = 0
    """First sequence number of the shard that they were computed from."""
    last: int = 0
    """Last sequence number."""
    width: int = 0
    """Elements per row, 0 if unknown."""

    @classmethod
    def of(cls, value: "Mapping[str, Any] | tuple[Any, ...]") -> Self:
        """Return the origin that a tuple or a mapping stands for; only `point` must be given.

        Raises:
            ValueError: a field is unknown or missing, there are too many, or one has another type.
        """
        if isinstance(value, Mapping):
            if unknown := [repr(key) for key in value if key not in cls._fields]:
                raise ValueError(f"seq_info: unknown key {', '.join(unknown)}; keys are {_FIELDS}")
            given = dict(value)
        elif isinstance(value, tuple) and len(value) <= len(cls._fields):
            given = dict(zip(cls._fields, value, strict=False))
        else:
            raise ValueError(f"seq_info is {value!r:.80}, expected a mapping or a tuple of {_FIELDS}")
        if "point" not in given:
            raise ValueError("seq_info: the key 'point' is missing: the exact path of the hook point")
        point = given.pop("point")
        if not isinstance(point, str):
            raise ValueError(f"seq_info: point is {point!r:.80}, expected text")  # noqa: TRY004 - like the others
        for key, part in given.items():
            if not isinstance(part, (int, np.integer)) or isinstance(part, bool) or part < 0:
                raise ValueError(f"seq_info: {key} is {part!r:.80}, expected an integer, 0 or more")
        return cls(point, **{key: int(part) for key, part in given.items()})


_FIELDS = ", ".join(SeqInfo._fields)


@dataclass
class _OpenSegment:
    """The open chunk of one kind and hook point."""

    kind: ChunkKind
    point: int
    shard: int
    buffer: memoryview
    """Room for the payload, writable."""
    element: int = 0
    """Bytes of an element, for the shuffle before compression."""
    size: int = 0
    """Number of filled bytes."""
    records: int = 0
    rows: int = 0
    steps: tuple[int, int] = (2**64 - 1, 0)
    samples: tuple[int, int] = (2**64 - 1, 0)
    sequences: tuple[int, int] = (2**64 - 1, 0)

    def add(self, part: Bytes) -> None:
        """Append bytes."""
        end = self.size + len(part)
        if end > len(self.buffer):
            grown = memoryview(bytearray(end))
            grown[: self.size] = self.payload
            self.buffer = grown
        self.buffer[self.size : end] = part
        self.size = end

    @property
    def payload(self) -> memoryview:
        """The used part of the buffer."""
        return self.buffer[: self.size]


class MScanWriter:
    """Writes one `.mscan` segment: bytes are copied at once; compressed, sealed and written by a thread.

    At most 32 MiB of filled chunks wait for the storage, beside one chunk that is being filled for each hook
    point and kind. An error of the storage, or of anything else in the thread, is raised by the next call.

    Args:
        filepath: the new file; its folder exists.
        metadata: JSON object for the header; `created` and `hook_points` are added.
        points: hook points known beforehand, as (path, alias, width); others join when they first appear.
        compression: `none`, `zstd` or `lz4`, per chunk; bytes of 16-bit and 32-bit elements are shuffled
            first. A chunk that does not shrink is stored uncompressed.
        chunk_bytes: payload bytes at which a chunk is written.
        attempt: number of the attempt.
        segment: number of the segment in its attempt.

    Raises:
        FileExistsError: the file already exists; segments are never appended to.
        OSError: the storage failed. There is no retry: every later call raises MScanError, and the file is
            left as a torn segment with all flushed data. So it is after any other error that may have cost
            a chunk (no memory, no thread, an interrupt): a footer would say that nothing is missing.
    """

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        metadata: Mapping[str, object],
        *,
        points: Iterable[tuple[str, str | None, int]] = (),
        compression: Compression = "none",
        chunk_bytes: int = 1 << 20,
        attempt: int = 0,
        segment: int = 0,
    ) -> None:
        if not 1 <= chunk_bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"chunk_bytes is {chunk_bytes}, allowed are 1 to {MAX_CHUNK_BYTES}")
        self.path = Path(filepath)
        self._chunk_bytes = chunk_bytes
        self._compression: Compression = compression
        self._queue = JobQueue(_WAITING_BYTES)
        self._points: dict[str, SegmentPoint] = {}
        self._open: dict[tuple[ChunkKind, int], _OpenSegment] = {}
        self._entries: list[NDArray[np.void]] = []
        self._spare: list[memoryview] = []
        self._totals: dict[tuple[ChunkKind, int], int] = {}
        self._failed = self._closed = False
        self._key = secrets.randbits(64)
        known = [SegmentPoint(number, *point) for number, point in enumerate(points)]
        created = time.time_ns()
        text = pack_json(
            {
                **metadata,
                "created": datetime.fromtimestamp(created / 1e9, UTC).isoformat(timespec="milliseconds"),
                "hook_points": points_json(known),
            }
        )
        self._metadata_checksum = checksum(text)
        header = record(
            HEADER_DTYPE,
            magic=FILE_MAGIC,
            version=VERSION,
            minor=MINOR,
            header_bytes=HEADER_BYTES,
            key=self._key,
            uuid=secrets.randbits(64),
            attempt=attempt,
            segment=segment,
            created_ns=created,
            metadata_bytes=len(text),
            metadata_checksum=self._metadata_checksum,
        )
        start = header.tobytes() + bytes(HEADER_BYTES - HEADER_DTYPE.itemsize) + text
        self._fd = _create(self.path, start)
        self._size = self._written_back = len(start)
        if known:
            self._define(known)

    @property
    def size(self) -> int:
        """Current file size in bytes, excluding buffered data."""
        return self._size

    @property
    def buffered(self) -> int:
        """Payload bytes in open chunks or queued for storage."""
        return sum(chunk.size for chunk in tuple(self._open.values())) + self._queue.waiting

    @property
    def rows(self) -> dict[str, int]:
        """METRICS records written per hook point, excluding buffered ones."""
        return {path: self._totals.get((ChunkKind.METRICS, p.index), 0) for path, p in self._points.items()}

    def append_records(
        self, records: NDArray[np.void], seq_info: SeqInfo | Mapping[str, Any] | tuple[Any, ...]
    ) -> None:
        """Append METRICS records of one hook point.

        Args:
            records: [n] of METRICS_DTYPE; `hook_point` is filled in here.
            seq_info: the hook point and the packets from which they were computed: a `SeqInfo`, a mapping
                with its fields as keys, or a tuple of its fields in their order. `{"point": "layer.0"}` is
                enough for records that come from no stream.

        Raises:
            ValueError: the records have another type or shape, or several kinds; or a field of `seq_info` is
                unknown, missing or of another type.
        """
        if type(seq_info) is not SeqInfo:
            seq_info = SeqInfo.of(seq_info)
        if records.dtype != METRICS_DTYPE or records.ndim != 1:
            raise ValueError(f"records are {records.dtype} {records.shape}, expected METRICS_DTYPE [n]")
        kinds = np.unique(records["kind"])
        if len(kinds) > 1:
            raise ValueError(f"records of the kinds {kinds.tolist()}: a hook point holds one kind")
        kind = Kind(int(kinds[0])) if len(kinds) else Kind.ACTIVATION
        point = self._point(name_of(seq_info.point, kind), seq_info.width)
        records = records.copy()
        records["hook_point"] = point
        step = max(1, self._chunk_bytes // METRICS_DTYPE.itemsize)
        for first in range(0, len(records), step):
            part = records[first : first + step]
            chunk = self._chunk(ChunkKind.METRICS, point, seq_info.shard, part.nbytes, METRICS_DTYPE.itemsize)
            with self._torn_unless_done():
                chunk.add(part.tobytes())
                chunk.records += len(part)
                _extend(chunk, part["step"], part["sample"], len(part), seq_info)

    def append_tensor(self, packet: ActivationPacket, shard: int = 0) -> None:
        """Append a packet unchanged: header, row records, scales and quantised payload.

        Args:
            packet: the packet; its bytes are copied.
            shard: shard of the bus that it came from.

        Raises:
            ValueError: the packet exceeds the maximum chunk size.
        """
        header = packet.header.copy()
        name = name_of(packet.point, Kind(int(header["kind"])))
        header["account"] = point = self._point(name, int(header["width"]))
        scales = packet.scales if packet.table is None else packet.table
        front: list[Bytes] = [
            header.tobytes(),
            _contiguous(packet.rows),
            b"" if scales is None else _contiguous(scales),
        ]
        start = payload_at(len(packet.rows), len(front[-1]))
        parts = [*front, bytes(start - sum(map(len, front))), _contiguous(packet.payload)]
        size = sum(len(part) for part in parts)
        if size > MAX_CHUNK_BYTES:
            raise ValueError(
                f"a packet of {size} bytes, {MAX_CHUNK_BYTES} are allowed: cut it into row blocks"
            )
        chunk = self._chunk(ChunkKind.TENSOR, point, shard, size + 8, packet.payload.itemsize)
        sequence = int(header["sequence"])
        info = SeqInfo(packet.point, shard, sequence, sequence)
        steps = np.array([header["step"]], np.uint64)
        with self._torn_unless_done():
            for part in parts:
                chunk.add(part)
            chunk.add(bytes(padding(size, 8)))
            chunk.records += 1
            _extend(chunk, steps, packet.rows["sample"], len(packet.rows), info)

    def flush(self) -> None:
        """Write all open chunks and sync them: everything appended so far is durable."""
        self._drain()
        self._guard(os.fsync)

    def _drain(self) -> None:
        self._usable()
        for chunk in list(self._open.values()):
            self._spill(chunk)
        with self._torn_unless_done():
            self._queue.drain()

    def close(self) -> None:
        """Flush, write the footer, fill in the header's final counts. A second call does nothing."""
        if self._closed:
            return
        if self._failed:
            self._closed = True
            try:
                self._queue.drain()  # raises what the thread said, unless a call has already
            finally:
                os.close(self._fd)
            return
        self._drain()  # one fsync for chunks and footer: a lost chunk fails its checksum
        entries = np.concatenate(self._entries) if self._entries else np.zeros(0, CHUNK_DTYPE)
        points = list(self._points.values())
        counts = final_counts(entries, len(points), self._size, time.time_ns())
        self._write(
            pack_footer(
                key=self._key,
                metadata_checksum=self._metadata_checksum,
                counts=counts,
                entries=entries,
                points=points,
                offset=self._size,
            )
        )
        self._guard(os.fsync)
        self._guard(lambda fd: rewrite_counts(fd, counts))
        self._guard(os.fsync)
        self._closed = True
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _point(self, path: str, width: int) -> int:
        point = self._points.get(path)
        if point is None:
            if len(self._points) >= MAX_POINTS:
                raise ValueError(f"more than {MAX_POINTS} hook points in a segment")
            point = SegmentPoint(len(self._points), path, None, width)
            self._define([point])
        return point.index

    def _define(self, points: list[SegmentPoint]) -> None:
        """Define hook points in the file before any chunk refers to them."""
        self._points |= {point.path: point for point in points}
        chunk = _OpenSegment(ChunkKind.POINTS, 0, 0, memoryview(bytearray()), records=len(points))
        chunk.add(pack_json(points_json(points)))
        self._spill(chunk)

    def _chunk(self, kind: ChunkKind, point: int, shard: int, room: int, element: int) -> _OpenSegment:
        """Return the open chunk, with space for `room` bytes unless it is empty."""
        self._usable()
        chunk = self._open.get((kind, point))
        if chunk is not None and (chunk.shard != shard or chunk.size + room > self._chunk_bytes):
            self._spill(chunk)
            chunk = None
        if chunk is None:
            buffer = self._spare.pop() if self._spare else np.empty(self._chunk_bytes, np.uint8).data
            chunk = self._open[kind, point] = _OpenSegment(kind, point, shard, buffer, element)
        return chunk

    def _spill(self, chunk: _OpenSegment) -> None:
        """Hand a chunk to the writer thread, which owns it from then on."""
        with self._torn_unless_done():
            self._open.pop((chunk.kind, chunk.point), None)
            self._queue.put(lambda: self._put(chunk), chunk.size)

    def _put(self, chunk: _OpenSegment) -> None:
        with self._torn_unless_done():
            self._seal(chunk)

    def _seal(self, chunk: _OpenSegment) -> None:
        compression: Compression = "none" if chunk.kind is ChunkKind.POINTS else self._compression
        codec, stored, element = pack(compression, chunk.payload, chunk.element)
        place = (chunk.kind, chunk.point)
        total = self._totals.get(place, 0) + chunk.rows
        zeros = bytes(padding(len(stored)))
        head = record(
            CHUNK_DTYPE,
            magic=CHUNK_MAGIC,
            key=self._key,
            offset=self._size,
            number=len(self._entries),
            kind=chunk.kind,
            codec=codec,
            header_bytes=CHUNK_BYTES,
            point=chunk.point,
            shard=chunk.shard,
            stored_bytes=len(stored),
            raw_bytes=chunk.size,
            records=chunk.records,
            rows=chunk.rows,
            rows_total=total,
            element=element,
            payload_checksum=checksum(stored, zeros),
            **_range("step", chunk.steps),
            **_range("sample", chunk.samples),
            **_range("sequence", chunk.sequences),
        )
        self._write(head.tobytes(), stored, zeros)
        self._entries.append(head)
        self._totals[place] = total
        if self._size - self._written_back >= _WRITEBACK_BYTES:
            begin_writeback(self._fd, self._written_back, self._size)
            self._written_back = self._size
        if len(chunk.buffer) == self._chunk_bytes and len(self._spare) < _SPARE_BUFFERS:
            self._spare.append(chunk.buffer)  # reuse its pages; new ones would have to be zeroed

    def _write(self, *parts: Bytes) -> None:
        self._guard(lambda fd: write_all(fd, *parts))
        self._size += sum(len(part) for part in parts)

    def _usable(self) -> None:
        if self._closed:
            raise MScanError("the segment is closed", self.path)
        self._queue.check()
        if self._failed:
            self._queue.drain()
            raise MScanError("writing failed before; the segment is left torn", self.path)

    def _guard(self, act: Callable[[int], object]) -> None:
        """Run a file operation; a failure is permanent, because pages may already be lost."""
        try:
            with self._torn_unless_done():
                act(self._fd)
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise

    @contextmanager
    def _torn_unless_done(self) -> Iterator[None]:
        """Leave the segment without a footer if anything is raised inside: rows may be missing or in part."""
        try:
            yield
        except BaseException:
            self._failed = True
            raise


def name_of(point: str, kind: Kind) -> str:
    """Return the name under which a kind of a hook point is archived; gradients get their own name."""
    return point if point.endswith(account_name("", kind)) else account_name(point, kind)


def write_all(fd: int, *parts: Bytes) -> None:
    """Write all parts at the file's position, handling short writes."""
    total = sum(len(part) for part in parts)
    done = os.writev(fd, parts)
    if done < total:
        rest = memoryview(b"".join(parts))
        while done < total:
            done += os.write(fd, rest[done:])


def begin_writeback(fd: int, first: int, end: int) -> None:
    """Start writeback of a byte range in the kernel without waiting; does nothing if unsupported."""
    if _sync_file_range is not None:
        _sync_file_range(fd, ctypes.c_int64(first), ctypes.c_int64(end - first), _SYNC_FILE_RANGE_WRITE)


_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)


def rewrite_counts(fd: int, counts: NDArray[np.void]) -> None:
    """Fill in the header's final counts, if the storage supports rewriting."""
    try:
        os.pwrite(fd, counts.tobytes(), HEADER_DTYPE.itemsize)
    except OSError as error:
        if error.errno not in _NOT_REWRITABLE:
            raise


def _create(path: Path, start: bytes) -> int:
    """Create the file and return its descriptor; it becomes visible only with a complete header."""
    if path.exists():
        raise FileExistsError(errno.EEXIST, "a segment is never appended to", str(path))
    fresh = path.with_name(f".{path.name}.new")
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, start)
        os.fsync(fd)
        fresh.rename(path)
        sync(path.parent)
    except OSError:
        os.close(fd)
        fresh.unlink(missing_ok=True)
        raise
    return fd


def _contiguous(array: NDArray[np.generic]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _extend(
    chunk: _OpenSegment, steps: NDArray[np.generic], samples: NDArray[np.generic], rows: int, info: SeqInfo
) -> None:
    chunk.rows += rows
    chunk.sequences = (min(chunk.sequences[0], info.first), max(chunk.sequences[1], info.last))
    if len(steps):
        chunk.steps = (min(chunk.steps[0], int(steps.min())), max(chunk.steps[1], int(steps.max())))
    if rows:
        chunk.samples = (min(chunk.samples[0], int(samples.min())), max(chunk.samples[1], int(samples.max())))


def _range(name: str, bounds: tuple[int, int]) -> dict[str, int]:
    """Return first and last as header fields; both 0 if nothing was counted."""
    first, last = bounds if bounds[0] <= bounds[1] else (0, 0)
    return {f"{name}_first": first, f"{name}_last": last}
