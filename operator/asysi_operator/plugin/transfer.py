"""Transfers files between this machine and a claim, through a pod that mounts it."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from asysi.contract.errors import ConfigError
from asysi_operator.plugin import pod_side
from asysi_operator.plugin.access import ClusterError
from asysi_operator.plugin.kubectl import Kubectl, finish
from asysi_operator.plugin.meter import Meter

_SAYS = "asysi: "
"""Prefix of error messages from the pod side."""


@dataclass(frozen=True)
class ClaimFolder:
    """A folder in a running container."""

    pod: str
    container: str
    folder: str


@dataclass(frozen=True)
class TransferResult:
    """Result of a transfer."""

    files: int
    size: int
    """Bytes."""


def fetch(
    kubectl: Kubectl, place: ClaimFolder, paths: Sequence[str], target: Path, *, overwrite: bool
) -> TransferResult:
    """Copy a folder of a container, or paths in it, to `target`, atomically.

    Raises:
        ConfigError: `target` exists and may not be replaced, or the source does not exist.
        ClusterError: the stream was cut off.
    """
    refuse_existing(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        moved = _unpack(kubectl, place, paths, stage / "new")
        _swap(stage / "new", target, stage / "old")
        return moved
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def fetch_file(kubectl: Kubectl, place: ClaimFolder, path: str, target: Path) -> TransferResult:
    """Copy one file of a container to `target`, atomically; an existing file is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        moved = _unpack(kubectl, place, [path], stage / "new")
        (stage / "new" / path).replace(target)
        return moved
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Reject an existing folder, unless it is empty or may be replaced.

    Raises:
        ConfigError: it exists.
    """
    if target.exists() and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(
            f"{target} exists: name another folder with --output, or replace it with --overwrite"
        )


def refuse_folder(file: Path) -> None:
    """Refuse a folder where a file is to be written.

    Raises:
        ConfigError: it is one.
    """
    if file.is_dir():
        raise ConfigError(f"{file} is a folder: name the file to write in it")


def put(kubectl: Kubectl, place: ClaimFolder, sources: Sequence[Path], *, overwrite: bool) -> TransferResult:
    """Copy local files and folders into a folder of a container, each atomically.

    Raises:
        ConfigError: one of them already exists there.
        ClusterError: the stream was cut off.
    """
    arguments = _exec(place, "receive", *(["replace"] if overwrite else []), stdin=True)
    with kubectl.stream(*arguments, content=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        meter = Meter(process.stdin)
        with (
            contextlib.closing(meter),
            contextlib.suppress(BrokenPipeError),
        ):  # the pod reports why it stopped reading
            pod_side.send_several(list(sources), cast(IO[bytes], meter))
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        said = process.stdout.read()
        with _explained():
            finish(process, arguments)
        return _moved(said)


def _unpack(kubectl: Kubectl, place: ClaimFolder, paths: Sequence[str], folder: Path) -> TransferResult:
    folder.mkdir()
    arguments = _exec(place, "send", *paths)
    with kubectl.stream(*arguments) as process:
        assert process.stdout is not None
        try:
            with contextlib.closing(Meter(process.stdout)) as meter:
                files, size = pod_side.unpack(cast(IO[bytes], meter), folder)
        except pod_side.TransferError as error:
            process.stdout.close()
            with _explained():
                finish(process, arguments)  # its error explains the cut stream better
            raise ClusterError(f"{error}; nothing was kept, try again") from error
        process.stdout.read()
        with _explained():
            finish(process, arguments)
        return TransferResult(files, size)


def _swap(new: Path, target: Path, aside: Path) -> None:
    """Replace `target` with `new`."""
    if target.exists():
        target.rename(aside)
    new.rename(target)


def _exec(place: ClaimFolder, verb: str, *rest: str, stdin: bool = False) -> list[str]:
    code = Path(pod_side.__file__).read_text(encoding="utf-8")
    return [
        "exec", *(["--stdin"] if stdin else []), place.pod, f"--container={place.container}",
        "--", "python", "-c", code, verb, place.folder, *rest,
    ]  # fmt: skip


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Convert an error message from the pod side into a ConfigError."""
    try:
        yield
    except ClusterError as error:
        if _SAYS in error.said:
            sentence = error.said.split(_SAYS, 1)[1].splitlines()[0]
            raise ConfigError(sentence) from error
        raise


def _moved(said: bytes) -> TransferResult:
    try:
        found = json.loads(said)
        return TransferResult(int(found["files"]), int(found["bytes"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError("the pod did not report what it received: try again") from error


def result_path(text: str, option: str = "--only") -> str:
    """Validate a relative path within a folder.

    Raises:
        ConfigError: it leads out of the folder.
    """
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(
            f"{option} is {text}, which leads out of the folder: write a path within it, like sae"
        )
    return str(path)


def distinct(files: Sequence[Path]) -> list[Path]:
    """Return the files and folders to copy; their names must be unique.

    Raises:
        ConfigError: two share a name, or one has none.
    """
    found: dict[str, Path] = {}
    for file in files:
        path = file.resolve() if file.name in {"", ".."} else file
        if path.name in found:
            raise ConfigError(
                f"{found[path.name]} and {path} would both be {path.name} on the claim: copy only one of them"
            )
        found[path.name] = path
    if "" in found:
        raise ConfigError("the root folder has no name to keep: name the folders in it")
    return list(found.values())
