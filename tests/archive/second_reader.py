"""Reads `.mscan` segments from docs/mscan.md alone: plain Python, no package of this project, no NumPy."""

import json
import struct
from collections import namedtuple
from pathlib import Path

import lz4.block
import xxhash
import zstandard

METRICS = (  # noqa: SIM905
    "sample step sequence position token flags hook_point kind mean std l2 min max sparsity nan_count "
    "inf_count grad_norm input_x_gradient delta_sc call_index document_position"
).split()
HEAD = struct.Struct("<4Q2H3I11QH38x2Q")
Head = namedtuple(
    "Head",
    "magic key offset number kind codec header_bytes point shard stored raw records rows total step_first "
    "step_last sample_first sample_last sequence_first sequence_last element payload_checksum checksum",
)
Packet = namedtuple("Packet", "point shard sequence step attempt call_index kind rows values")


class DamagedError(Exception):
    """Bytes are not what was written."""


def check(data, expected, what):
    if xxhash.xxh3_64_intdigest(bytes(data)) != expected:
        raise DamagedError(what)


def read(path):
    """Return the metadata, the names of the hook points, and for each chunk its header and payload."""
    data = memoryview(Path(path).read_bytes())
    if bytes(data[:8]) != b"\x89MSCAN\r\n":
        raise DamagedError("no segment")
    version, _, _, key = struct.unpack_from("<2HIQ", data, 8)
    size, expected = struct.unpack_from("<2Q", data, 48)
    check(data[:120], struct.unpack_from("<Q", data, 120)[0], "file header")
    check(data[256 : 256 + size], expected, "metadata")
    if version != 1:
        raise DamagedError(f"version {version}")
    metadata = json.loads(bytes(data[256 : 256 + size]))
    heads = list(indexed(data) if bytes(data[-8:]) == b"MSCANend" else found(data, 256 + size, key))
    points, chunks = {}, []
    for head in heads:
        if head.key != key:
            raise DamagedError("a chunk of another segment")
        raw = payload(data, head)
        if head.kind == 3:
            points |= {point["index"]: point["path"] for point in json.loads(raw)}
        else:
            chunks.append((head, raw))
    return metadata, points, chunks


def indexed(data):
    """Yield the chunk headers that the footer lists; each must stand where it says."""
    offset, size, expected = struct.unpack("<3Q", data[-32:-8])
    check(data[offset : offset + size], expected, "footer")
    for number in range(struct.unpack_from("<Q", data, offset + 16)[0]):
        at = offset + 192 + 192 * number
        head = parse_head(data, at)
        if data[head.offset : head.offset + 192] != data[at : at + 192]:
            raise DamagedError(f"chunk {number} differs from the index")
        yield head


def found(data, at, key):
    """Yield the chunk headers of a segment without a footer, up to the first that is not whole."""
    while at + 192 <= len(data):
        try:
            head = parse_head(data, at)
            if head.offset != at or head.key != key or at + 192 + head.stored > len(data):
                return
            payload(data, head)
        except DamagedError:
            return
        yield head
        at += 192 + head.stored + -head.stored % 64


def parse_head(data, at):
    head = Head(*HEAD.unpack_from(data, at))
    check(data[at : at + 184], head.checksum, f"chunk header at {at}")
    return head


def payload(data, head):
    """Return the payload of a chunk, decompressed and with its bytes in order."""
    at = head.offset + 192
    check(data[at : at + head.stored + -head.stored % 64], head.payload_checksum, f"chunk {head.number}")
    stored = bytes(data[at : at + head.stored])
    if head.codec & 255 == 1:
        stored = zstandard.ZstdDecompressor().decompress(stored, max_output_size=head.raw)
    elif head.codec & 255 == 2:
        stored = lz4.block.decompress(stored, uncompressed_size=head.raw)
    elif head.codec:
        raise DamagedError(f"codec {head.codec}")
    if len(stored) != head.raw:
        raise DamagedError("the payload has another size")
    if not head.codec & 256:
        return stored
    elements, ordered = head.raw // head.element, bytearray(stored)
    for byte in range(head.element):
        ordered[byte : elements * head.element : head.element] = stored[
            byte * elements : (byte + 1) * elements
        ]
    return bytes(ordered)


def records(head, raw):
    """Yield the records of a METRICS chunk by name; those of version 1.0 lack the last two fields."""
    size = head.raw // head.records if head.records else 0
    for at in range(0, len(raw), size or 1):
        late = struct.unpack_from("<2I", raw, at + 80) if size >= 88 else ()
        values = [*struct.unpack_from("<2Q2IiI2H6f2I3f", raw, at), *late]
        record = dict(zip(METRICS, values, strict=False))
        yield {"call_index": 0, "document_position": record["position"]} | record


def packets(head, raw, points):
    """Yield the packets of a TENSOR chunk; values are a list of numbers for each row."""
    at = 0
    while at < len(raw):
        sequence, step = struct.unpack_from("<Q16xQ", raw, at + 8)
        attempt, account, call, rows, width = struct.unpack_from("<I4x4I", raw, at + 60)
        kind, dtype = struct.unpack_from("<2H", raw, at + 104)
        size, scale_bytes = struct.unpack_from("<QI", raw, at + 112)
        table = [struct.unpack_from("<Q2IiI", raw, at + 192 + 24 * row) for row in range(rows)]
        scales = struct.unpack_from(f"<{scale_bytes // 4}f", raw, at + 192 + 24 * rows)
        start = at + 192 + 24 * rows + scale_bytes
        start += -(start - at) % 64
        flat = numbers(raw[start : start + size], dtype)
        values = [flat[row * width : (row + 1) * width] for row in range(rows)]
        if scales:
            values = [[x * scale for x in row] for row, scale in zip(values, scales, strict=True)]
        yield Packet(points[account], head.shard, sequence, step, attempt, call, kind, table, values)
        at = start + size + -(start + size - at) % 8


def numbers(data, dtype):
    if dtype == 1:  # bfloat16: the upper half of a float32
        shorts = struct.unpack(f"<{len(data) // 2}H", data)
        return struct.unpack(f"<{len(shorts)}f", struct.pack(f"<{len(shorts)}I", *(x << 16 for x in shorts)))
    letter, size = {0: ("f", 4), 2: ("e", 2), 3: ("b", 1)}[dtype]
    return struct.unpack(f"<{len(data) // size}{letter}", data)
