"""Persistent cache of API answers, so that no call is billed twice.

A request is recorded before it is sent, and the response is written to disk unparsed before it is used. A
process killed in between leaves a record without an answer: that call may or may not have been billed. It is
sent again with the same idempotency key and counted as unsure. Responses that are not valid answers, and
calls without a response, are stored separately with their cost.
"""

import asyncio
import os
import secrets
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from asysi.contract.errors import ConfigError
from asysi.files import sync

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sent (key BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, owner TEXT, answer BLOB);
CREATE TABLE IF NOT EXISTS bodies (
    key BLOB PRIMARY KEY, owner TEXT, body BLOB, retries INTEGER, unsure INTEGER
);
CREATE TABLE IF NOT EXISTS failed (key BLOB, owner TEXT, spent TEXT, body BLOB);
CREATE INDEX IF NOT EXISTS failed_key ON failed (key);
"""
_KEEP = "INSERT OR REPLACE INTO bodies VALUES (?, ?, ?, ?, ?)"
_FAIL = "INSERT INTO failed VALUES (?, ?, ?, ?)"
_NOTE = "INSERT INTO sent VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times - 1"
_UNDO = "UPDATE sent SET times = times - 1 WHERE key = ?"
_FORGET = "DELETE FROM sent WHERE key = ?"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response to a request.

    Attributes:
        owner: the row that is charged for it.
        body: the raw response; a parsed tree if stored by an earlier version.
        retries: number of retries.
        unsure: number of earlier attempts with unknown outcome.
    """

    owner: str
    body: Any
    retries: int = 0
    unsure: int = 0


class Answers:
    """Answers by request key, in one SQLite file; use from one event loop only.

    A commit writes to SQLite's WAL, which takes microseconds and survives a kill. An answer is then returned
    once the WAL has been synced to disk by a thread, one sync for all waiting answers.

    Args:
        file: the SQLite file.
        fsync: whether to sync an answer to disk before it is used, so that a machine crash loses none.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, file: Path, *, fsync: bool = True) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._base = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=30)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.executescript(_SCHEMA)
            self._base.execute("INSERT OR IGNORE INTO about VALUES ('salt', ?)", (secrets.token_hex(8),))
            found = self._base.execute("SELECT value FROM about WHERE name = 'salt'").fetchone()
            failed = self._base.execute("SELECT DISTINCT key FROM failed").fetchall()
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{file} holds no answers ({error}): restore it or name another") from error
        self.salt = str(found[0])
        """Distinguishes this file's idempotency keys from those of other files."""
        self._failed = {bytes(row[0]) for row in failed}
        """Requests with a failed call that was, or may have been, billed."""
        self._log = os.open(f"{file}-wal", os.O_RDONLY | os.O_CLOEXEC) if fsync else None
        if fsync:
            sync(file.parent)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._waiting: list[asyncio.Future[None]] = []
        self._syncing: asyncio.Task[None] | None = None

    def find(self, key: bytes) -> Answer | None:
        """Return the cached answer to a request, or None."""
        found = self._base.execute(
            "SELECT owner, body, retries, unsure FROM bodies WHERE key = ?", (key,)
        ).fetchall()
        if found:
            owner, body, retries, unsure = found[0]
            return Answer(owner, bytes(body), retries, unsure)
        old = self._base.execute("SELECT owner, answer FROM answers WHERE key = ?", (key,)).fetchall()
        return Answer(old[0][0], orjson.loads(old[0][1])) if old else None

    def note(self, key: bytes) -> int:
        """Record that a request is about to be sent; return the number of sends with unknown outcome."""
        return int(self._base.execute(_NOTE, (key,)).fetchall()[0][0])

    def forget(self, key: bytes) -> None:
        """Remove the record of a request that was rejected and therefore not billed."""
        self._commit((_UNDO, (key,)), (f"{_FORGET} AND times = 0", (key,)))

    def reject(self, key: bytes, spent: Mapping[str, float]) -> None:
        """Move an invalid response and its cost to the failed calls; the request will be sent again."""
        keep = "INSERT INTO failed SELECT key, owner, ?, body FROM bodies WHERE key = ?"
        self._commit(
            (keep, (orjson.dumps(spent).decode(), key)),
            ("DELETE FROM bodies WHERE key = ?", (key,)),
            ("DELETE FROM answers WHERE key = ?", (key,)),
        )
        self._failed.add(key)

    def lose(self, key: bytes, owner: str, spent: Mapping[str, float]) -> None:
        """Record the possible cost of a call without a response, and remove its send record."""
        self._commit(
            (_FAIL, (key, owner, orjson.dumps(spent).decode(), b"")),
            (_UNDO, (key,)),
            (f"{_FORGET} AND times = 0", (key,)),
        )
        self._failed.add(key)

    def failures(self, key: bytes, owner: str) -> list[dict[str, float]]:
        """Return the actual or possible cost of a row's failed calls."""
        if key not in self._failed:
            return []
        found = self._base.execute("SELECT spent FROM failed WHERE key = ? AND owner = ?", (key, owner))
        return [orjson.loads(text) for (text,) in found.fetchall()]

    async def keep(self, key: bytes, answer: Answer) -> None:
        """Write a response to disk before it is parsed."""
        values = (key, answer.owner, answer.body, answer.retries, answer.unsure)
        self._commit((_KEEP, values), (_FORGET, (key,)))
        if self._log is not None:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(done)
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync(self._log))
            await asyncio.shield(done)

    def unsure(self) -> list[bytes]:
        """Return the keys of requests that may have been billed without an answer."""
        query = "SELECT key FROM sent UNION SELECT key FROM failed WHERE body = x'' ORDER BY 1"
        return [bytes(row[0]) for row in self._base.execute(query)]

    async def close(self) -> None:
        """Finish pending syncs and close the file."""
        if self._syncing is not None:
            await self._syncing
        self._thread.shutdown()
        self._base.close()
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _commit(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                self._base.execute(*statement)
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")

    async def _sync(self, log: int) -> None:
        """Sync SQLite's WAL to disk while there are waiters."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                await loop.run_in_executor(self._thread, os.fdatasync, log)
            except OSError as error:
                for done in waiting:
                    done.set_exception(error)
            else:
                for done in waiting:
                    done.set_result(None)
        self._syncing = None
