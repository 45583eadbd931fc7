"""Bytes of an `.mscan` segment, version 1.2: little-endian, every part with its checksum (xxh3-64).

    file header (256) | metadata JSON | chunk | chunk | … | footer | trailer (32)
    chunk = chunk header (192) | payload | zeros to a multiple of 64
    footer = footer header (64) | final counts (128) | one chunk header per chunk | hook points JSON

Pure functions pack and check; there is no I/O here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from asysi.archive.codec import Bytes, Codec
from asysi.archive.errors import CorruptError, TornError, VersionError

VERSION = 1
MINOR = 2
"""1.1 added fields at the end of METRICS records; 1.2 added codecs, in chunks that earlier readers reject."""
ALIGNMENT = 64
MAX_CHUNK_BYTES = 64 << 20
"""Maximum payload bytes of a chunk, stored and raw: what a reader must be able to hold in memory."""
MAX_JSON_BYTES = 16 << 20
MAX_POINTS = 65_535


def _magic(text: bytes) -> int:
    return int.from_bytes(text, "little")


FILE_MAGIC = _magic(b"\x89MSCAN\r\n")
CHUNK_MAGIC = _magic(b"MSCANchk")
FOOTER_MAGIC = _magic(b"MSCANidx")
TRAILER_MAGIC = _magic(b"MSCANend")


class ChunkKind(IntEnum):
    """Content of a chunk."""

    METRICS = 1
    """Records of METRICS_DTYPE, one per row."""
    TENSOR = 2
    """Packets in their wire form, each padded to 8 bytes; `account` is the segment's index of the point."""
    POINTS = 3
    """JSON: hook points that the following chunks may refer to."""


class CountsFlag(IntFlag):
    """Flags of a closed segment."""

    FINAL = 1
    RECOVERED = 2
    """The footer was rebuilt from the chunks."""


HEADER_DTYPE = np.dtype(
    [
        ("magic", "<u8"),
        ("version", "<u2"),
        ("header_bytes", "<u2"),  # of this record and the counts: 256
        ("flags", "<u4"),
        ("key", "<u8"),  # first half of the uuid; every chunk repeats it
        ("uuid", "<u8"),  # its second half
        ("attempt", "<u4"),
        ("segment", "<u4"),
        ("created_ns", "<u8"),  # Unix time
        ("metadata_bytes", "<u8"),  # JSON, padded with spaces to a multiple of 64
        ("metadata_checksum", "<u8"),
        ("minor", "<u2"),  # of the version
        ("reserved", "V54"),
        ("checksum", "<u8"),  # of this record without this field
    ]
)
COUNTS_DTYPE = np.dtype(
    [
        ("flags", "<u4"),
        ("points", "<u4"),
        ("chunks", "<u8"),
        ("metrics_records", "<u8"),
        ("packets", "<u8"),
        ("tensor_rows", "<u8"),
        ("bytes", "<u8"),  # of the segment before its footer
        ("lost_chunks", "<u8"),  # damaged chunks, or stretches of bytes, that `recover` had to leave out
        ("lost_rows", "<u8"),  # rows in them according to the running totals, METRICS plus TENSOR
        ("closed_ns", "<u8"),  # Unix time
        ("reserved", "V48"),
        ("checksum", "<u8"),
    ]
)
CHUNK_DTYPE = np.dtype(
    [
        ("magic", "<u8"),
        ("key", "<u8"),  # of the segment, so that a chunk of another file is not accepted
        ("offset", "<u8"),  # of this header in the file
        ("number", "<u8"),  # from 0
        ("kind", "<u2"),
        ("codec", "<u2"),
        ("header_bytes", "<u4"),  # 192
        ("point", "<u4"),  # index in the segment's table of hook points
        ("shard", "<u4"),
        ("stored_bytes", "<u8"),
        ("raw_bytes", "<u8"),
        ("records", "<u8"),  # METRICS: rows; TENSOR: packets; POINTS: hook points
        ("rows", "<u8"),
        ("rows_total", "<u8"),  # rows of this point and kind in the segment, including this chunk
        ("step_first", "<u8"),
        ("step_last", "<u8"),
        ("sample_first", "<u8"),
        ("sample_last", "<u8"),
        ("sequence_first", "<u8"),  # of the shard
        ("sequence_last", "<u8"),
        ("element", "<u2"),  # bytes of an element if the codec shuffles, otherwise 0
        ("reserved", "V38"),
        ("payload_checksum", "<u8"),  # of the stored bytes and their padding
        ("checksum", "<u8"),  # of this header without this field
    ]
)
FOOTER_DTYPE = np.dtype(
    [
        ("magic", "<u8"),
        ("key", "<u8"),
        ("entries", "<u8"),
        ("points_bytes", "<u8"),
        ("metadata_checksum", "<u8"),  # digest of the header's metadata
        ("reserved", "V16"),
        ("checksum", "<u8"),
    ]
)
TRAILER_DTYPE = np.dtype(
    [("footer_offset", "<u8"), ("footer_bytes", "<u8"), ("footer_checksum", "<u8"), ("magic", "<u8")]
)
HEADER_BYTES = HEADER_DTYPE.itemsize + COUNTS_DTYPE.itemsize
CHUNK_BYTES = CHUNK_DTYPE.itemsize
TRAILER_BYTES = TRAILER_DTYPE.itemsize
assert (HEADER_DTYPE.itemsize, COUNTS_DTYPE.itemsize, CHUNK_BYTES) == (128, 128, 192)
assert (FOOTER_DTYPE.itemsize, TRAILER_BYTES) == (64, 32)

