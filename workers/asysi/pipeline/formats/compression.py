"""Compressed files: detected by their magic bytes, read member by member, written reproducibly."""

import bz2
import gzip
import io
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from asysi.contract.errors import ConfigError

HEAD = 6
"""Number of bytes needed to detect the compression."""
ENDINGS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""Compression of an output file, by suffix."""
_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"PK\x03\x04", "zip"),
)
_CHUNK = 1 << 16
_WINDOW = 1 << 31
_READERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj(),
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}
_ERRORS = (zlib.error, OSError, lzma.LZMAError, zstandard.ZstdError, EOFError, zipfile.BadZipFile)


class BrokenFileError(ConfigError):
    """A compressed file ends too early or is damaged."""


def compression_of(head: bytes) -> str | None:
    """Return the compression of a file with these first bytes, None if uncompressed."""
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def compression_for(name: str) -> str | None:
    """Return the compression of an output file of this name, None if uncompressed.

    Raises:
        ConfigError: writing that format is not supported.
    """
    if name.endswith(".zip"):
        raise ConfigError(f"{name} cannot be written: a .zip holds several files; name it .gz or .zst")
    return next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), None)


def decompressed(stream: IO[bytes], kind: str | None, name: str) -> Iterator[bytes]:
    """Yield the decompressed contents of a file in pieces.

    Args:
        stream: the file.
        kind: its compression, None if uncompressed.
        name: its name in errors.

    Raises:
        BrokenFileError: it is truncated or damaged; the message gives the byte.
    """
    if kind is None:
        while data := stream.read(_CHUNK * 4):
            yield data
    elif kind == "zip":
        yield from _unzipped(stream, name)
    else:
        yield from _members(stream, kind, name)


def compress(source: Path, target: Path, kind: str) -> None:
    """Compress a file reproducibly: the same source gives the same bytes."""
    with source.open("rb") as plain, target.open("wb") as raw, _writer(raw, kind) as packed:
        shutil.copyfileobj(plain, packed, _CHUNK * 4)


def _writer(raw: IO[bytes], kind: str) -> Any:
    if kind == "gzip":
        return gzip.GzipFile("", "wb", 6, raw, mtime=0)
    if kind == "zstd":
        return zstandard.ZstdCompressor(write_checksum=True).stream_writer(raw, closefd=False)
    return bz2.BZ2File(raw, "wb") if kind == "bz2" else lzma.LZMAFile(raw, "wb")


def _members(stream: IO[bytes], kind: str, name: str) -> Iterator[bytes]:
    """Yield the contents of a file's members in order."""
    reader, begun, at = _READERS[kind](), False, 0
    while data := stream.read(_CHUNK):
        at += len(data)
        while data:
            if reader.eof:
                if kind == "gzip" and not data.strip(b"\0"):  # zero padding, as on tapes
                    break
                reader = _READERS[kind]()
            begun = True
            try:
                out = reader.decompress(data)
            except _ERRORS as error:
                raise BrokenFileError(_broken(name, at, f"is damaged ({error})")) from error
            if out:
                yield out
            data = reader.unused_data if reader.eof else b""
    if begun and not reader.eof:
        raise BrokenFileError(_broken(name, at, "ends too early"))


def _unzipped(stream: IO[bytes], name: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(stream) as archive:
            found = [member for member in archive.infolist() if not member.is_dir()]
            if len(found) != 1:
                raise ConfigError(f"{name} holds {len(found)} files: unpack it, and name those to be read")
            with archive.open(found[0]) as member:
                while data := member.read(_CHUNK):
                    yield data
    except _ERRORS as error:
        at = stream.tell() if not stream.closed else 0
        raise BrokenFileError(_broken(name, at, f"is damaged ({error})")) from error


def _broken(name: str, at: int, what: str) -> str:
    return f"{name} {what}, at byte {at:,}"


def lines_of(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file given in pieces, each with its newline except possibly the last."""
    rest: list[bytes] = []
    for piece in pieces:
        end = piece.rfind(b"\n") + 1
        if not end:
            rest.append(piece)
            continue
        yield from io.BytesIO(b"".join([*rest, piece[:end]]))
        rest = [piece[end:]] if end < len(piece) else []
    if rest:
        yield b"".join(rest)
