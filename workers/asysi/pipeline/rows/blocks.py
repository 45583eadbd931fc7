"""Blocks of consecutive rows: a node's input, its results, and the errors of single rows."""

import base64
from dataclasses import dataclass, field
from typing import Any

import orjson

BAD_LINE = "\0bad line"
"""Marker of the array that a source passes on for an unreadable line; an array is never a row."""


@dataclass(slots=True)
class RowBlock:
    """Consecutive source rows.

    Attributes:
        first: number of the first row.
        rows: number of rows.
        end: offset in the source after them, in bytes.
        data: their bytes as in the source.
        stored: whether rows contain their `_i`; otherwise a row's number is its id.
        lines: its rows, if already split.
    """

    first: int
    rows: int
    end: int
    data: bytes
    stored: bool
    lines: list[bytes] | None = None

    @property
    def last(self) -> int:
        """Number of the row after the last one."""
        return self.first + self.rows


@dataclass(slots=True)
class DeadLetter:
    """A row that could not be processed.

    Attributes:
        identity: its `_i` (the line number if it cannot be read).
        row: its number in the node's source.
        reason: class of the error.
        error: error message.
        line: the row as in the source.
    """

    identity: str
    row: int
    reason: str
    error: str
    line: bytes


@dataclass(slots=True)
class Result:
    """Result of a block.

    Attributes:
        first, last, end: the source rows covered (`last` is exclusive) and the source offset after them.
        data: output rows, one JSON object per line.
        made: number of output rows.
        dropped: source rows without output.
        blank: empty source lines.
        dead: source rows that could not be processed.
        usage: reported usage, summed by name.
        reports: each usage report.
        failure: the row error, if the block was cut short by one; None if the run was ending.
        size: bytes of the source rows covered.
        seconds: duration.
    """

    first: int
    last: int
    end: int
    data: bytes = b""
    made: int = 0
    dropped: int = 0
    blank: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    usage: dict[str, float] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)
    failure: "RowError | None" = None
    size: int = 0
    seconds: float = 0.0


class RowError(Exception):
    """A row could not be processed.

    Attributes:
        node: name of the node.
        identity: the row's `_i`.
        reason: class of the error.
    """

    def __init__(self, node: str, identity: str, reason: str, message: str) -> None:
        super().__init__(node, identity, reason, message)
        self.node, self.identity, self.reason, self.message = node, identity, reason, message

    def __str__(self) -> str:
        return f"node {self.node}, row {self.identity}: {self.reason}: {self.message}"


class BadRowError(Exception):
    """A row is invalid, or an operator returned an invalid row."""


class BadLineError(Exception):
    """A source's file has a line that is not a row."""


def lines_of(data: bytes) -> list[bytes]:
    """Split complete lines, without their newlines."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def bad_line(where: str, data: bytes) -> bytes:
    """Return the placeholder that a source passes on for a line that is not a row.

    Args:
        where: file, line, and the error.
        data: the line as in the file.
    """
    return orjson.dumps([BAD_LINE, where, base64.b64encode(data).decode()])