METRICS_DTYPE = np.dtype(
    [
        ("sample", "<u8"),  # row of the input
        ("step", "<u8"),
        ("sequence", "<u4"),  # which sequence of the step's batch
        ("position", "<u4"),  # token's position in its sequence
        ("token", "<i4"),
        ("flags", "<u4"),  # RowFlag
        ("hook_point", "<u2"),  # index in the table of hook points
        ("kind", "<u2"),  # packet.Kind
        ("mean", "<f4"),  # over the row's finite elements, like all down to max; NaN where there are none
        ("std", "<f4"),  # of the population
        ("l2", "<f4"),
        ("min", "<f4"),
        ("max", "<f4"),
        ("sparsity", "<f4"),  # share of all elements that are exactly 0
        ("nan_count", "<u4"),
        ("inf_count", "<u4"),
        ("grad_norm", "<f4"),  # NaN unless gradients are captured, like the two below
        ("input_x_gradient", "<f4"),  # ⟨a, g⟩
        ("delta_sc", "<f4"),  # −⟨a − ā, g⟩
        # Since 1.1:
        ("call_index", "<u4"),  # which call of the module in its step's forward, from 0
        ("document_position", "<u4"),  # token's position in its document
    ]
)
assert METRICS_DTYPE.itemsize == 88
_LEAST_METRICS_BYTES = 80
"""Size of a record in version 1.0, in bytes."""


def parse_metrics(raw: Bytes, count: int) -> NDArray[np.void]:
    """Return the records [count] of a METRICS payload of any minor version, as METRICS_DTYPE.

    Fields missing in version 1.0 are filled in: call index 0, and the sequence position as the position
    in the document. Fields of later versions are ignored.

    Raises:
        ValueError: the size does not match the number of records.
    """
    size, rest = divmod(len(raw), count) if count else (METRICS_DTYPE.itemsize, len(raw))
    if rest or size < _LEAST_METRICS_BYTES:
        raise ValueError(f"{len(raw)} bytes are not {count} records")
    if size == METRICS_DTYPE.itemsize:
        return np.frombuffer(raw, METRICS_DTYPE)
    fields: Mapping[str, Any] = METRICS_DTYPE.fields or {}
    there = {name: field for name, field in fields.items() if field[1] + field[0].itemsize <= size}
    layout = np.dtype(
        {
            "names": list(there),
            "formats": [field[0] for field in there.values()],
            "offsets": [field[1] for field in there.values()],
            "itemsize": size,
        }
    )
    stored = np.frombuffer(raw, layout)
    records = np.zeros(count, METRICS_DTYPE)
    records["document_position"] = stored["position"]
    for name in there:
        records[name] = stored[name]
    return records


