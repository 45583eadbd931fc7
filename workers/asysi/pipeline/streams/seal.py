"""Seals: `FILE.done` next to a finished file records its number of rows and its digest."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from asysi.contract.errors import ConfigError
from asysi.files import write_atomic
from asysi.locations import filesystem

_CHUNK = 1 << 20
START_OVER = "start over with `run --overwrite` (in Python create(overwrite=True))"
"""Advice of last resort in most error messages, as the end of a sentence."""


class SealError(ConfigError):
    """A file differs from its seal or the ledger."""


class ChangedError(SealError):
    """A file differs from its seal.

    Attributes:
        facts: the differences.
        advice: default advice, if the reader is unknown.
    """

    def __init__(self, facts: str, advice: str) -> None:
        super().__init__(f"{facts}. {advice}")
        self.facts, self.advice = facts, advice


@dataclass(frozen=True, slots=True)
class Seal:
    """Metadata of a finished file.

    Attributes:
        rows: number of rows.
        bytes: size of the file.
        digest: XXH3-128 of the file, hexadecimal.
        first, last: ids of the first and last row, None without rows or ids.
        node: node that wrote it, None for a file sealed manually.
        pipeline_id: pipeline of that node.
        parent: digest of the source that it was created from.
    """

    rows: int
    bytes: int
    digest: str
    first: str | None = None
    last: str | None = None
    node: str | None = None
    pipeline_id: str | None = None
    parent: str | None = None

    def text(self) -> str:
        """Return the seal as the text of its file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def of(cls, text: str, where: str) -> "Seal":
        """Parse a seal.

        Raises:
            SealError: it is not a seal.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise SealError(f"{where} is not a seal ({error}): restore it, or {START_OVER}") from error


def seal_path(path: str) -> str:
    """Return the path of a file's seal."""
    return f"{path}.done"


def read_seal(url: str) -> Seal | None:
    """Return the seal of a file (a path or fsspec URL), or None if it has none.

    Raises:
        SealError: the seal is invalid.
    """
    files, path = filesystem(seal_path(url))
    if not files.exists(path):
        return None
    return Seal.of(files.cat_file(path).decode(errors="replace"), path)


def write_seal(url: str, seal: Seal) -> None:
    """Write the seal of a file (a path or fsspec URL), atomically."""
    files, path = filesystem(seal_path(url))
    if is_local(files):
        write_atomic(Path(path), seal.text())
    else:
        files.pipe_file(path, seal.text().encode())


def remove_seal(url: str) -> None:
    """Remove the seal of a file, if it has one."""
    files, path = filesystem(seal_path(url))
    if files.exists(path):
        files.rm_file(path)


def is_local(files: Any) -> bool:
    """Return whether an fsspec file system is local."""
    protocol = files.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def measure(stream: BinaryIO) -> tuple[int, int, str]:
    """Return rows (newlines, plus an unterminated last line), bytes and digest of a stream."""
    digest, rows, size, last = xxhash.xxh3_128(), 0, 0, b"\n"
    for chunk in _chunks(stream):
        digest.update(chunk)
        rows += chunk.count(b"\n")
        size += len(chunk)
        last = chunk[-1:]
    return rows + (last != b"\n"), size, digest.hexdigest()


def check(where: str, seal: Seal, found: tuple[int, int, str]) -> None:
    """Compare a file with its seal.

    Raises:
        SealError: they differ; the message says how.
    """
    rows, size, digest = found
    differences = [
        f"the seal says {said} {what}, the file has {has}"
        for what, said, has in (("rows", seal.rows, rows), ("bytes", seal.bytes, size))
        if said != has
    ]
    if digest != seal.digest:
        differences.append(f"its digest is {digest}, not {seal.digest}")
    if differences:
        raise ChangedError(
            f"{where} was changed after it had been sealed: {'; '.join(differences)}",
            f"Restore it, or, if the change is meant, remove {seal_path(where)} (between nodes wired by hand:"
            " call seal() on it)",
        )


def prefix_digest(stream: BinaryIO, size: int) -> Any:
    """Return the running XXH3-128 of the first `size` bytes of a stream (fewer, if it has fewer)."""
    digest = xxhash.xxh3_128()
    while size > 0 and (chunk := stream.read(min(size, _CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk


def sync_file(descriptor: int) -> None:
    """Sync a descriptor's data to disk."""
    getattr(os, "fdatasync", os.fsync)(descriptor)
