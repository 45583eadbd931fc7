"""Streams: rows to read and write at a URI.

`jsonl://`, `csv://` and `parquet://` take a path or any fsspec URL; `memory://name` is in this process. Nodes
always write JSON lines, which can be continued after a crash. For other streams (CSV, Parquet, compressed,
remote), the lines are spooled, and the finished file is written from them when the node has finished.
"""

import contextlib
import io
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import xxhash

from asysi.contract.errors import ConfigError
from asysi.files import write_atomically
from asysi.locations import filesystem, reaching, upload
from asysi.pipeline.formats import format_detection
from asysi.pipeline.formats.compression import (
    BrokenFileError,
    compress,
    compression_for,
    compression_of,
    decompressed,
)
from asysi.pipeline.formats.uris import PARQUET_OPTIONS, split_options, with_format
from asysi.pipeline.rows import values
from asysi.pipeline.streams.row_log import FileLog, Log, MemoryLog, StreamBridge
from asysi.pipeline.streams.seal import (
    Seal,
    check,
    is_local,
    measure,
    read_seal,
    remove_seal,
    seal_path,
    write_seal,
)
from asysi.pipeline.streams.source import (
    CHUNK,
    ConvertedFeed,
    Feed,
    FilesFeed,
    FollowFeed,
    LineSource,
    LogFeed,
    Window,
    brings_ids,
)

_SIGNS = "*?["


class IDataStream(ABC):
    """A stream of rows to read or write.

    Attributes:
        uri: its URI.
        bridge: progress of the writer, for readers in this process.
    """

    uri: str
    bridge: StreamBridge
    bound = False
    """Whether a node in this process writes it; readers then follow that node."""
    static = False
    """Whether it is complete even without a seal."""

    @abstractmethod
    def log(self) -> Log:
        """Return the log that rows are written to."""

    @abstractmethod
    def source(self, window: Window | None = None) -> LineSource:
        """Return the source that rows are read from."""

    @abstractmethod
    def seal(self) -> Seal:
        """Mark it as complete, so that nodes may read it to its end."""

    @abstractmethod
    def unseal(self) -> None:
        """Remove the seal."""

    @abstractmethod
    def read_seal(self) -> Seal | None:
        """Return its seal, if it has one."""

    @abstractmethod
    def finish(self, seal: Seal) -> None:
        """Write the finished file from the log, and seal it."""

    @abstractmethod
    def verify(self) -> Seal | None:
        """Compare it with its seal and return the seal.

        Raises:
            SealError: they differ.
        """

    @abstractmethod
    def exists(self) -> bool:
        """Return whether it exists."""

    @abstractmethod
    def remove(self) -> None:
        """Delete it and its seal."""

    def is_sealed(self) -> bool:
        """Return whether it is complete."""
        return self.read_seal() is not None

    def get_reader(self) -> Iterator[dict[str, Any]]:
        """Yield the existing rows."""
        source = self.source()
        source.open(source.first_row, source.begin)
        try:
            while (block := source.take(4096)) is not None:
                yield from map(values.loads, filter(bytes.strip, block.data.split(b"\n")))
        finally:
            source.close()

    def get_writer(self) -> "RowWriter":
        """Return a writer that overwrites the stream, for rows not written by a node."""
        return RowWriter(self)


class RowWriter:
    """Writes rows to a stream manually; leaving its `with` block without an error seals the stream."""

    def __init__(self, stream: IDataStream) -> None:
        self._stream, self._log, self._rows = stream, stream.log(), 0
        stream.unseal()
        self._log.open(0)

    def write(self, rows: dict[str, Any] | Iterable[dict[str, Any]]) -> None:
        """Add a row, or several."""
        several = [rows] if isinstance(rows, dict) else list(rows)
        self._log.append(b"".join(values.dumps(row) + b"\n" for row in several))
        self._rows += len(several)
        self._stream.bridge.advance(self._log.size, self._rows)

    def close(self) -> None:
        """Sync the rows to disk and seal the stream."""
        self._log.sync()
        self._stream.finish(
            Seal(self._rows, self._log.size, self._log.digest.hexdigest() if self._log.digest else "")
        )
        self._log.close()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._log.close()