@dataclass(frozen=True, slots=True)
class SegmentPoint:
    """A hook point of a segment."""

    index: int
    path: str
    """Exact path in the model."""
    alias: str | None
    """Its name in TransformerLens, if any."""
    width: int
    """Elements per row, 0 if unknown."""


def checksum(*parts: Bytes) -> int:
    """Return xxh3-64 (seed 0) of the concatenated parts."""
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def padding(size: int, alignment: int = ALIGNMENT) -> int:
    """Return the padding bytes from `size` to the next multiple of `alignment`."""
    return -size % alignment


def record(dtype: np.dtype[Any], **fields: int) -> NDArray[np.void]:
    """Return a record [1] of `dtype` with `fields`, zeros elsewhere, and its checksum."""
    array = np.zeros(1, dtype)
    for name, value in fields.items():
        array[name] = value
    return seal(array)


def seal(array: NDArray[np.void]) -> NDArray[np.void]:
    """Recompute the checksum, the last field, of the record [1], and return it."""
    array["checksum"] = checksum(array.tobytes()[:-8])
    return array


def sealed(array: NDArray[np.void]) -> bool:
    """Return whether the checksum of the record [1] matches."""
    return int(array["checksum"][0]) == checksum(array.tobytes()[:-8])


def view(data: Bytes, dtype: np.dtype[Any], offset: int) -> NDArray[np.void] | None:
    """Return the record [1] at `offset`, or None if the data ends before its end."""
    if offset < 0 or offset + dtype.itemsize > len(data):
        return None
    return np.frombuffer(data[offset : offset + dtype.itemsize], dtype)


