"""A fuzzer of the reader: `fuzz_reader.py CORPUS [libFuzzer options]`.

An input is a segment and a byte behind it, which says how it is used: as it is, or with every checksum made
right again, so that what the numbers say is believed until it contradicts itself. Reading gives data or an
MScanError; anything else stops the fuzzer, memory beyond libFuzzer's limit included.
"""

import struct
import sys
from pathlib import Path

import atheris
import xxhash

# An editable installation has a loader of its own, which atheris cannot instrument: find the folder as usual.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(type(finder)).lower()]
sys.path.insert(0, str(Path(__file__).parents[2] / "workers"))

with atheris.instrument_imports(include=["asysi.archive"]):
    from asysi.archive import codec, dataset, errors, format, segment, verify  # noqa: A004, F401


MScanError, ChunkKind = errors.MScanError, format.ChunkKind
NAME = Path("a.mscan")


def digest(data):
    """The checksum of the format."""
    return struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(data)))


def resealed(data):
    """Make every checksum right that stands where the numbers say; the index copies the chunk headers."""
    data = bytearray(data)
    if len(data) < 256:
        return data
    size = struct.unpack_from("<Q", data, 48)[0]
    if size > len(data):
        return data
    data[56:64] = digest(data[256 : 256 + size])
    data[120:128] = digest(data[:120])
    at, heads = 256 + size, []
    while at + 192 <= len(data) and data[at : at + 8] == b"MSCANchk":
        stored = struct.unpack_from("<Q", data, at + 48)[0]
        if stored > len(data):
            break
        end = at + 192 + stored + -stored % 64
        data[at + 176 : at + 184] = digest(data[at + 192 : end])
        data[at + 184 : at + 192] = digest(data[at : at + 184])
        heads.append(bytes(data[at : at + 192]))
        at = end
    reseal_footer(data, heads)
    return data


def reseal_footer(data, heads):
    """Make the footer agree with the chunk headers, where there is one."""
    if data[-8:] != b"MSCANend":
        return
    offset, size = struct.unpack("<2Q", data[-32:-16])
    if offset + size > len(data) or size < 192 + 192 * len(heads):
        return
    data[offset + 192 : offset + 192 + 192 * len(heads)] = b"".join(heads)
    data[offset + 56 : offset + 64] = digest(data[offset : offset + 56])
    data[offset + 184 : offset + 192] = digest(data[offset + 64 : offset + 184])
    if any(data[128:256]):
        data[128:256] = data[offset + 64 : offset + 192]
    data[-16:-8] = digest(data[offset : offset + size])


def read(data, *, scan):
    """Read everything that a reader can."""
    try:
        one = segment.read_segment(data, NAME, scan=scan)
    except MScanError:
        return
    for chunk, entry in enumerate(one.entries):
        try:
            if entry["kind"] == ChunkKind.METRICS:
                one.records(chunk)
            elif entry["kind"] == ChunkKind.TENSOR:
                for packet in one.packets(chunk):
                    packet.to_float32()
            else:
                segment.read_points(one, chunk)
        except MScanError:
            continue


def run(data):
    """One input."""
    content = bytes(data[:-1])
    if data and data[-1] % 4:
        content = bytes(resealed(content))
    read(content, scan=False)
    read(content, scan=True)
    problems = verify.verify_data(memoryview(content), NAME)
    assert all(isinstance(problem, MScanError) for problem in problems)


if __name__ == "__main__":
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()
