"""Blocks of consecutive rows: what a node reads, what it makes of them, and the errors of single rows."""

import base64
from dataclasses import dataclass, field
from typing import Any

import orjson

BAD_LINE = "\0bad line"
"""Begins what a source hands on for a line that it cannot read: an array, so that it is never a row."""


@dataclass(slots=True)
class RowBlock:
    """Consecutive source rows.

    Attributes:
        first: number of the first row.
        rows: how many.
        end: offset in the source behind them, bytes.
        data: their bytes as they lie in the source.
        stored: whether rows bring their `_i`; else a row's number is its id.
        lines: its rows, where they were taken apart already.
    """

    first: int
    rows: int
    end: int
    data: bytes
    stored: bool
    lines: list[bytes] | None = None

    @property
    def last(self) -> int:
        """Number of the row behind the last one."""
        return self.first + self.rows


@dataclass(slots=True)
class DeadLetter:
    """A row that could not be processed.

    Attributes:
        identity: its `_i` (the line's number, where it cannot be read).
        row: its number in the node's source.
        reason: class of the error.
        error: what it said.
        line: the row as it lay in the source.
    """

    identity: str
    row: int
    reason: str
    error: str
    line: bytes


@dataclass(slots=True)
class Result:
    """What became of a block.

    Attributes:
        first, last, end: the source rows that it covers (`last` is behind the last one) and the offset behind
        them.
        data: rows made, one JSON object per line.
        made: how many.
        dropped: source rows that became no row.
        blank: source lines without anything on them.
        dead: source rows that could not be processed.
        usage: what was spent, added up by name.
        reports: each report of usage as it came.
        failure: why it covers less than its block, if a row failed; without one, the run was ending.
        size: bytes of the source rows covered.
        seconds: how long it took.
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
    """A row is not what it must be, or an operator returned what is none."""


class BadLineError(Exception):
    """A source's file has a line that is not a row."""


def lines_of(data: bytes) -> list[bytes]:
    """Return whole lines without their newlines."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def bad_line(where: str, data: bytes) -> bytes:
    """Return what a source hands on in place of a line that is not a row.

    Args:
        where: file, line, and what is wrong.
        data: the line as it lies in the file.
    """
    return orjson.dumps([BAD_LINE, where, base64.b64encode(data).decode()])