def pack_json(value: object) -> bytes:
    """Return JSON, padded with spaces to a multiple of 64 bytes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * padding(len(text))


def unpack_json(data: Bytes) -> object:
    """Return the value of padded JSON.

    Raises:
        ValueError: the bytes are not JSON, or nested too deeply.
    """
    try:
        return json.loads(bytes(data))
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def points_json(points: list[SegmentPoint]) -> list[dict[str, object]]:
    """Return the table of hook points as stored in metadata, POINTS chunks and footer."""
    return [{"index": p.index, "path": p.path, "alias": p.alias, "width": p.width} for p in points]


def parse_points(value: object) -> list[SegmentPoint]:
    """Return the hook points of a JSON table.

    Raises:
        ValueError: the value is not such a table.
    """
    if not isinstance(value, list) or len(value) > MAX_POINTS:
        raise ValueError("the table of hook points is not a list, or too long")
    return [_parse_point(item) for item in value]


def _parse_point(item: object) -> SegmentPoint:
    match item:
        case {
            "index": int(index),
            "path": str(path),
            "alias": (None | str()) as alias,
            "width": int(width),
        } if 0 <= index < MAX_POINTS and 0 <= width < 2**32 and not isinstance(index, bool):
            return SegmentPoint(index, path, alias, width)
    raise ValueError(f"{item!r:.80} is not a hook point")


def parse_header(data: Bytes) -> tuple[np.void, dict[str, Any]]:
    """Return the file header and the metadata.

    Raises:
        VersionError, TornError, CorruptError: there is no valid header of this version.
    """
    header = view(data, HEADER_DTYPE, 0)
    if header is None:
        raise TornError(f"the file has {len(data)} bytes, a segment begins with {HEADER_BYTES}", offset=0)
    if header["magic"][0] != FILE_MAGIC:
        raise VersionError("no .mscan segment: it does not begin with its magic", offset=0)
    if not sealed(header):
        raise CorruptError("the file header does not have its checksum", offset=0)
    if header["version"][0] != VERSION or header["header_bytes"][0] != HEADER_BYTES:
        raise VersionError(f"version {header['version'][0]}, this reader knows version {VERSION}", offset=8)
    size = int(header["metadata_bytes"][0])
    if size > MAX_JSON_BYTES:
        raise CorruptError(f"metadata of {size} bytes, {MAX_JSON_BYTES} are allowed", offset=HEADER_BYTES)
    if HEADER_BYTES + size > len(data):
        raise TornError("the file ends within its metadata", offset=len(data))
    text = data[HEADER_BYTES : HEADER_BYTES + size]
    if checksum(text) != header["metadata_checksum"][0]:
        raise CorruptError("the metadata does not have its checksum", offset=HEADER_BYTES)
    try:
        metadata = unpack_json(text)
    except ValueError as error:
        raise CorruptError(f"the metadata cannot be read: {error}", offset=HEADER_BYTES) from None
    if not isinstance(metadata, dict):
        raise CorruptError("the metadata is not a JSON object", offset=HEADER_BYTES)
    return header[0], metadata


def parse_counts(data: Bytes, offset: int) -> NDArray[np.void] | None:
    """Return the final counts [1] at `offset`, None if they are not filled in (all zeros).

    Raises:
        CorruptError: they are invalid.
    """
    counts = view(data, COUNTS_DTYPE, offset)
    if counts is None:
        raise CorruptError("the file ends within its counts", offset=offset)
    if not any(counts.tobytes()):
        return None
    if not sealed(counts) or not int(counts["flags"][0]) & CountsFlag.FINAL:
        raise CorruptError("the final counts do not have their checksum", offset=offset)
    return counts


def parse_chunk(data: Bytes, offset: int, key: int | None = None) -> NDArray[np.void]:
    """Return the chunk header [1] at `offset`, with all its sizes checked against the data.

    Args:
        data: the segment.
        offset: where the header begins.
        key: the segment's key; None accepts any.

    Raises:
        TornError: the data ends before the chunk does.
        CorruptError: there is no valid chunk header of this segment.
    """
    chunk = view(data, CHUNK_DTYPE, offset)
    if chunk is None:
        raise TornError("the file ends within a chunk header", offset=offset)
    if chunk["magic"][0] != CHUNK_MAGIC or not sealed(chunk):
        raise CorruptError("the chunk header does not have its checksum", offset=offset)
    head = chunk[0]
    if int(head["offset"]) != offset or (key is not None and int(head["key"]) != key):
        raise CorruptError("the chunk belongs elsewhere", offset=offset)
    if (
        head["header_bytes"] != CHUNK_BYTES
        or int(head["kind"]) not in set(ChunkKind)
        or int(head["codec"]) not in set(Codec)
    ):
        raise CorruptError(f"kind {head['kind']}, codec {head['codec']}: unknown", offset=offset)
    if int(head["point"]) >= MAX_POINTS:
        raise CorruptError(f"hook point {head['point']}, {MAX_POINTS} are allowed", offset=offset)
    if max(int(head["stored_bytes"]), int(head["raw_bytes"])) > MAX_CHUNK_BYTES:
        raise CorruptError(
            f"the chunk announces {head['raw_bytes']} bytes, {MAX_CHUNK_BYTES} are allowed", offset=offset
        )
    if head["kind"] == ChunkKind.POINTS and (
        head["codec"] != Codec.NONE or int(head["raw_bytes"]) > MAX_JSON_BYTES
    ):
        raise CorruptError("hook points are compressed, or too long", offset=offset)
    if offset + chunk_size(head) > len(data):
        raise TornError("the file ends within a chunk", offset=offset)
    return chunk


def chunk_size(head: np.void) -> int:
    """Return the bytes of a chunk in the file: header, payload and padding."""
    stored = int(head["stored_bytes"])
    return CHUNK_BYTES + stored + padding(stored)


@dataclass(frozen=True, slots=True)
class Footer:
    """Contents of a segment's footer."""

    offset: int
    counts: NDArray[np.void]
    """[1] of COUNTS_DTYPE."""
    entries: NDArray[np.void]
    """[chunks] of CHUNK_DTYPE: copies of the chunk headers."""
    points: list[SegmentPoint]
    metadata_checksum: int
    key: int


