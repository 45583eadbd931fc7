"""CSV files as JSON lines and back: strict, so that no line is silently merged, truncated or dropped.

A field is text, an empty field is null, and `""` is the empty string. An invalid line is passed on with its
bytes, its number and the error, and fails like any other row.
"""

import codecs
import csv
import io
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from asysi.contract.errors import ConfigError
from asysi.pipeline.formats.compression import lines_of
from asysi.pipeline.rows.blocks import bad_line
from asysi.pipeline.rows.ids import FIELD

LONGEST = 64 << 20
"""Maximum bytes of a row: a quote still open by then is an error."""
_PIECE = 1 << 18
_NAMED = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|", "space": " "}
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Dialect:
    """Dialect of a CSV file.

    Attributes:
        delimiter: field delimiter, one character.
        encoding: text encoding.
        quote: quote character for fields with a delimiter or a newline; None: no quoting.
        given: whether the delimiter was given explicitly.
    """

    delimiter: str = ","
    encoding: str = "utf-8"
    quote: str | None = '"'
    given: bool = False

    @classmethod
    def of(cls, options: dict[str, str], name: str) -> "Dialect":
        """Return the dialect of a file from its options; a `.tsv` uses tabs.

        Raises:
            ConfigError: an option has an invalid value.
        """
        plain = name.rstrip("/").removesuffix(".gz").removesuffix(".zst")
        delimiter = options.get("delimiter", "tab" if plain.endswith((".tsv", ".tab")) else ",")
        delimiter = _NAMED.get(delimiter, delimiter)
        quote = options.get("quote", '"')
        if len(delimiter) != 1 or delimiter in '\n\r"':
            raise ConfigError(
                f"{name}: delimiter is {delimiter!r}: give one character, or {', '.join(_NAMED)}"
            )
        if quote != "none" and (len(quote) != 1 or quote in f"\n\r{delimiter}"):
            raise ConfigError(
                f"{name}: quote is {quote!r}: give one character other than {delimiter!r}, or none"
            )
        try:
            encoding = codecs.lookup(options.get("encoding", "utf-8")).name
        except LookupError as error:
            raise ConfigError(f"{name}: {error}: give one that Python knows, like utf-8 or cp1252") from error
        return cls(delimiter, encoding, None if quote == "none" else quote, "delimiter" in options)

    @property
    def wide(self) -> bool:
        """Whether a newline takes several bytes."""
        return self.encoding.startswith(("utf-16", "utf-32"))


def csv_lines(pieces: Iterator[bytes], name: str, dialect: Dialect) -> Iterator[bytes]:
    """Yield a CSV file's rows as JSON lines, in pieces.

    Args:
        pieces: the file.
        name: its name in errors.
        dialect: its dialect.

    Raises:
        ConfigError: the first line does not name columns, or the encoding is wrong.
    """
    # Fields may be as long as rows; the limit is process-wide.
    csv.field_size_limit(sys.maxsize)
    out = io.BytesIO()
    for text in _rows(_Lines(pieces, name, dialect), name, dialect):
        out.write(text)
        out.write(b"\n")
        if out.tell() >= _PIECE:
            yield out.getvalue()
            out = io.BytesIO()
    if out.tell():
        yield out.getvalue()


