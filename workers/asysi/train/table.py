"""Rows of a CSV or JSONL file, read by position: only offsets are kept in memory."""

import csv
import hashlib
import json
import weakref
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from asysi.contract.errors import ConfigError

Row = dict[str, str]
csv.field_size_limit(1 << 24)


class Table:
    """A table of text values; quoted line breaks, a byte order mark and CRLF are supported.

    Args:
        path: a `.csv` file with a header, or a `.jsonl` file with one object per line.
        columns: required columns.

    Raises:
        ConfigError: the file is missing, empty, not UTF-8, or has no such column.
    """

    def __init__(self, path: Path, columns: tuple[str, ...] = ()) -> None:
        self.path = path
        self._jsonl = path.suffix in {".jsonl", ".ndjson"}
        self._offsets = array("Q")
        self._file: IO[bytes] | None = None
        try:
            self._size = path.stat().st_size
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        if not path.is_file():
            raise ConfigError(f"{path} is not a file: name a .csv or .jsonl table")
        if not self._size:
            raise ConfigError(f"{path} is empty: it needs {_expected(self._jsonl)}")
        self.header: list[str] = [] if self._jsonl else self._read_header()
        if not self._jsonl:
            self._require(columns)
        self._columns = columns

    def scan(self) -> Iterator[tuple[int, Row]]:
        """Yield each row with its line number, and record its offset.

        Raises:
            ConfigError: a row does not match the file's format.
        """
        self._offsets = array("Q")
        with self.path.open("rb") as stream:
            yield from self._scan_json(stream) if self._jsonl else self._scan_csv(stream)

    def row(self, number: int) -> Row:
        """Return the row with index `number` in the order of `scan`, from 0."""
        if self._file is None:
            self._file = self.path.open("rb")
            weakref.finalize(self, self._file.close)
        self._file.seek(self._offsets[number])
        if self._jsonl:
            return _texts(json.loads(self._file.readline()))
        values = next(csv.reader(_decoded(self._file, self.path)))
        return dict(zip(self.header, values, strict=True))

    def __len__(self) -> int:
        return len(self._offsets)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}  # each process opens its own

    def _read_header(self) -> list[str]:
        with self.path.open("rb") as stream:
            header = next(csv.reader(_decoded(stream, self.path)), [])
        header = [name.strip() for name in header]
        if len(set(header)) != len(header):
            raise ConfigError(f"{self.path}: a column occurs twice in the header: {', '.join(header)}")
        return header

    def _require(self, columns: tuple[str, ...]) -> None:
        for column in columns:
            if column not in self.header:
                raise ConfigError(
                    f"{self.path} has no column {column!r}: it has {', '.join(self.header) or 'none'}"
                )

    def _scan_csv(self, stream: IO[bytes]) -> Iterator[tuple[int, Row]]:
        position = 0

        def lines() -> Iterator[str]:
            nonlocal position
            for line in _decoded(stream, self.path):
                position += len(line.encode()) + (3 if position == 0 and bom else 0)
                yield line

        bom = stream.read(3) == b"\xef\xbb\xbf"
        stream.seek(0)
        reader = csv.reader(lines())
        next(reader, None)
        while True:
            begin, line = position, reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise ConfigError(f"{self.path}:{line} is not CSV: {error}") from error
            if not values:
                continue
            if len(values) != len(self.header):
                raise ConfigError(
                    f"{self.path}:{line} has {len(values)} values, but the header has {len(self.header)}"
                )
            self._offsets.append(begin)
            yield line, dict(zip(self.header, values, strict=True))

    def _scan_json(self, stream: IO[bytes]) -> Iterator[tuple[int, Row]]:
        position = 0
        for number, line in enumerate(stream, 1):
            begin, position = position, position + len(line)
            if not line.strip():
                continue
            try:
                row = _texts(json.loads(line))
            except (ValueError, AttributeError) as error:
                raise ConfigError(f"{self.path}:{number} is not a JSON object: {error}") from error
            if not self.header:
                self.header = list(row)
                self._require(self._columns)
            self._offsets.append(begin)
            yield number, row


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _decoded(stream: IO[bytes], path: Path) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        begun = number == 1 and line.startswith(b"\xef\xbb\xbf")
        try:
            yield (line[3:] if begun else line).decode()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{path}:{number} is not UTF-8 text: byte {error.object[error.start]:#04x}; save it as UTF-8"
            ) from error


def _texts(row: dict[str, object]) -> Row:
    return {key: "" if value is None else str(value) for key, value in row.items()}


def _expected(jsonl: bool) -> str:
    return "one JSON object per line" if jsonl else "a header and at least one row"