class FileStream(IDataStream):
    """A file of JSON lines, or of another format through a spool; base class for custom protocols.

    A custom protocol overrides `locate` (from the part after `://` to a path or fsspec URL) and, for another
    format, `lines` and `convert`; register it with `StreamFactory.register`.

    Args:
        uri: the complete URI.
        spool: folder of the spool, if needed.
        patience: seconds that a reader waits for an unsealed file without a writer.
    """

    direct: ClassVar[bool] = True
    """Whether the file itself is JSON lines."""
    ending: ClassVar[str] = ".jsonl"
    """Usual suffix of files of this format."""
    known_options: ClassVar[tuple[str, ...]] = ()
    """Names of the options allowed after a `#`."""

    def __init__(self, uri: str, spool: Path | None = None, patience: float = 5.0) -> None:
        self.uri, self.patience = uri, patience
        rest = uri.partition("://")[2] or uri
        self.options: dict[str, str] = {}
        if self.known_options:
            rest, self.options = split_options(rest, self.known_options, uri)
        self.url = self.locate(rest)
        self.check_options(self.options)
        self.spool, self._spool_is_given = spool or Path("tmp") / "spool", spool is not None
        self.bridge = StreamBridge()
        self.pinned: list[str] | None = None
        """The files that a run reads once it has started; None: all matching files."""
        self._log: FileLog | None = None

    def move_spool(self, folder: Path) -> None:
        """Set the spool folder, unless it was given."""
        if not self._spool_is_given and self._log is None:
            self.spool = folder

    def locate(self, rest: str) -> str:
        """Return the path or fsspec URL for the part after `://`."""
        return rest

    def check_options(self, options: Mapping[str, str]) -> None:
        """Validate the options.

        Raises:
            ConfigError: an option is invalid.
        """

    def lines(self, url: str) -> Iterator[bytes]:
        """Yield the rows of a file of this format as JSON lines, in pieces."""
        last = b"\n"
        for piece in _without_bom(self.pieces(url)):
            last = piece[-1:]
            yield piece
        if last != b"\n":
            yield b"\n"

    def pieces(self, url: str) -> Iterator[bytes]:
        """Yield a file's contents, decompressed if its magic bytes say so."""
        files, path = filesystem(url)
        with reaching(url):
            kind = compression_of(_head(url))
            with files.open(path, "rb") as stream:
                yield from decompressed(stream, kind, _shown(url))

    def convert(self, rows: Callable[[], Iterator[dict[str, Any]]], file: Path) -> None:
        """Write rows to a local file in this format; `rows()` may be called more than once."""
        raise NotImplementedError

    @property
    def local(self) -> Path | None:
        """Path of the file, None if it is not local."""
        files, path = filesystem(self.url)
        return Path(path) if is_local(files) else None

    @property
    def appendable(self) -> bool:
        """Whether nodes write directly to the file."""
        return self.direct and compression_for(self.url) is None and self.local is not None

    def log(self) -> FileLog:
        """Return the rows as they are written.

        Raises:
            ConfigError: the file's compression cannot be written.
        """
        if self._log is None:
            local = self.local
            if not self.appendable or local is None:
                name = xxhash.xxh3_64(self.uri.encode()).hexdigest()
                local = self.spool / f"{Path(self.url).stem}-{name}.jsonl"
            self._log = FileLog(local)
        return self._log

    def source(self, window: Window | None = None) -> LineSource:
        """Return the rows to read.

        Raises:
            ConfigError: there is no such file.
        """
        if self.bound:
            return LineSource(LogFeed(self.log(), self.bridge), stored=True)
        urls = self.urls()
        if not urls:
            if self.static or self.local is None:
                raise ConfigError(f"{self.uri}: there is no such file")
            return LineSource(FollowFeed(self.local, self.patience), stored=True)
        feed: Feed
        if not self.direct or self._any_compressed(urls):
            feed = ConvertedFeed(lambda: (piece for url in urls for piece in self.lines(url)))
        elif self.static or self.is_sealed() or self.local is None:
            with reaching(self.url):
                feed = FilesFeed(urls, window)
                first = FilesFeed(urls[:1])
                return LineSource(feed, stored=brings_ids(first), window=window)
        else:
            feed = FollowFeed(self.local, self.patience)
        return LineSource(feed, stored=brings_ids(feed))

    def _any_compressed(self, urls: list[str]) -> bool:
        """Return whether a file is compressed, by its magic bytes; reject files that are not JSON lines."""
        kinds = []
        for url in urls:
            head = _head(url, format_detection.HEAD if self.static else 8)
            kinds.append(compression_of(head))
            if self.static:
                format_detection.refuse_other(_decompressed_head(head, kinds[-1], url), _shown(url))
        return any(kinds)

    def urls(self) -> list[str]:
        """Return the files to read, sorted by name."""
        return self.matches() if self.pinned is None else list(self.pinned)

    def matches(self) -> list[str]:
        """Return the currently matching files, sorted by name."""
        files, pattern = filesystem(self.url)
        try:
            with reaching(self.url):
                if any(sign in pattern for sign in _SIGNS):
                    found = files.glob(pattern, detail=True)
                    paths = sorted(path for path, info in found.items() if info["type"] != "directory")
                else:
                    paths = [pattern] if files.exists(pattern) else []
                    if paths and files.isdir(pattern):
                        raise ConfigError(
                            f"{self.uri} is a folder: name its files, like"
                            f" {self.uri.rstrip('/')}/*{self.ending}"
                        )
        except OSError as error:
            raise ConfigError(f"{self.uri} cannot be read: {error}") from error
        return [files.unstrip_protocol(path) for path in paths]

    def exists(self) -> bool:
        """Return whether there is such a file."""
        return bool(self.urls())

    def remove(self) -> None:
        """Delete the file and its seal."""
        with reaching(self.url):
            remove_seal(self.url)
            files, path = filesystem(self.url)
            if files.exists(path):
                files.rm_file(path)

    def seal(self) -> Seal:
        """Measure the file and seal it.

        Raises:
            ConfigError: there is no such file.
        """
        if not self.exists():
            raise ConfigError(f"{self.uri} cannot be sealed: there is no such file")
        with reaching(self.url):
            with fsspec.open(self.url, "rb") as stream:
                rows, size, digest = measure(stream)
            seal = Seal(rows, size, digest)
            write_seal(self.url, seal)
        return seal

    def unseal(self) -> None:
        """Remove the seal."""
        with reaching(self.url):
            remove_seal(self.url)

    def read_seal(self) -> Seal | None:
        """Return the seal, if it has one."""
        with reaching(self.url):
            return read_seal(self.url)

    def verify(self) -> Seal | None:
        """Compare the file with its seal.

        Raises:
            SealError: they differ.
        """
        seal = self.read_seal()
        if seal is not None and not any(sign in self.url for sign in _SIGNS):
            with reaching(self.url), fsspec.open(self.url, "rb") as stream:
                rows, size, digest = measure(stream)
            # Rows of other formats are counted when written; the digest covers the rest.
            counted = self.direct and compression_for(self.url) is None
            check(self.url, seal, (rows if counted else seal.rows, size, digest))
        return seal

    def finish(self, seal: Seal) -> None:
        """Write the finished file from the log if they differ, and seal it."""
        if not self.appendable:
            made = self._made(self.log().path)
            with reaching(self.url):
                files, path = filesystem(self.url)
                if is_local(files):
                    write_atomically(Path(path), lambda temporary: _move(made, temporary))
                    with Path(path).open("rb") as stream:
                        _, size, digest = measure(stream)
                else:
                    upload(made, self.url)
                    with made.open("rb") as stream:
                        _, size, digest = measure(stream)
                    with fsspec.open(self.url, "rb") as stream:
                        check(self.url, Seal(seal.rows, size, digest), (seal.rows, *measure(stream)[1:]))
            seal = Seal(
                seal.rows, size, digest, seal.first, seal.last, seal.node, seal.pipeline_id, seal.parent
            )
        with reaching(self.url):
            write_seal(self.url, seal)

    def _made(self, log: Path) -> Path:
        """Create the finished file from its rows."""
        made = log
        if not self.direct:
            made = log.with_suffix(".made")
            self.convert(lambda: _rows_of(log), made)
        if kind := compression_for(self.url):
            packed = log.with_suffix(".packed")
            compress(made, packed, kind)
            made = packed
        return made


