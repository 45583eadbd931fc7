"""Detects whether a process holds or writes a file, by locks and /proc."""

import fcntl
import os
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR


def is_locked(path: Path) -> bool:
    """Return whether a pipeline writer holds the file's lock."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_written(paths: list[Path]) -> bool:
    """Return whether a visible process writes one of these files."""
    return any(path.exists() and is_locked(path) for path in paths) or _is_open_for_writing(paths)


def _is_open_for_writing(paths: list[Path]) -> bool:
    """Return whether a process has one of these files open for writing, according to /proc."""
    wanted = {str(path.resolve()) for path in paths}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            numbers = [file.name for file in (process / "fd").iterdir()]
        except OSError:  # it has ended, or belongs to another user
            continue
        if any(_writes(process, number, wanted) for number in numbers):
            return True
    return False


def _writes(process: Path, number: str, wanted: set[str]) -> bool:
    try:
        if os.readlink(process / "fd" / number) not in wanted:  # noqa: PTH115 - faster, for thousands
            return False
        text = (process / "fdinfo" / number).read_text()
    except OSError:
        return False
    flags = next((line.split()[1] for line in text.splitlines() if line.startswith("flags:")), "0")
    return bool(int(flags, 8) & _WRITING)
