"""Reads one segment: memory-mapped, lazy, with every chunk verified before use."""

import contextlib
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asysi.archive.codec import Bytes, Codec, Packed, unpack
from asysi.archive.errors import CorruptError, MScanError, TornError, VersionError
from asysi.archive.format import (
    ALIGNMENT,
    CHUNK_BYTES,
    CHUNK_DTYPE,
    CHUNK_MAGIC,
    FOOTER_MAGIC,
    HEADER_BYTES,
    HEADER_DTYPE,
    ChunkKind,
    SegmentPoint,
    checksum,
    chunk_size,
    padding,
    parse_chunk,
    parse_counts,
    parse_footer,
    parse_header,
    parse_metrics,
    parse_points,
    unpack_json,
)
from asysi.bus.packet import ActivationPacket, parse_packet, payload_at

_MAGIC = CHUNK_MAGIC.to_bytes(8, "little")
_NAME = re.compile(r"attempt-(\d{1,9})-segment-(\d{1,9})\.mscan")


def parse_segment_name(name: str) -> tuple[int, int] | None:
    """Return attempt and number in the file name of an archiver's segment; None for any other name."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def segment_order(path: Path) -> tuple[tuple[int, int], str]:
    """Return the key that sorts files by attempt and number, after files with other names.

    Names cannot be sorted as text: from number 10,000 on they have more digits.
    """
    return parse_segment_name(path.name) or (-1, -1), path.name


@dataclass
class Segment:
    """A segment open for reading. It stays mapped as long as anything read from it is referenced."""

    path: Path
    data: memoryview
    """The whole file, read-only."""
    metadata: dict[str, Any]
    attempt: int
    number: int
    key: int
    points: dict[int, SegmentPoint]
    entries: NDArray[np.void]
    """[chunks] of CHUNK_DTYPE, in the order of the file."""
    counts: NDArray[np.void] | None
    """[1] of COUNTS_DTYPE; None for a segment without a footer."""
    damage: list[MScanError] = field(default_factory=list)
    """Parts left out when the index was rebuilt from the chunks."""
    verify: bool = True
    """Whether payloads are checked against their checksums; chunk headers and the index always are."""
    lost_rows: int = 0
    """Rows in the damaged parts according to the chunks' running totals, METRICS plus TENSOR."""

    @cached_property
    def names(self) -> list[str]:
        """Paths of the hook points by index; gaps in the table are named `unknown-…`."""
        size = max(self.points, default=-1) + 1
        return [self.points[i].path if i in self.points else f"unknown-{i}" for i in range(size)]

    def read(self, chunk: int) -> memoryview:
        """Return the raw payload of a chunk: a view of the file, or the decompressed bytes.

        Raises:
            CorruptError, TornError: the chunk is damaged.
        """
        entry = self.entries[chunk]
        offset = int(entry["offset"])
        try:
            head = parse_chunk(self.data, offset, self.key)
            if head.tobytes() != entry.tobytes():
                raise CorruptError("the chunk is not the one that the index names", offset=offset)
            return payload(self.data, head[0], verify=self.verify)
        except MScanError as error:
            raise self._located(error, chunk) from None

    def records(self, chunk: int) -> NDArray[np.void]:
        """Return the records [n] of a METRICS chunk; `hook_point` is this segment's index."""
        try:
            return parse_metrics(self.read(chunk), int(self.entries["records"][chunk]))
        except ValueError as error:
            raise self._corrupt(str(error), chunk) from None

    def packets(self, chunk: int) -> Iterator[ActivationPacket]:
        """Yield the packets of a TENSOR chunk."""
        entry, raw = self.entries[chunk], self.read(chunk)
        index = int(entry["point"])
        at, rows, number = 0, 0, 0
        while at < len(raw):
            try:
                packet = parse_packet(raw[at:], self.names)
            except ValueError as error:
                raise self._corrupt(f"packet {number}: {error}", chunk) from None
            if int(packet.header["account"]) != index:
                raise self._corrupt(f"packet {number} is of another hook point", chunk)
            yield packet
            at += packet_size(packet.header)
            rows, number = rows + len(packet.rows), number + 1
        if (rows, number, at) != (int(entry["rows"]), int(entry["records"]), len(raw)):
            raise self._corrupt(f"{number} packets of {rows} rows, the header says otherwise", chunk)

    def _corrupt(self, problem: str, chunk: int) -> CorruptError:
        return CorruptError(problem, self.path, int(self.entries["offset"][chunk]), chunk)

    def _located(self, error: MScanError, chunk: int) -> MScanError:
        return type(error)(error.problem, self.path, error.offset, chunk)