class JsonlStream(FileStream):
    """`jsonl://`: one JSON object per line."""


class CsvStream(FileStream):
    """`csv://`: columns named by the first line; read as text, nested values written as JSON.

    Options after a `#`: `delimiter` (a character, or comma, tab, semicolon, pipe), `encoding` (a Python
    encoding name), `quote` (a character, or none).
    """

    direct = False
    ending = ".csv"
    known_options = ("delimiter", "encoding", "quote")

    def check_options(self, options: Mapping[str, str]) -> None:
        """Validate delimiter, encoding and quote."""
        from asysi.pipeline.formats.csv_rows import Dialect  # noqa: PLC0415 - not for other formats

        self.dialect = Dialect.of(dict(options), self.url)

    def lines(self, url: str) -> Iterator[bytes]:
        """Yield the rows as JSON lines."""
        from asysi.pipeline.formats.csv_rows import csv_lines  # noqa: PLC0415

        return csv_lines(self.pieces(url), _shown(url), self.dialect)

    def convert(self, rows: Callable[[], Iterator[dict[str, Any]]], file: Path) -> None:
        """Write the rows, with columns in order of first appearance."""
        from asysi.pipeline.formats.csv_rows import write_csv  # noqa: PLC0415

        write_csv(rows, file, self.uri, self.dialect)


