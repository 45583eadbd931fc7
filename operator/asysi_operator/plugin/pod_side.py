"""The transfer code that runs in the pod, passed to `python -c`: standard library only.

    send FOLDER [PATH …]     write a tar stream of the folder, or of paths in it, to standard output
    receive FOLDER [replace] extract a tar stream from standard input into the folder

The last member of a stream is a tally of the members before it. A stream without it is truncated and is
rejected: tar itself does not distinguish a cut between two members from the end.
"""

import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

TALLY = ".asysi-tally"
"""Name of the last member: JSON with the number of files and bytes."""
STAGE = ".asysi-put-"
"""Prefix of the staging folder, which is filled before anything is moved into place."""
STALE_SECONDS = 2 * 24 * 3600
"""Age after which a staging folder belongs to a killed transfer: no short-lived pod lives that long."""
_FILTER: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""The filter requires Python 3.11.4; Debian's is older."""


class TransferError(Exception):
    """An error whose message is a sentence for the user."""


def send(folder: Path, paths: list[str], stream: IO[bytes]) -> None:
    """Write a folder, or paths in it, as a tar stream with a tally.

    Files that vanish in the meantime are skipped; of a file that grows, only the initial size is sent. Links
    and other non-regular files are skipped.
    """
    if not folder.is_dir():
        raise TransferError(f"there is no folder {folder} on the claim: nothing has been written yet")
    for path in paths:
        if not (folder / path).exists():
            raise TransferError(f"there is no {path} in {folder} yet")
    roots = [folder / path for path in paths] or [folder]
    write(((file, file.relative_to(folder)) for root in roots for file in _files(root)), stream)


def send_several(sources: list[Path], stream: IO[bytes]) -> None:
    """Write files and folders, each under its own name, as a tar stream with a tally."""
    write(((file, file.relative_to(root.parent)) for root in sources for file in _files(root)), stream)


def write(files: Iterable[tuple[Path, Path]], stream: IO[bytes]) -> None:
    """Write (file, name) pairs to a tar stream, then the tally."""
    count = size = 0
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for file, name in files:
            try:
                content = file.open("rb")
            except FileNotFoundError:
                continue
            with content:
                member = tar.gettarinfo(arcname=str(name), fileobj=content)
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                tar.addfile(member, content)
            count, size = count + 1, size + member.size
        _add_tally(tar, count, size)


def _files(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
    else:
        for base, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith(STAGE))
            for name in sorted(names):
                found = Path(base, name)
                if found.is_file() and not found.is_symlink():
                    yield found


def _add_tally(tar: tarfile.TarFile, files: int, size: int) -> None:
    text = json.dumps({"files": files, "bytes": size}).encode()
    member = tarfile.TarInfo(TALLY)
    member.size = len(text)
    tar.addfile(member, io.BytesIO(text))


def unpack(stream: IO[bytes], folder: Path) -> tuple[int, int]:
    """Extract a stream into an empty folder; return the number of files and bytes.

    Members that would escape the folder (by `..`, an absolute path or a link), or that are neither a file nor
    a folder, are rejected.
    """
    files = size = 0
    tally = None
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if member.name == TALLY:
                    content = tar.extractfile(member)
                    tally = json.loads(content.read(4096)) if content else None
                    break
                _refuse_outside(member)
                tar.extract(member, folder, **_FILTER)
                files, size = files + member.isreg(), size + (member.size if member.isreg() else 0)
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise TransferError(f"the stream broke off: {error}") from error
    if tally != {"files": files, "bytes": size}:
        raise TransferError(f"the stream broke off after {files} files")
    return files, size


def _refuse_outside(member: tarfile.TarInfo) -> None:
    """Reject a member that would escape the folder. Without links, its name alone decides."""
    if not (member.isreg() or member.isdir()):
        raise TransferError(f"{member.name} is neither a file nor a folder, and is refused")
    if member.name.startswith("/") or ".." in Path(member.name).parts:
        raise TransferError(f"{member.name} leads out of the folder, and is refused")


def receive(folder: Path, stream: IO[bytes], *, replace: bool) -> tuple[int, int]:
    """Extract a stream into a folder; each top-level entry appears complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{STAGE}*"):
        if time.time() - old.stat().st_mtime > STALE_SECONDS:  # a newer one may be in use by another transfer
            shutil.rmtree(old, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(prefix=STAGE, dir=folder))
    try:
        new, aside = stage / "new", stage / "old"
        new.mkdir()
        aside.mkdir()
        files, size = unpack(stream, new)
        there = sorted(path.name for path in new.iterdir() if (folder / path.name).exists())
        if there and not replace:
            raise TransferError(f"{', '.join(there)} already exists: --overwrite replaces it")
        for path in sorted(new.iterdir()):
            target = folder / path.name
            if target.exists():
                target.rename(aside / path.name)
            path.rename(target)
        os.sync()
        return files, size
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Execute the command given by the arguments; returns the exit code."""
    verb, folder, *rest = arguments
    try:
        if verb == "send":
            send(Path(folder), rest, sys.stdout.buffer)
        else:
            files, size = receive(Path(folder), sys.stdin.buffer, replace="replace" in rest)
            sys.stdout.write(json.dumps({"files": files, "bytes": size}) + "\n")
    except TransferError as error:
        sys.stderr.write(f"asysi: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"asysi: {error.strerror or error}: {error.filename or folder}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
