"""The ledger: committed source ranges of every node, in one SQLite file.

A range records which source rows a commit covers, the source and output offsets after it, and its cost. It is
written after its rows are on disk, in one transaction with their dead letters: a killed run resumes after the
last range and truncates the output beyond it. The rows made of a source row (its descendants) are in the same
range, so a row is committed with all of them or not at all; the number of source rows with all descendants in
the last output follows from the ranges of all nodes.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from asysi.contract.errors import ConfigError
from asysi.pipeline.rows.blocks import DeadLetter, Result
from asysi.pipeline.streams.seal import START_OVER

_FORMAT = "1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ranges (
    node TEXT, first INTEGER, last INTEGER, source_end INTEGER, source_digest TEXT, out_rows INTEGER,
    out_end INTEGER, out_digest TEXT, made INTEGER, dropped INTEGER, blank INTEGER, dead INTEGER, usage TEXT,
    PRIMARY KEY (node, first)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parked (
    node TEXT, first INTEGER, last INTEGER, source_end INTEGER, size INTEGER, data BLOB, made INTEGER, dropped
    INTEGER, blank INTEGER, dead TEXT, usage TEXT, PRIMARY KEY (node, first)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead (
    number INTEGER PRIMARY KEY, node TEXT, identity TEXT, row INTEGER, reason TEXT, error TEXT, line BLOB,
    tries INTEGER
);
CREATE TABLE IF NOT EXISTS finished (node TEXT PRIMARY KEY, seal TEXT) WITHOUT ROWID;
"""
_NOTHING = xxhash.xxh3_128().hexdigest()
_INSERT_RANGE = f"INSERT INTO ranges VALUES ({','.join('?' * 13)})"  # noqa: S608 - question marks only
_INSERT_DEAD = (
    "INSERT INTO dead (node, identity, row, reason, error, line, tries) VALUES (?, ?, ?, ?, ?, ?, 1)"
)


@dataclass(frozen=True, slots=True)
class Range:
    """Committed source rows of a node.

    Attributes:
        first, last: source rows [`first`, `last`).
        source_end, source_digest: source offset after them, and XXH3-128 of the source up to there.
        out_rows, out_end, out_digest: rows, bytes and XXH3-128 of the output after them.
        made, dropped, blank, dead: output rows; source rows dropped, empty, and failed.
        usage: their usage, by name.
    """

    first: int
    last: int
    source_end: int
    source_digest: str | None
    out_rows: int
    out_end: int
    out_digest: str | None
    made: int
    dropped: int
    blank: int
    dead: int
    usage: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """Totals committed by a node.

    Attributes:
        rows: source rows.
        made, dropped, blank, dead: see `Range`.
        usage: their usage, by name.
    """

    rows: int = 0
    made: int = 0
    dropped: int = 0
    blank: int = 0
    dead: int = 0
    usage: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Redriven:
    """Result of a redrive.

    Attributes:
        node: the last node, whose output has grown.
        out_rows, out_end, out_digest: new rows, bytes and XXH3-128 of its output.
        seal: its new seal.
        gained: output rows and usage added per node.
        settled: numbers of resolved dead letters.
        failed: numbers of dead letters that failed again, with the error.
        moved: rows that failed in a later node, with that node.
        notes: facts to store with it.
    """

    node: str
    out_rows: int
    out_end: int
    out_digest: str
    seal: str
    gained: Mapping[str, LedgerTotals]
    settled: list[int]
    failed: list[tuple[int, DeadLetter]]
    moved: list[tuple[str, DeadLetter]]
    notes: Mapping[str, str]