def packet_size(header: np.void) -> int:
    """Return the bytes of a packet in a TENSOR chunk, including padding."""
    size = payload_at(int(header["rows"]), int(header["scale_bytes"])) + int(header["payload_bytes"])
    return size + padding(size, 8)


def payload(data: memoryview, head: np.void, *, verify: bool = True) -> memoryview:
    """Return the raw payload of the chunk with this header, checked against its checksum with `verify`.

    Raises:
        CorruptError: the payload does not match its checksum, or does not decompress to the announced size.
    """
    offset = int(head["offset"])
    first, stored, raw = offset + CHUNK_BYTES, int(head["stored_bytes"]), int(head["raw_bytes"])
    padded = data[first : offset + chunk_size(head)]
    if verify and checksum(padded) != head["payload_checksum"]:
        raise CorruptError("the payload does not have its checksum", offset=first)
    block = padded[:stored]
    packed = Packed(Codec(int(head["codec"])), block, int(head["element"]))
    try:
        return memoryview(unpack(packed, raw))
    except ValueError as error:
        raise CorruptError(f"the payload does not decompress: {error}", offset=first) from None


def map_file(path: Path) -> memoryview:
    """Return a file's bytes, mapped read-only.

    Raises:
        TornError: the file is empty.
    """
    with path.open("rb") as file:
        return map_open_file(file.fileno(), path)


def map_open_file(fd: int, path: Path) -> memoryview:
    """Return an open file's bytes, mapped read-only; `path` names it in errors.

    Raises:
        TornError: the file is empty.
    """
    try:
        return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    except ValueError:
        raise TornError("the file is empty", path) from None


def open_segment(path: Path, *, scan: bool = False) -> Segment:
    """Return the segment in a file.

    Args:
        path: the file.
        scan: whether to rebuild a missing or damaged index in memory; losses are listed in `damage`.

    Raises:
        VersionError, TornError, CorruptError: it cannot be read; with `scan`, only if nothing is intact.
    """
    return read_segment(map_file(path), path, scan=scan)


def read_segment(data: Bytes, path: Path, *, scan: bool = False) -> Segment:
    """Return the segment in `data`; see `open_segment`."""
    data = memoryview(data).toreadonly() if isinstance(data, bytes | bytearray | memoryview) else data
    try:
        return _indexed(data, path)
    except MScanError as error:
        if not scan or (isinstance(error, VersionError) and error.offset == 8):  # a later version, not damage
            raise type(error)(error.problem, path, error.offset, error.chunk) from None
    return rescan(data, path)


def _indexed(data: memoryview, path: Path) -> Segment:
    header, metadata = parse_header(data)
    footer = parse_footer(data)
    key = int(header["key"])
    early = parse_counts(data, HEADER_DTYPE.itemsize)
    if early is not None and early.tobytes() != footer.counts.tobytes():
        raise CorruptError("header and footer count differently", offset=HEADER_DTYPE.itemsize)
    if footer.key != key or footer.metadata_checksum != int(header["metadata_checksum"]):
        raise CorruptError("the footer belongs to another header", offset=footer.offset)
    return Segment(
        path=path,
        data=data,
        metadata=metadata,
        attempt=int(header["attempt"]),
        number=int(header["segment"]),
        key=key,
        points={point.index: point for point in footer.points},
        entries=footer.entries,
        counts=footer.counts,
    )


