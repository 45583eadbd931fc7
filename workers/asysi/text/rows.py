"""Reads rows of text, validates and deduplicates them, and splits off held-out documents."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import fsspec
import orjson

from asysi.contract.errors import ConfigError
from asysi.contract.spec import Data
from asysi.pipeline.formats.compression import HEAD, BrokenFileError, compression_of, decompressed, lines_of
from asysi.pipeline.formats.format_detection import BOM
from asysi.pipeline.formats.uris import FORMATS, with_format

RENUMBERED = 2**63
"""Added to the line number of a row whose number is taken: larger than any number in the data."""
_EXCERPT = 60


@dataclass(frozen=True, slots=True)
class Document:
    """A distinct document."""

    sample: int
    """Unique number of the input row: its `_i` if that is a non-negative integer, otherwise its line number
    across all files; if that number is already taken, RENUMBERED plus the line number."""
    text: str
    holdout: bool
    """Whether it is held out and never trained on."""
    written: str | None = None
    """What its author wrote, if a chat template put it into `text`."""


@dataclass(frozen=True, slots=True)
class _Line:
    file: str
    number: int
    """Line number in its file, from 1."""
    ordinal: int
    """Line number across all files, from 1."""
    content: bytes

    def wrong(self, what: str) -> ConfigError:
        excerpt = self.content[:_EXCERPT].decode(errors="replace").strip()
        dots = "…" if len(self.content) > _EXCERPT else ""
        return ConfigError(f"spec.data.uri: {self.file}, line {self.number}: {what}: {excerpt}{dots}")


class TextSource:
    """Iterable over the distinct documents of `data.uri`; counts the skipped rows.

    Args:
        data: the spec's data.
        limit: maximum number of distinct documents; None for all.
        tokenizer: has the chat template that `data.tokens.chatTemplate` asks for.

    Raises:
        ConfigError: on iteration: the source is missing, a line is not a JSON object, or a row has no text.
    """

    def __init__(self, data: Data, limit: int | None = None, tokenizer: Any = None) -> None:
        self._data, self._limit, self._tokenizer = data, limit, tokenizer
        self.rows = 0
        """Rows read."""
        self.duplicates = 0
        """Rows whose text occurred before."""
        self.renumbered = 0
        """Documents whose number was already taken by another."""

    def __iter__(self) -> Iterator[Document]:
        tokens, holdout = self._data.tokens, self._data.holdout
        seen: set[bytes] = set()
        numbers: set[int] = set()
        self.rows = self.duplicates = self.renumbered = 0
        for line, row in _rows(self._data.uri):
            written = None
            if tokens.chat_template:
                text, written = _chat(line, row, tokens.text_field, self._tokenizer)
            else:
                text = _text(line, row, tokens.text_field)
            self.rows += 1
            mark = blake2b(text.encode(), digest_size=16).digest()
            if mark in seen:
                self.duplicates += 1
                continue
            if self._limit is not None and len(seen) >= self._limit:
                return
            seen.add(mark)
            number = _number(line, row)
            if number in numbers:  # a number must not be both trained on and held out
                number = RENUMBERED + line.ordinal
                self.renumbered += 1
            numbers.add(number)
            yield Document(number, text, is_held_out(text, holdout.share, holdout.seed), written)


def is_held_out(text: str, share: float, seed: int) -> bool:
    """Return whether a document is held out; depends only on its text, the share (0..1) and the seed.

    A document held out at one share is also held out at every larger share.
    """
    digest = blake2b(text.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") / 2**64 < share


def _rows(uri: str) -> Iterator[tuple[_Line, dict[str, Any]]]:
    """Yield every row with its place; the suffix of a store's URL says what it holds."""
    try:
        uri = with_format(uri, (*FORMATS, "memory", "datasets"))
    except ConfigError as error:
        raise ConfigError(f"spec.data.uri: {error}") from error
    if uri.startswith("jsonl://"):
        for line in _lines(uri):
            yield line, _parse(line)
        return
    from asysi.text.tables import table_rows  # noqa: PLC0415 - loads more than JSON lines need

    try:
        for number, row in enumerate(table_rows(uri), 1):
            yield _Line(uri, number, number, repr(row)[: _EXCERPT + 1].encode()), row
    except ConfigError as error:
        raise ConfigError(
            *(one if one.startswith("spec.") else f"spec.data.uri: {one}" for one in error.problems)
        ) from error
    except (OSError, ImportError, EOFError, ValueError) as error:
        raise ConfigError(f"spec.data.uri: {uri} cannot be read: {error}") from error


def _lines(uri: str) -> Iterator[_Line]:
    """Yield every non-blank line, with files sorted by name. Only newlines end a line."""
    ordinal = 0
    rest = uri.removeprefix("jsonl://")
    try:
        files, pattern = fsspec.core.url_to_fs(rest)
        paths = sorted(files.glob(pattern)) if any(sign in pattern for sign in "*?[") else [pattern]
        if not paths:
            raise ConfigError(f"spec.data.uri: no file matches {rest}")
        for path in paths:
            with files.open(path, "rb") as stream:
                kind = compression_of(stream.read(HEAD))
                stream.seek(0)
                for number, content in enumerate(_without_bom(decompressed(stream, kind, path)), 1):
                    ordinal += 1
                    if content.strip():
                        yield _Line(path, number, ordinal, content)
    except FileNotFoundError as error:
        raise ConfigError(f"spec.data.uri: there is no file {rest}") from error
    except BrokenFileError as error:
        raise ConfigError(f"spec.data.uri: {error}: get the whole file") from error
    except (OSError, ImportError, EOFError) as error:
        raise ConfigError(f"spec.data.uri: {rest} cannot be read: {error}") from error


def _without_bom(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a file's lines without a leading byte order mark."""
    lines = lines_of(pieces)
    if (first := next(lines, None)) is not None:
        yield first.removeprefix(BOM)
    yield from lines


def _parse(line: _Line) -> dict[str, Any]:
    try:
        row = orjson.loads(line.content)
    except orjson.JSONDecodeError as error:
        raise line.wrong(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise line.wrong("not a JSON object")
    return row


def _text(line: _Line, row: dict[str, Any], field: str) -> str:
    text = row.get(field)
    if not isinstance(text, str):
        has = f"has the fields {', '.join(sorted(row))}" if field not in row else f"{field} is not text"
        raise line.wrong(f"no text in the field {field!r}, which data.tokens.textField names; the row {has}")
    return text


CHAT_FIELD = "messages"
"""Field of a row's messages, unless data.tokens.textField names another one."""


def _chat(line: _Line, row: dict[str, Any], field: str, tokenizer: Any) -> tuple[str, str]:
    """Return a row's messages as the tokenizer's chat template writes them, and what they say."""
    field = CHAT_FIELD if field == "text" else field
    messages = row.get(field)
    whole = isinstance(messages, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in messages
    )
    if not whole or not messages:
        raise line.wrong(
            f"no messages in the field {field!r}: data.tokens.chatTemplate needs a list of "
            '{"role": …, "content": …}'
        )
    assert isinstance(messages, list)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # a template may raise anything
        raise line.wrong(f"the tokenizer's chat template refuses it ({error})") from error
    return str(text), "\n".join(one["content"] for one in messages)


def _number(line: _Line, row: dict[str, Any]) -> int:
    index = row.get("_i")
    is_index = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < RENUMBERED
    return index if is_index and index is not None else line.ordinal