class _Lines:
    """Lines of a file as text, with the raw bytes of the current row's lines."""

    def __init__(self, pieces: Iterator[bytes], name: str, dialect: Dialect) -> None:
        self.number = 0
        """Number of the last line read, from 1."""
        self.raw: list[bytes] = []
        """Lines read since the row started."""
        self._dialect, self._name = dialect, name
        self._back: deque[bytes] = deque()
        self._lines = self._wide(pieces) if dialect.wide else lines_of(pieces)
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        encoding, raw = self._dialect.encoding, self.raw
        while True:
            line = self._back.popleft() if self._back else next(self._lines, None)
            if line is None:
                return
            self.number += 1
            if self.number == 1:
                line = line.removeprefix(codecs.BOM_UTF8) if encoding == "utf-8" else line
            if raw:
                self._size += len(line)
                if self._size > LONGEST:
                    self._back.appendleft(line)
                    self.number -= 1
                    return
            raw.append(line)
            yield line.decode(encoding, "surrogateescape")

    def begin(self) -> None:
        """Start a row."""
        self.raw.clear()
        self._size = 0

    def give_back(self) -> bytes:
        """Return the first line of the current row, and push the others back."""
        first, rest = self.raw[0], self.raw[1:]
        self._back.extendleft(reversed(rest))
        self.number -= len(rest)
        return first

    def _wide(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder(self._dialect.encoding)()
        encoding = self._dialect.encoding

        def decoded() -> Iterator[bytes]:
            at = 0
            try:
                for piece in pieces:
                    yield decoder.decode(piece).encode()
                    at += len(piece)
                yield decoder.decode(b"", final=True).encode()
            except UnicodeError as error:
                raise ConfigError(
                    f"{self._name} is not {encoding} at byte {at:,} or after it: {error}"
                ) from error

        for line in lines_of(piece for piece in decoded() if piece):
            yield line.decode().removeprefix("\ufeff").encode(encoding)


def _rows(lines: _Lines, name: str, dialect: Dialect) -> Iterator[bytes]:
    reader = _reader(lines, dialect)
    header = _header(reader, lines, name, dialect)
    width, numbered = len(header), FIELD in header
    while True:
        lines.begin()
        began = lines.number + 1
        try:
            for fields in reader:
                if len(fields) != width:
                    if fields:
                        break
                else:
                    full = _with_nulls(fields, lines.raw, dialect) if "" in fields else fields
                    row = dict(zip(header, full, strict=True))
                    if numbered:
                        with_number(row)
                    try:
                        yield orjson.dumps(row)
                    except TypeError:  # undecodable bytes were read as lone surrogates
                        yield bad_line(_not_text(lines.raw, name, began, dialect), b"".join(lines.raw))
                lines.begin()
                began = lines.number + 1
            else:
                return
        except csv.Error as error:
            first = lines.give_back()
            yield bad_line(f"{name}, line {began}: {_complaint(error)}", first)
            reader = _reader(lines, dialect)
            continue
        found = f"{len(fields)} field{'s' if len(fields) != 1 else ''}, the first line names {width}"
        yield bad_line(f"{name}, line {began}: {found}", b"".join(lines.raw))


def _reader(lines: _Lines, dialect: Dialect) -> Any:
    if dialect.quote is None:
        return csv.reader(lines, delimiter=dialect.delimiter, quoting=csv.QUOTE_NONE, strict=True)
    return csv.reader(lines, delimiter=dialect.delimiter, quotechar=dialect.quote, strict=True)


def _header(reader: Any, lines: _Lines, name: str, dialect: Dialect) -> list[str]:
    try:
        header: list[str] = next(reader, [])
        "".join(header).encode()
    except csv.Error as error:
        raise ConfigError(f"{name}, line 1: {_complaint(error)}") from error
    except UnicodeEncodeError as error:
        raise ConfigError(_not_text(lines.raw, name, 1, dialect)) from error
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise ConfigError(f"{name}: two columns are called {twice[0]!r}: give each a name of its own")
    if any("\0" in column for column in header):
        raise ConfigError(f"{name} has NUL characters: name its encoding, like #encoding=utf-16")
    if len(header) == 1 and not dialect.given:
        other = next((sign for sign in ";\t|," if sign in header[0]), None)
        if other is not None:
            word = next(word for word, sign in _NAMED.items() if sign == other)
            raise ConfigError(
                f"{name}: the first line names one column, {header[0][:60]!r}: for other delimiters write"
                f" csv://{name}#delimiter={word}, or #delimiter={_word(dialect.delimiter)} if that is meant"
            )
    return header


def _word(delimiter: str) -> str:
    return next((word for word, sign in _NAMED.items() if sign == delimiter), delimiter)


def _with_nulls(fields: list[str], raw: list[bytes], dialect: Dialect) -> list[Any]:
    """Return the fields with null for empty unquoted ones."""
    quote = dialect.quote
    text = b"".join(raw).decode(dialect.encoding, "surrogateescape")
    if quote is None or quote * 2 not in text:
        return [field or None for field in fields]
    q, d = re.escape(quote), re.escape(dialect.delimiter)
    found = re.compile(rf"({q}(?:[^{q}]|{q}{q})*{q}|[^{d}\r\n]*)(?:{d}|\r?\n?\Z)").findall(text)
    return [
        field or (None if place >= len(found) or not found[place] else "")
        for place, field in enumerate(fields)
    ]


def with_number(row: dict[str, Any]) -> None:
    """Convert an id that the format stores as text back to a number, unless it has leading zeros (`007`)."""
    identity = row.get(FIELD)
    if isinstance(identity, str) and _NUMBER.fullmatch(identity):
        row[FIELD] = int(identity)


def _not_text(raw: list[bytes], name: str, began: int, dialect: Dialect) -> str:
    for number, line in enumerate(raw, began):
        try:
            line.decode(dialect.encoding)
        except UnicodeDecodeError as error:
            return (
                f"{name}, line {number}: byte {error.object[error.start]:#04x} at {error.start} is not"
                f" {dialect.encoding}: write csv://{name}#encoding=… if the file has another one"
            )
    return f"{name}, line {began}: not {dialect.encoding}"


def _complaint(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return "a quote is opened and never closed"
    if "new-line character" in text:
        return "a carriage return within a field without quotes"
    return text


def write_csv(rows: Callable[[], Iterable[dict[str, Any]]], file: Path, name: str, dialect: Dialect) -> None:
    """Write rows to a CSV file: columns in order of first appearance, nested values as JSON.

    Args:
        rows: returns the rows; may be called more than once.
        file: output file.
        name: its name in errors.
        dialect: its dialect.

    Raises:
        ConfigError: a value cannot be written in this dialect.
    """
    columns = list(dict.fromkeys(column for row in rows() for column in row))
    try:
        with file.open("w", encoding=dialect.encoding, newline="") as stream:
            _write(stream, [columns], dialect, name)
            _write(stream, ([row.get(column) for column in columns] for row in rows()), dialect, name)
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name}: {error.object[error.start]!r} cannot be written in {dialect.encoding}: write utf-8"
        ) from error


def _write(stream: IO[str], lines: Iterable[list[Any]], dialect: Dialect, name: str) -> None:
    special = re.compile(rf"[{re.escape(dialect.delimiter + (dialect.quote or ''))}\r\n]")
    for fields in lines:
        line = dialect.delimiter.join(_cell(value, special, dialect, name) for value in fields)
        if not line:
            raise ConfigError(f"{name}: a row of one column that is null cannot be written as CSV")
        stream.write(f"{line}\n")


def _cell(value: Any, special: re.Pattern[str], dialect: Dialect, name: str) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if text and not special.search(text) and not text.startswith("\ufeff"):
        return text
    if dialect.quote is None:
        what = "the empty text" if not text else repr(text[:40])
        raise ConfigError(f"{name}: {what} cannot be written without quotes: remove quote=none")
    return f"{dialect.quote}{text.replace(dialect.quote, dialect.quote * 2)}{dialect.quote}"