def rescan(data: memoryview, path: Path) -> Segment:
    """Rebuild the segment from its chunks; header and footer are used if intact.

    Raises:
        VersionError, TornError, CorruptError: neither the header nor any chunk is intact.
    """
    segment = Segment(path, data, {}, 0, 0, 0, {}, np.zeros(0, CHUNK_DTYPE), None)
    key: int | None = None
    try:
        header, segment.metadata = parse_header(data)
        segment.attempt, segment.number = int(header["attempt"]), int(header["segment"])
        key, at = int(header["key"]), HEADER_BYTES + int(header["metadata_bytes"])
    except MScanError as error:
        segment.damage.append(type(error)(error.problem, path, error.offset))
        at = _next_chunk(data, ALIGNMENT, None) or len(data)
    entries, spoilt, lost = scan(data, at, key)
    segment.damage += [type(error)(error.problem, path, error.offset, error.chunk) for error in lost]
    segment.lost_rows = _lost_rows(entries, spoilt)
    if key is None and not entries:
        raise segment.damage[0]
    segment.key = int(entries[0]["key"][0]) if key is None else key
    segment.entries = np.concatenate(entries) if entries else segment.entries
    segment.points = _known_points(segment)
    return segment


def _lost_rows(entries: list[NDArray[np.void]], spoilt: list[NDArray[np.void]]) -> int:
    """Return the number of rows in the running totals that are not in intact chunks."""
    said: dict[tuple[int, int], int] = {}
    for head in (*entries, *spoilt):
        place = (int(head["kind"][0]), int(head["point"][0]))
        said[place] = max(said.get(place, 0), int(head["rows_total"][0]))
    held = sum(int(head["rows"][0]) for head in entries)
    return min(max(0, sum(said.values()) - held), 2**63)


def _known_points(segment: Segment) -> dict[int, SegmentPoint]:
    """Return the hook points named in metadata, footer and chunks, with placeholders for unnamed ones."""
    points: list[SegmentPoint] = []
    with contextlib.suppress(ValueError):
        points += parse_points(segment.metadata.get("hook_points"))
    with contextlib.suppress(MScanError):
        points += parse_footer(segment.data).points
    for chunk in np.flatnonzero(segment.entries["kind"] == ChunkKind.POINTS):
        with contextlib.suppress(MScanError):
            points += read_points(segment, int(chunk))
    known = {point.index: point for point in points}
    used = set(segment.entries["point"][segment.entries["kind"] != ChunkKind.POINTS].tolist())
    return known | {index: SegmentPoint(index, f"unknown-{index}", None, 0) for index in used - set(known)}


def read_points(segment: Segment, chunk: int) -> list[SegmentPoint]:
    """Return the hook points of a POINTS chunk."""
    try:
        return parse_points(unpack_json(segment.read(chunk)))
    except ValueError as error:
        raise CorruptError(
            f"hook points cannot be read: {error}", segment.path, int(segment.entries["offset"][chunk]), chunk
        ) from None


def scan(
    data: memoryview, at: int, key: int | None
) -> tuple[list[NDArray[np.void]], list[NDArray[np.void]], list[MScanError]]:
    """Find every intact chunk from byte `at` on.

    Args:
        data: the segment.
        at: expected offset of the first chunk.
        key: the segment's key; None uses that of the first intact chunk.

    Returns:
        Headers of the intact chunks; headers of chunks whose payload checksum does not match; and the damage:
        such a chunk, a range of bytes without a chunk header, or an unfinished tail (TornError).
    """
    entries: list[NDArray[np.void]] = []
    spoilt: list[NDArray[np.void]] = []
    damage: list[MScanError] = []
    footer = FOOTER_MAGIC.to_bytes(8, "little")
    while at < len(data) and data[at : at + 8] != footer:
        try:
            head = parse_chunk(data, at, key)
        except MScanError as error:
            damage.append(error.without_frames())
            found = _next_chunk(data, at + 1, key)
            if found is None:
                break
            at = found
            continue
        try:
            payload(data, head[0])
            entries.append(head)
            key = int(head["key"][0])
        except CorruptError as error:
            spoilt.append(head)
            damage.append(CorruptError(error.problem, offset=at, chunk=int(head["number"][0])))
        at += chunk_size(head[0])
    return entries, spoilt, damage


def _next_chunk(data: memoryview, at: int, key: int | None) -> int | None:
    """Return the offset of the next chunk header, a multiple of 64 bytes, or None."""
    source = data.obj if isinstance(data.obj, mmap.mmap) else bytes(data)
    while (at := source.find(_MAGIC, at)) >= 0:
        if at % ALIGNMENT == 0:
            try:
                parse_chunk(data, at, key)
            except MScanError:
                pass
            else:
                return at
        at += 1
    return None
