"""Files that appear whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(file: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `file`, put it on the disk, then give it its name.

    Whoever is killed on the way leaves the old file, and a temporary one that the next call overwrites.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    write(temporary)
    sync(temporary)
    temporary.replace(file)
    sync(file.parent)


def write_atomic(file: Path, text: str) -> None:
    """Write `text` to `file`, whole or not at all."""
    write_atomically(file, lambda temporary: _fill(temporary, text))


def _fill(file: Path, text: str) -> None:
    file.write_text(text)


def sync(path: Path) -> None:
    """Wait until the storage holds a file's bytes, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
