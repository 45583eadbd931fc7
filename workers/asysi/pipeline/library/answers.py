"""Paid answers, kept so that none is paid for twice.

A request is noted before it is sent, and its answer is on the disk before anybody uses it. A process that is
killed in between leaves a note without an answer: that call may have been paid for, and nobody here can know.
It is sent again, under the same idempotency key, and counted as unsure.
"""

import asyncio
import secrets
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from asysi.contract.errors import ConfigError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sent (key BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, owner TEXT, answer BLOB);
"""
_KEEP = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)"
_NOTE = "INSERT INTO sent VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times - 1"
_UNDO = "UPDATE sent SET times = times - 1 WHERE key = ?"
_FORGET = "DELETE FROM sent WHERE key = ?"
_Statement = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request brought.

    Attributes:
        owner: the row that paid for it.
        tree: the answer, as JSON holds it.
    """

    owner: str
    tree: Any


class Answers:
    """Answers by the key of their request, in one SQLite file; belongs to one event loop.

    Writes that come together share a commit.

    Args:
        file: the SQLite file.
        fsync: whether an answer is on the disk before it is used, so that a lost machine loses none either.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, file: Path, *, fsync: bool = True) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._read = _connected(file, "NORMAL")
            self._read.executescript(_SCHEMA)
            self._notes, self._keeps = (
                _connected(file, "NORMAL"),
                _connected(file, "FULL" if fsync else "NORMAL"),
            )
            self._read.execute("INSERT OR IGNORE INTO about VALUES ('salt', ?)", (secrets.token_hex(8),))
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{file} holds no answers ({error}): restore it, or name another cache"
            ) from error
        found = self._read.execute("SELECT value FROM about WHERE name = 'salt'").fetchone()
        self.salt = str(found[0])
        """Tells this file's calls from those of every other."""
        self._waiting: list[_Write] = []
        self._committing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")

    def find(self, key: bytes) -> Answer | None:
        """Return the answer to a request, if it is there."""
        found = self._read.execute("SELECT owner, answer FROM answers WHERE key = ?", (key,)).fetchone()
        return Answer(found[0], orjson.loads(found[1])) if found else None

    async def note(self, key: bytes) -> int:
        """Note that a request is about to be sent; return how often it was before, with an unknown end."""
        found = await self._write((_NOTE, (key,)), durable=False)
        return int(found)

    async def forget(self, key: bytes) -> None:
        """Take a note back: the request was refused, so it cost nothing."""
        await self._write((_UNDO, (key,)), (f"{_FORGET} AND times = 0", (key,)), durable=False)

    async def keep(self, key: bytes, answer: Answer) -> None:
        """Put an answer on the disk."""
        values = (key, answer.owner, orjson.dumps(answer.tree))
        await self._write((_KEEP, values), (_FORGET, (key,)), durable=True)

    def unsure(self) -> list[bytes]:
        """Return the keys of requests that were sent and have no answer."""
        return [bytes(row[0]) for row in self._read.execute("SELECT key FROM sent ORDER BY key")]

    async def close(self) -> None:
        """Write what waits, and close the file."""
        if self._committing is not None:
            await self._committing
        self._thread.shutdown()
        for base in (self._read, self._notes, self._keeps):
            base.close()

    async def _write(self, *statements: _Statement, durable: bool) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(statements, durable, done))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        return await asyncio.shield(done)

    async def _commit_all(self) -> None:
        """Commit what waits, all in one; what comes meanwhile waits for the next one."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            writes, self._waiting = self._waiting, []
            base = self._keeps if any(write.durable for write in writes) else self._notes
            try:
                results = await loop.run_in_executor(self._thread, _commit, base, writes)
            except Exception as error:  # noqa: BLE001 - those who wait for it are told
                for write in writes:
                    write.done.set_exception(error)
            else:
                for write, result in zip(writes, results, strict=True):
                    write.done.set_result(result)
        self._committing = None


@dataclass(frozen=True, slots=True)
class _Write:
    """Statements that belong together, and who waits for them."""

    statements: tuple[_Statement, ...]
    durable: bool
    done: "asyncio.Future[Any]"


def _connected(file: Path, synchronous: str) -> sqlite3.Connection:
    base = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=30)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute(f"PRAGMA synchronous={synchronous}")
    return base


def _commit(base: sqlite3.Connection, writes: list[_Write]) -> list[Any]:
    """Run all writes in one transaction; return the first value that each gave."""
    base.execute("BEGIN IMMEDIATE")
    try:
        results = []
        for write in writes:
            found = [base.execute(*statement).fetchone() for statement in write.statements]
            results.append(found[0][0] if found[0] else None)
    except BaseException:
        base.execute("ROLLBACK")
        raise
    base.execute("COMMIT")
    return results