class RowLedger:
    """The committed ranges of a pipeline. Thread-safe.

    Args:
        file: the SQLite file; None keeps it in memory, for a run that cannot be resumed.
        fsync: whether a commit is synced to disk before it returns.

    Raises:
        ConfigError: the file is not a ledger of this version.
    """

    def __init__(self, file: Path | None, *, fsync: bool = True) -> None:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._base = sqlite3.connect(
            file or ":memory:",
            isolation_level=None,
            check_same_thread=False,
            timeout=10,
            cached_statements=64,
        )
        try:
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute(f"PRAGMA synchronous={'FULL' if fsync else 'NORMAL'}")
            self._base.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{file} is not a ledger ({error}): restore it, or {START_OVER}") from error
        found = self.about("format")
        if found is None:
            self.note("format", _FORMAT)
        elif found != _FORMAT:
            raise ConfigError(
                f"{file} has format {found}, this version writes {_FORMAT}: finish it with the version that"
                f" began it, or {START_OVER}"
            )

    def note(self, name: str, value: str) -> None:
        """Store a fact about the run."""
        with self._lock:
            self._base.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, value))

    def about(self, name: str) -> str | None:
        """Return a fact about the run."""
        found = self._one("SELECT value FROM about WHERE name = ?", (name,))
        return str(found[0]) if found else None

    def commit(
        self, node: str, done: Range, dead: Iterable[DeadLetter] = (), *, parked: bool = False
    ) -> None:
        """Add a range with its dead letters; results parked within it are removed."""
        with self._transaction() as base:
            base.execute(_INSERT_RANGE, (node, *_columns(done)))
            base.executemany(_INSERT_DEAD, [(node, *_letter(letter)) for letter in dead])
            if parked:
                base.execute("DELETE FROM parked WHERE node = ? AND first < ?", (node, done.last))

    def last(self, node: str) -> Range | None:
        """Return the last committed range of a node."""
        found = self._one("SELECT * FROM ranges WHERE node = ? ORDER BY first DESC LIMIT 1", (node,))
        return _range(found) if found else None

    def ranges(self, node: str) -> Iterator[Range]:
        """Yield the ranges of a node in order."""
        with self._lock:
            found = self._base.execute(
                "SELECT * FROM ranges WHERE node = ? ORDER BY first", (node,)
            ).fetchall()
        yield from map(_range, found)

    def totals(self, node: str) -> LedgerTotals:
        """Return the totals of a node."""
        found = self._one(
            "SELECT max(last) - min(first), sum(made), sum(dropped), sum(blank),"
            " (SELECT count(*) FROM dead WHERE node = ?1) FROM ranges WHERE node = ?1",
            (node,),
        )
        usage: dict[str, float] = {}
        with self._lock:
            texts = self._base.execute(
                "SELECT usage FROM ranges WHERE node = ? AND usage != '{}'", (node,)
            ).fetchall()
        for (text,) in texts:
            for name, value in json.loads(text).items():
                usage[name] = usage.get(name, 0) + value
        rows, made, dropped, blank, dead = (number or 0 for number in found)
        return LedgerTotals(rows, made, dropped, blank, dead, usage)

    def settled(self, nodes: list[str]) -> int:
        """Return how many rows of the first source have all descendants in the last output, in whole
        ranges.
        """
        rows: int | None = None
        for node in reversed(nodes):
            found = self._one(
                "SELECT max(last) FROM ranges WHERE node = ?1 AND (?2 IS NULL OR out_rows <= ?2)",
                (node, rows),
            )
            rows = found[0] if found and found[0] is not None else 0
        return max(0, (rows or 0) - self.first(nodes[0]))

    def rewind(self, node: str, out_end: int) -> None:
        """Delete a node's ranges beyond an offset of its output, which were lost with the process that
        held it in memory.
        """
        with self._transaction() as base:
            base.execute("DELETE FROM ranges WHERE node = ? AND out_end > ?", (node, out_end))
            last = self.last(node)
            base.execute("DELETE FROM dead WHERE node = ? AND row >= ?", (node, last.last if last else 0))
            base.execute("DELETE FROM finished WHERE node = ?", (node,))

    def park(self, node: str, results: Iterable[Result]) -> None:
        """Store results that are completed before earlier ones, so that a restart need not recompute them."""
        with self._transaction() as base:
            base.executemany(
                "INSERT OR REPLACE INTO parked VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        node,
                        r.first,
                        r.last,
                        r.end,
                        r.size,
                        r.data,
                        r.made,
                        r.dropped,
                        r.blank,
                        _letters(r),
                        json.dumps(r.usage),
                    )
                    for r in results
                ],
            )

    def parked(self, node: str) -> dict[int, Result]:
        """Return the parked results, by first row."""
        with self._lock:
            found = self._base.execute(
                "SELECT * FROM parked WHERE node = ? ORDER BY first", (node,)
            ).fetchall()
        return {row[1]: _result(row) for row in found}

    def finish(self, node: str, seal: str) -> None:
        """Record that a node has finished and its output is sealed."""
        with self._lock:
            self._base.execute("INSERT OR REPLACE INTO finished VALUES (?, ?)", (node, seal))

    def finished(self, node: str) -> str | None:
        """Return the seal of a finished node, or None."""
        found = self._one("SELECT seal FROM finished WHERE node = ?", (node,))
        return str(found[0]) if found else None

    def dead(self, node: str | None = None) -> list[tuple[int, str, DeadLetter, int]]:
        """Return the dead letters as (number, node, letter, tries), in row order."""
        with self._lock:
            found = self._base.execute(
                "SELECT number, node, identity, row, reason, error, line, tries FROM dead"
                " WHERE ?1 IS NULL OR node = ?1 ORDER BY node, row",
                (node,),
            ).fetchall()
        return [(r[0], r[1], DeadLetter(r[2], r[3], r[4], r[5], bytes(r[6])), r[7]) for r in found]

    def redriven(self, done: "Redriven") -> None:
        """Record a redrive: the new output, output rows and usage per node, and its dead letters."""
        with self._transaction() as base:
            for node, gained in done.gained.items():
                whole = _and_redriven(self.last(node), self.first(node), self.totals(node), gained)
                if node == done.node:
                    whole = replace(
                        whole, out_rows=done.out_rows, out_end=done.out_end, out_digest=done.out_digest
                    )
                base.execute("DELETE FROM ranges WHERE node = ?", (node,))
                base.execute(_INSERT_RANGE, (node, *_columns(whole)))
            self.finish(done.node, done.seal)
            base.executemany("DELETE FROM dead WHERE number = ?", [(number,) for number in done.settled])
            base.executemany(
                "UPDATE dead SET reason = ?, error = ?, tries = tries + 1 WHERE number = ?",
                [(letter.reason, letter.error, number) for number, letter in done.failed],
            )
            base.executemany(_INSERT_DEAD, [(node, *_letter(letter)) for node, letter in done.moved])
            for name, value in done.notes.items():
                self.note(name, value)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    def first(self, node: str) -> int:
        """Return the number of the first source row of a node."""
        return int(self._one("SELECT min(first) FROM ranges WHERE node = ?", (node,))[0] or 0)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    def _one(self, query: str, values: tuple[Any, ...]) -> Any:
        with self._lock:
            return self._base.execute(query, values).fetchone()


