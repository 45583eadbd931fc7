"""Atomic file writes, and detection of full storage."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(file: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file next to `file`, fsync it, then rename it to `file`.

    If the process is killed, the old file remains, and the next call overwrites the temporary one. If writing
    fails, the old file remains and the temporary one is deleted, so that it does not fill up the disk.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        write(temporary)
        sync(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(file)
    sync(file.parent)


def write_atomic(file: Path, text: str) -> None:
    """Write `text` to `file` atomically."""
    write_atomically(file, lambda temporary: _fill(temporary, text))


def _fill(file: Path, text: str) -> None:
    file.write_text(text)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to storage with fsync."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: BaseException | None) -> bool:
    """Return whether an error or its cause reports that the storage is full.

    Libraries with their own I/O, such as safetensors, report it only in the message.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        if f"os error {errno.ENOSPC}" in str(error) or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold a lock on `file`, which is made; it is released at the end, and by the death of the process."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def is_held(file: Path) -> bool:
    """Return whether another process holds the lock on `file`; no file is not held."""
    try:
        with file.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return True
        raise
    return False