class ParquetStream(FileStream):
    """`parquet://`: columns and types from all rows.

    Options after a `#` for columns that JSON cannot represent: `nan=null`, `binary=base64`, `decimal=text`,
    `duration=text`.
    """

    direct = False
    ending = ".parquet"
    known_options = tuple(PARQUET_OPTIONS)

    def check_options(self, options: Mapping[str, str]) -> None:
        """Validate the options for columns."""
        for name, value in options.items():
            if value not in (ways := PARQUET_OPTIONS[name]):
                raise ConfigError(f"{self.uri}: {name} is {value!r}: give {' or '.join(ways)}")

    def lines(self, url: str) -> Iterator[bytes]:
        """Yield the rows as JSON lines."""
        from asysi.pipeline.formats import parquet_rows  # noqa: PLC0415 - not for other formats

        files, path = filesystem(url)
        with reaching(url), files.open(path, "rb") as stream:
            yield from parquet_rows.parquet_lines(stream, _shown(url), self.options)

    def log(self) -> FileLog:
        """Return the rows as they are written.

        Raises:
            ConfigError: the name says that the file is compressed.
        """
        if compression_for(self.url):
            raise ConfigError(f"{self.uri} cannot be written: Parquet is compressed within; name it .parquet")
        return super().log()

    def convert(self, rows: Callable[[], Iterator[dict[str, Any]]], file: Path) -> None:
        """Write the rows; ids are text, because of ids like `10_0`.

        Raises:
            ConfigError: a column's values have no common type.
        """
        from asysi.pipeline.formats import parquet_rows  # noqa: PLC0415

        parquet_rows.write_parquet(rows, file, self.uri)


class MemoryStream(IDataStream):
    """`memory://name`: named rows in this process."""

    def __init__(self, uri: str, spool: Path | None = None, patience: float = 5.0) -> None:
        self.uri = uri
        self.bridge = StreamBridge()
        self._log = MemoryLog()
        self._seal: Seal | None = None

    def log(self) -> MemoryLog:
        """Return the rows."""
        return self._log

    def source(self, window: Window | None = None) -> LineSource:
        """Return the rows to read."""
        feed = LogFeed(self._log, self.bridge)
        if self.bound:
            return LineSource(feed, stored=True)
        if self.static or self._seal is not None:
            self.bridge.end()
        return LineSource(feed, stored=self._log.keep is None and brings_ids(LogFeed(self._log, self.bridge)))

    def seal(self) -> Seal:
        """Say that it is complete."""
        data = self._log.read(0, self._log.size)
        return self._sealed(Seal(data.count(b"\n"), len(data), xxhash.xxh3_128(data).hexdigest()))

    def finish(self, seal: Seal) -> None:
        """Say that it is complete."""
        self._sealed(seal)

    def _sealed(self, seal: Seal) -> Seal:
        self._seal = seal
        self.bridge.end()
        return seal

    def unseal(self) -> None:
        """Take that back."""
        self._seal = None
        self.bridge = StreamBridge()
        self.bridge.advance(self._log.size, 0)

    def read_seal(self) -> Seal | None:
        """Return the seal, if it has one."""
        return self._seal

    def verify(self) -> Seal | None:
        """Return the seal; no other process can change the rows."""
        return self._seal

    def exists(self) -> bool:
        """Return whether there are rows."""
        return self._log.size > 0

    def remove(self) -> None:
        """Delete the rows."""
        self._log.open(0)
        self.unseal()