def _columns(done: Range) -> tuple[Any, ...]:
    return (
        done.first,
        done.last,
        done.source_end,
        done.source_digest,
        done.out_rows,
        done.out_end,
        done.out_digest,
        done.made,
        done.dropped,
        done.blank,
        done.dead,
        json.dumps(dict(done.usage)),
    )


def _letter(letter: DeadLetter) -> tuple[Any, ...]:
    return letter.identity, letter.row, letter.reason, letter.error, letter.line


def _and_redriven(last: Range | None, first: int, whole: LedgerTotals, gained: LedgerTotals) -> Range:
    """Merge all ranges of a node into one, including a redrive: the output no longer matches them."""
    last = last or Range(0, 0, 0, _NOTHING, 0, 0, _NOTHING, 0, 0, 0, 0, {})
    usage = dict(whole.usage or {})
    for name, value in (gained.usage or {}).items():
        usage[name] = usage.get(name, 0) + value
    made, dropped = whole.made + gained.made, whole.dropped + gained.dropped
    return replace(
        last, first=first, made=made, dropped=dropped, blank=whole.blank, dead=whole.dead, usage=usage
    )


def _range(row: Any) -> Range:
    return Range(*(*row[1:12], json.loads(row[12])))


def _letters(result: Result) -> str:
    return json.dumps(
        [
            [d.identity, d.row, d.reason, d.error, d.line.decode("utf-8", "surrogateescape")]
            for d in result.dead
        ]
    )


def _result(row: Any) -> Result:
    dead = [
        DeadLetter(identity, number, reason, error, line.encode("utf-8", "surrogateescape"))
        for identity, number, reason, error, line in json.loads(row[9])
    ]
    return Result(
        row[1], row[2], row[3], bytes(row[5]), row[6], row[7], row[8], dead, json.loads(row[10]), size=row[4]
    )