def pack_footer(
    *,
    key: int,
    metadata_checksum: int,
    counts: NDArray[np.void],
    entries: NDArray[np.void],
    points: list[SegmentPoint],
    offset: int,
) -> bytes:
    """Return footer and trailer for a segment whose chunks end at `offset`."""
    table = pack_json(points_json(points))
    head = record(
        FOOTER_DTYPE,
        magic=FOOTER_MAGIC,
        key=key,
        entries=len(entries),
        points_bytes=len(table),
        metadata_checksum=metadata_checksum,
    )
    footer = head.tobytes() + counts.tobytes() + entries.tobytes() + table
    trailer = np.array([(offset, len(footer), checksum(footer), TRAILER_MAGIC)], TRAILER_DTYPE)
    return footer + trailer.tobytes()


def parse_footer(data: Bytes) -> Footer:
    """Return the footer.

    Raises:
        TornError: there is none.
        CorruptError: its checksum does not match, or it is inconsistent.
    """
    trailer = view(data, TRAILER_DTYPE, len(data) - TRAILER_BYTES)
    if trailer is None or trailer["magic"][0] != TRAILER_MAGIC:
        raise TornError(
            "the file ends without a footer: run `asysi mscan recover` unless it is still being written",
            offset=len(data),
        )
    offset, size = int(trailer["footer_offset"][0]), int(trailer["footer_bytes"][0])
    if offset + size + TRAILER_BYTES != len(data) or size < FOOTER_DTYPE.itemsize + COUNTS_DTYPE.itemsize:
        raise CorruptError("the trailer points nowhere", offset=len(data) - TRAILER_BYTES)
    if checksum(data[offset : offset + size]) != trailer["footer_checksum"][0]:
        raise CorruptError("the footer does not have its checksum", offset=offset)
    head = view(data, FOOTER_DTYPE, offset)
    assert head is not None
    number, table_bytes = int(head["entries"][0]), int(head["points_bytes"][0])
    counts_at = offset + FOOTER_DTYPE.itemsize
    entries_at = counts_at + COUNTS_DTYPE.itemsize
    table_at = entries_at + number * CHUNK_BYTES
    if head["magic"][0] != FOOTER_MAGIC or not sealed(head) or table_at + table_bytes != offset + size:
        raise CorruptError("the footer contradicts itself", offset=offset)
    counts = parse_counts(data, counts_at)
    if counts is None:
        raise CorruptError("the footer holds no counts", offset=counts_at)
    try:
        points = parse_points(unpack_json(data[table_at : table_at + table_bytes]))
    except ValueError as error:
        raise CorruptError(f"the footer's hook points cannot be read: {error}", offset=table_at) from None
    entries = np.frombuffer(data[entries_at:table_at], CHUNK_DTYPE, number)
    return Footer(offset, counts, entries, points, int(head["metadata_checksum"][0]), int(head["key"][0]))


def final_counts(
    entries: NDArray[np.void],
    points: int,
    size: int,
    closed_ns: int,
    *,
    recovered: bool = False,
    lost_chunks: int = 0,
    lost_rows: int = 0,
) -> NDArray[np.void]:
    """Return the counts [1] of a segment with these chunks and `size` bytes before its footer."""
    kinds = entries["kind"]
    return record(
        COUNTS_DTYPE,
        flags=CountsFlag.FINAL | (CountsFlag.RECOVERED if recovered else 0),
        points=points,
        chunks=len(entries),
        metrics_records=int(entries["records"][kinds == ChunkKind.METRICS].sum()),
        packets=int(entries["records"][kinds == ChunkKind.TENSOR].sum()),
        tensor_rows=int(entries["rows"][kinds == ChunkKind.TENSOR].sum()),
        bytes=size,
        lost_chunks=lost_chunks,
        lost_rows=lost_rows,
        closed_ns=closed_ns,
    )
