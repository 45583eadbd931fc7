"""Detects files that are not JSON lines but are read as such, and says once what to do."""

from collections.abc import Iterator

import orjson

from asysi.contract.errors import ConfigError

HEAD = 1 << 16
"""Number of bytes inspected at the start of a file."""
BOM = b"\xef\xbb\xbf"
_LINES = 20
_WIDE = (b"\xff\xfe", b"\xfe\xff")


def refuse_other(head: bytes, name: str) -> None:
    """Reject a file that is clearly not JSON lines.

    A file with a row among its first lines is accepted: its invalid lines fail individually.

    Args:
        head: its first bytes, uncompressed.
        name: its name in errors.

    Raises:
        ConfigError: it is another format; the message names it and says what to do.
    """
    if head.startswith(b"PAR1"):
        raise ConfigError(f"{name} is a Parquet file: read it as parquet://{name}")
    if head.startswith(_WIDE):
        raise ConfigError(f"{name} is UTF-16: make it UTF-8, like `iconv -f utf-16 -t utf-8 {name}`")
    text = head.removeprefix(BOM).lstrip()
    lines = list(_whole_lines(text, complete=len(head) < HEAD))
    if text[:1] == b"[" and not (lines and _parsed(lines[0]) is not None and len(lines) > 1):
        raise ConfigError(
            f"{name} is one JSON array, not a JSON object on each line: make lines of it, like"
            f" `jq -c '.[]' {name} > rows.jsonl`"
        )
    if not lines or any(isinstance(_parsed(line), dict) for line in lines):
        return
    first = lines[0]
    if text[:1] == b"{" and len(lines) > 1 and first.strip() in {b"{", b'{"'}:
        raise ConfigError(
            f"{name} has its JSON spread over several lines: put each object on one, like"
            f" `jq -c . {name} > rows.jsonl`"
        )
    if len(lines) > 1 and (kind := _table(lines)):
        raise ConfigError(f"{name} looks like {kind}: read it as csv://{name}" + _delimiter(kind))
    if len(lines) > 1 and not any(line.lstrip().startswith((b"{", b"[")) for line in lines):
        raise ConfigError(
            f"{name} is text, not a JSON object on each line: make rows of its lines, like"
            f" `jq -cR '{{text: .}}' {name} > rows.jsonl`"
        )


def _whole_lines(text: bytes, *, complete: bool) -> Iterator[bytes]:
    lines = text.split(b"\n")
    if not complete:
        lines.pop()
    yield from [line for line in lines[:_LINES] if line.strip()]


def _parsed(line: bytes) -> object:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _table(lines: list[bytes]) -> str:
    """Return the table format if all lines have the same number of a delimiter, or an empty string."""
    for sign, kind in ((b"\t", "TSV"), (b",", "CSV"), (b";", "CSV with semicolons")):
        counts = {line.count(sign) for line in lines}
        if len(counts) == 1 and counts != {0} and not lines[0].lstrip().startswith((b"{", b"[")):
            return kind
    return ""


def _delimiter(kind: str) -> str:
    return {"TSV": "#delimiter=tab", "CSV with semicolons": "#delimiter=semicolon"}.get(kind, "")
