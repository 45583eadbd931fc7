"""Input files of a run: pinned when it starts, and never files that it writes itself.

The list of files and their digests is stored in the image when a pipeline is created. A resume reads only
those files and rejects changed ones. Later files are reported but not read.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from re import compile as compiled
from typing import Any, Protocol

from fsspec.utils import glob_translate

from asysi.contract.errors import ConfigError
from asysi.locations import filesystem
from asysi.pipeline.streams.data_streams import FileStream, IDataStream
from asysi.pipeline.streams.seal import START_OVER, SealError, is_local, prefix_digest

_DIGESTED = 16 << 30
"""Input size in bytes up to which files are digested; larger inputs are identified by size and mtime."""
_EVERYTHING = 1 << 62
_SHOWN = 3
_SIGNS = "*?["


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of an input.

    Attributes:
        url: path or fsspec URL.
        bytes: its size.
        written: modification time, or ETag in a store; None if neither is known.
        digest: XXH3-128, hexadecimal; None for a file in a store, or for inputs above 16 GiB.
    """

    url: str
    bytes: int
    written: str | None
    digest: str | None = None

    def __str__(self) -> str:
        return self.url.removeprefix("file://")


class BoundNode(Protocol):
    """The part of a node that binds it to streams."""

    node_id: str
    input_bus: IDataStream | None
    output_bus: IDataStream | None


def pin(bus: IDataStream) -> list[InputFile] | None:
    """Pin the files of a complete stream and return them; None for other streams."""
    if not isinstance(bus, FileStream) or bus.bound or not (bus.static or bus.is_sealed()):
        return None
    files = [_state(url) for url in bus.urls()]
    if sum(file.bytes for file in files) <= _DIGESTED:
        files = [_digested(file) for file in files]
    bus.pinned = [file.url for file in files]
    return files or None


def restore(bus: IDataStream, pinned: Sequence[Mapping[str, Any]], *, accept: bool) -> list[InputFile]:
    """Make a stream read the pinned files, and return their current state.

    Args:
        bus: the input.
        pinned: the files as stored in the image.
        accept: continue even if files changed; their committed part must be unchanged in any case.

    Raises:
        SealError: a file is missing or changed; the message says which.
    """
    before = [InputFile(**file) for file in pinned]
    assert isinstance(bus, FileStream)
    bus.pinned = [file.url for file in before]
    now, problems = [], []
    for file in before:
        found = _inspect(file)
        if found is None:
            problems.append(f"{file} is gone")
        elif difference := _difference(file, found):
            problems.append(f"{file} is not what it was when the pipeline began: {difference}")
        now.append(found or file)
    gone = any(problem.endswith("is gone") for problem in problems)
    if problems and (gone or not accept):
        raise SealError(
            *problems,
            f"rows of two inputs would be mixed: restore the files, {START_OVER}, or, where only rows"
            " that are not committed yet were changed, go on with --accept-changes (in Python"
            " accept_changes=True)",
        )
    return now


def refuse_changes(bus: IDataStream, pinned: Sequence[InputFile]) -> None:
    """Reject files that changed between `create()` and `run()`, by size and modification time.

    Raises:
        SealError: a file changed; the message says which.
    """
    for file in pinned:
        if (found := _state_or_none(file.url)) is None or (found.bytes, found.written) != (
            file.bytes,
            file.written,
        ):
            raise SealError(
                f"{file} was changed or removed after the files of {bus.uri} had been listed: {START_OVER}"
            )


def new_files(bus: IDataStream | None, pinned: Sequence[InputFile] | None) -> list[str]:
    """Return files that match the input but are not pinned, and pinned files that have grown."""
    if not pinned or not isinstance(bus, FileStream):
        return []
    known = {file.url for file in pinned}
    grown = [
        f"{file} (has grown)"
        for file in pinned
        if (now := _state_or_none(file.url)) is not None and now.bytes > file.bytes
    ]
    return grown + [str(InputFile(url, 0, None)) for url in bus.matches() if url not in known]


def say_new(uri: str, found: Sequence[str]) -> str:
    """Return a message about files that appeared after the run had started."""
    names = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    return (
        f"{len(found)} new file{'s' if len(found) > 1 else ''} in {uri}, not part of this run, which reads"
        f" the files that were there when it began: {names}. Run them under another pipelineId"
    )


def same(one: Sequence[Mapping[str, Any]] | None, other: Sequence[Mapping[str, Any]] | None) -> bool:
    """Return whether two lists of pinned files have the same files and contents."""
    return [_identity(file) for file in one or ()] == [_identity(file) for file in other or ()]


def as_image(files: Sequence[InputFile] | None) -> list[dict[str, Any]] | None:
    """Return pinned files in the format of the image."""
    return None if files is None else [asdict(file) for file in files]


