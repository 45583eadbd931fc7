"""Files that appear whole or not at all, and what is said when there is no room for them."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(file: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `file`, put it on the disk, then give it its name.

    Whoever is killed on the way leaves the old file, and a temporary one that the next call overwrites. Where
    writing fails the old file stays, and the temporary one goes: on a full disk it would hold the last room.
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


def is_full(error: BaseException | None) -> bool:
    """Return whether an error says that the storage has no room left, itself or by its cause.

    Libraries that write by themselves, such as safetensors, say it in words alone.
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