class StreamFactory:
    """Creates streams from URIs."""

    _kinds: ClassVar[dict[str, Callable[..., IDataStream]]] = {
        "jsonl": JsonlStream,
        "csv": CsvStream,
        "parquet": ParquetStream,
    }
    _named: ClassVar[dict[str, MemoryStream]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def register(cls, protocol: str, kind: Callable[..., IDataStream]) -> None:
        """Register a protocol: `kind(uri, spool=…)` returns its stream.

        Raises:
            ConfigError: the protocol is built in.
        """
        if protocol in {"jsonl", "csv", "parquet", "memory"}:
            raise ConfigError(f"{protocol}:// is taken: register another name")
        cls._kinds[protocol] = kind

    @classmethod
    def create(cls, uri: str, spool: Path | None = None) -> IDataStream:
        """Return the stream for a URI; for a path without a protocol or the URL of a store, the suffix
        determines the format.

        Raises:
            ConfigError: the protocol, or the suffix of a store's URL, is unknown.
        """
        uri = with_format(uri, (*cls._kinds, "memory"))
        protocol = uri.partition("://")[0]
        if protocol == "memory":
            with cls._lock:
                return cls._named.setdefault(uri, MemoryStream(uri))
        if protocol not in cls._kinds:
            known = ", ".join(f"{name}://" for name in (*cls._kinds, "memory"))
            raise ConfigError(
                f"{uri}: unknown protocol {protocol}://; use {known} or a file system of fsspec, like s3://."
                " For a protocol of your own call StreamFactory.register"
            )
        return cls._kinds[protocol](uri, spool=spool)

    @classmethod
    def forget(cls, uri: str) -> None:
        """Drop a `memory://` stream."""
        with cls._lock:
            cls._named.pop(uri, None)


def _rows_of(log: Path) -> Iterator[dict[str, Any]]:
    with log.open("rb", buffering=CHUNK) as stream:
        for line in stream:
            yield values.loads(line)


def _shown(url: str) -> str:
    return url.removeprefix("file://")


def _head(url: str, size: int = 8) -> bytes:
    """Return the first bytes of a file."""
    files, path = filesystem(url)
    with reaching(url):
        if is_local(files):
            with Path(path).open("rb", buffering=0) as stream:
                return stream.read(size)
        length = files.size(path)
        if length == 0:
            return b""
        found: bytes = files.cat_file(path, start=0, end=min(size, length) if length else size)
        return found[:size]


def _decompressed_head(head: bytes, kind: str | None, url: str) -> bytes:
    """Return the decompressed first bytes of a file; a truncated file is reported when it is read."""
    if kind is None:
        return head
    if kind == "zip":
        return b""
    found = b""
    with contextlib.suppress(BrokenFileError):
        for piece in decompressed(io.BytesIO(head), kind, url):
            found += piece
            if len(found) >= format_detection.HEAD:
                break
    return found[: format_detection.HEAD].ljust(format_detection.HEAD, b"\n") if found else b""


def _without_bom(pieces: Iterator[bytes]) -> Iterator[bytes]:
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= len(format_detection.BOM):
            break
    yield head.removeprefix(format_detection.BOM)
    yield from pieces


def _move(made: Path, to: Path) -> None:
    shutil.move(made, to)  # the spool may be on another disk


__all__ = [
    "CsvStream",
    "FileStream",
    "IDataStream",
    "JsonlStream",
    "MemoryStream",
    "ParquetStream",
    "RowWriter",
    "StreamBridge",
    "StreamFactory",
    "seal_path",
]