def refuse_own_output(nodes: Sequence[BoundNode], results_dir: Path, more: Iterable[str | None] = ()) -> None:
    """Reject a pipeline whose input is, or whose input pattern matches, a file that it writes itself.

    Args:
        nodes: its nodes, bound to their streams.
        results_dir: its results folder.
        more: paths and URLs of other files it writes.

    Raises:
        ConfigError: there is such a file; the message names it.
    """
    names = [node.node_id for node in nodes]
    rest = [*filter(None, more), *(str(results_dir / name) for name in _files_of(names))]
    outputs = [_places(node.output_bus) for node in nodes]
    for index, node in enumerate(nodes):
        if node.input_bus is not None and not node.input_bus.bound:
            own = [place for places in outputs[index:] for place in places]
            _refuse_match(node.input_bus, [*own, *(rest if index == 0 else ())])


def _files_of(nodes: Sequence[str]) -> Iterator[str]:
    """Yield the files that a pipeline writes in its results folder."""
    yield from ("runtime.json", "checkpoint.json", "ledger.sqlite", "answers.sqlite")
    for name in nodes:
        yield f"dead_letters/{name}.jsonl"
        yield f"redrive/0000/{name}/letters.jsonl"
        yield from (f"redrive/0000/{name}/{behind}.jsonl" for behind in nodes)


def _places(bus: IDataStream | None) -> list[str]:
    """Return the files that a stream writes: the file, its seal, and its spool."""
    if not isinstance(bus, FileStream):
        return []
    spool = [] if bus.appendable else [str(bus.log().path)]
    return [bus.url, f"{bus.url}.done", *spool]


def _refuse_match(source: IDataStream, written: Iterable[str]) -> None:
    """Reject an input that is, or matches, one of these paths or URLs.

    Raises:
        ConfigError: it does; the message names the path.
    """
    if not isinstance(source, FileStream):
        return
    files, pattern = filesystem(source.url)
    matching = [compiled(glob_translate(one)).match for one in _spellings(pattern, local=is_local(files))]
    protocol = files.unstrip_protocol(pattern).partition("://")[0]
    for url in written:
        others, path = filesystem(url)
        if others.unstrip_protocol(path).partition("://")[0] != protocol:
            continue
        if any(matches(one) for one in _spellings(path, local=is_local(others)) for matches in matching):
            how = "matches" if any(sign in pattern for sign in _SIGNS) else "is"
            raise ConfigError(
                f"{source.uri} {how} {path}, which this pipeline writes: its rows would be read again. Write"
                " to another folder (outputUri, basePath), or read a pattern that does not match it"
            )


def _spellings(path: str, *, local: bool) -> set[str]:
    """Return a path as given and with symlinks resolved; in a pattern, up to the first wildcard."""
    if not local:
        return {path}
    at = min((path.find(sign) for sign in _SIGNS if sign in path), default=len(path))
    cut = len(path) if at == len(path) else path.rfind("/", 0, at) + 1
    real = os.path.realpath(path[:cut])
    return {path, real + ("/" if cut < len(path) and real != "/" else "") + path[cut:]}


def _state(url: str) -> InputFile:
    files, path = filesystem(url)
    info = files.info(path)
    tag = next(
        (info[key] for key in ("mtime", "ETag", "etag", "LastModified", "created") if info.get(key)), None
    )
    return InputFile(url, int(info.get("size") or 0), None if tag is None else str(tag))


def _state_or_none(url: str) -> InputFile | None:
    try:
        return _state(url)
    except FileNotFoundError:
        return None


def _digested(file: InputFile) -> InputFile:
    files, path = filesystem(file.url)
    if not is_local(files):
        return file
    with Path(path).open("rb", buffering=0) as stream:
        digest = prefix_digest(stream, _EVERYTHING).hexdigest()
        return InputFile(file.url, stream.tell(), file.written, digest)


def _inspect(file: InputFile) -> InputFile | None:
    """Return a file's current state, with a digest if it had one; None if it does not exist."""
    found = _state_or_none(file.url)
    return _digested(found) if found is not None and file.digest is not None else found


def _difference(before: InputFile, now: InputFile) -> str:
    if before.digest is not None:
        if before.digest == now.digest:
            return ""
        sizes = f"{before.bytes} bytes then, {now.bytes} now; " if before.bytes != now.bytes else ""
        return f"{sizes}its digest was {before.digest}, it is {now.digest}"
    if before.bytes != now.bytes:
        return f"{before.bytes} bytes then, {now.bytes} now"
    return "" if before.written == now.written else "it was written since"


def _identity(file: Mapping[str, Any]) -> tuple[Any, ...]:
    return file["url"], file["bytes"], file["digest"] or file["written"]
