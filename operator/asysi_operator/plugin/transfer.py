"""Files between this machine and a claim, through a pod that has it."""

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
"""How a sentence of the pod's side begins."""


@dataclass(frozen=True)
class ClaimFolder:
    """A folder in a container that runs."""

    pod: str
    container: str
    folder: str


@dataclass(frozen=True)
class Moved:
    """What a transfer has moved."""

    files: int
    size: int
    """Bytes."""


def fetch(
    kubectl: Kubectl, place: ClaimFolder, paths: Sequence[str], target: Path, *, overwrite: bool
) -> Moved:
    """Copy a folder of a container, or paths in it, to `target`, which is there whole or not at all.

    Raises:
        ConfigError: `target` exists and is not to be replaced, or what was asked for is not there.
        ClusterError: the stream broke off.
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


def fetch_file(kubectl: Kubectl, place: ClaimFolder, path: str, target: Path) -> Moved:
    """Copy one file of a container to `target`, atomically; one that is there is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        moved = _unpack(kubectl, place, [path], stage / "new")
        (stage / "new" / path).replace(target)
        return moved
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is there, unless it is empty or to be replaced.

    Raises:
        ConfigError: it is there.
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


def put(kubectl: Kubectl, place: ClaimFolder, sources: Sequence[Path], *, overwrite: bool) -> Moved:
    """Copy files and folders of this machine into a folder of a container, each whole or not at all.

    Raises:
        ConfigError: one of them is there already.
        ClusterError: the stream broke off.
    """
    arguments = _exec(place, "receive", *(["replace"] if overwrite else []), stdin=True)
    with kubectl.stream(*arguments, content=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        meter = Meter(process.stdin)
        with (
            contextlib.closing(meter),
            contextlib.suppress(BrokenPipeError),
        ):  # the pod says why it reads no further
            pod_side.send_several(list(sources), cast(IO[bytes], meter))
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        said = process.stdout.read()
        with _explained():
            finish(process, arguments)
        return _moved(said)


def _unpack(kubectl: Kubectl, place: ClaimFolder, paths: Sequence[str], folder: Path) -> Moved:
    folder.mkdir()
    arguments = _exec(place, "send", *paths)
    with kubectl.stream(*arguments) as process:
        assert process.stdout is not None
        try:
            with contextlib.closing(Meter(process.stdout)) as meter:
                files, size = pod_side.unpack(cast(IO[bytes], meter), folder)
        except pod_side.WrongError as error:
            process.stdout.close()
            with _explained():
                finish(process, arguments)  # it knows better why the stream broke off
            raise ClusterError(f"{error}; nothing was kept, try again") from error
        process.stdout.read()
        with _explained():
            finish(process, arguments)
        return Moved(files, size)


def _swap(new: Path, target: Path, aside: Path) -> None:
    """Put `new` in the place of `target`."""
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
    """Turn what the pod's side has said into an error of the user's."""
    try:
        yield
    except ClusterError as error:
        if _SAYS in error.said:
            sentence = error.said.split(_SAYS, 1)[1].splitlines()[0]
            raise ConfigError(sentence) from error
        raise


def _moved(said: bytes) -> Moved:
    try:
        found = json.loads(said)
        return Moved(int(found["files"]), int(found["bytes"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError("the pod did not say what it has received: try again") from error


def result_path(text: str, option: str = "--only") -> str:
    """Return a path within a folder as the user wrote it.

    Raises:
        ConfigError: it leads elsewhere.
    """
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(
            f"{option} is {text}, which leads out of the folder: write a path within it, like sae"
        )
    return str(path)


def distinct(files: Sequence[Path]) -> list[Path]:
    """Return the files and folders to copy, which are told apart by their names.

    Raises:
        ConfigError: two have one name, or one has none.
    """
    found: dict[str, Path] = {}
    for file in files:
        path = file.resolve() if file.name in {"", ".."} else file
        if path.name in found:
            raise ConfigError(
                f"{found[path.name]} and {path} would both be {path.name} on the claim: put one of them"
            )
        found[path.name] = path
    if "" in found:
        raise ConfigError("the root folder has no name to keep: name the folders in it")
    return list(found.values())
