"""Paid answers, kept so that none is paid for twice.

A request is noted before it is sent, and what arrives is on the disk, as it arrived, before anybody reads it.
A process that is killed in between leaves a note without an answer: that call may have been paid for, and
nobody here can know. It is sent again, under the same idempotency key, and counted as unsure. What arrived
and is not an answer, and calls that brought nothing, are set aside with what they cost.
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
    """What a request brought.

    Attributes:
        owner: the row that paid for it.
        body: the answer as it arrived; a tree where an earlier version kept it.
        retries: how often it was sent again.
        unsure: how often it was sent before, with an unknown end.
    """

    owner: str
    body: Any
    retries: int = 0
    unsure: int = 0


class Answers:
    """Answers by the key of their request, in one SQLite file; belongs to one event loop.

    A commit writes to SQLite's log, which takes microseconds and survives a kill. An answer then waits until
    that log is on the disk: a thread sees to it, once for all who wait.

    Args:
        file: the SQLite file.
        fsync: whether an answer is on the disk before it is used, so that a lost machine loses none either.

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
        """Tells this file's calls from those of every other."""
        self._failed = {bytes(row[0]) for row in failed}
        """Requests of which a call failed that was paid for, or may have been."""
        self._log = os.open(f"{file}-wal", os.O_RDONLY | os.O_CLOEXEC) if fsync else None
        if fsync:
            sync(file.parent)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._waiting: list[asyncio.Future[None]] = []
        self._syncing: asyncio.Task[None] | None = None

    def find(self, key: bytes) -> Answer | None:
        """Return the answer to a request, if it is there."""
        found = self._base.execute(
            "SELECT owner, body, retries, unsure FROM bodies WHERE key = ?", (key,)
        ).fetchall()
        if found:
            owner, body, retries, unsure = found[0]
            return Answer(owner, bytes(body), retries, unsure)
        old = self._base.execute("SELECT owner, answer FROM answers WHERE key = ?", (key,)).fetchall()
        return Answer(old[0][0], orjson.loads(old[0][1])) if old else None

    def note(self, key: bytes) -> int:
        """Note that a request is about to be sent; return how often it was before, with an unknown end."""
        return int(self._base.execute(_NOTE, (key,)).fetchall()[0][0])

    def forget(self, key: bytes) -> None:
        """Take a note back: the request was refused, so it cost nothing."""
        self._commit((_UNDO, (key,)), (f"{_FORGET} AND times = 0", (key,)))

    def reject(self, key: bytes, spent: Mapping[str, float]) -> None:
        """Set aside what arrived and is not an answer, with its cost: the request will be sent again."""
        keep = "INSERT INTO failed SELECT key, owner, ?, body FROM bodies WHERE key = ?"
        self._commit(
            (keep, (orjson.dumps(spent).decode(), key)),
            ("DELETE FROM bodies WHERE key = ?", (key,)),
            ("DELETE FROM answers WHERE key = ?", (key,)),
        )
        self._failed.add(key)

    def lose(self, key: bytes, owner: str, spent: Mapping[str, float]) -> None:
        """Note what a call may have cost that brought nothing; its own note is taken back."""
        self._commit(
            (_FAIL, (key, owner, orjson.dumps(spent).decode(), b"")),
            (_UNDO, (key,)),
            (f"{_FORGET} AND times = 0", (key,)),
        )
        self._failed.add(key)

    def failures(self, key: bytes, owner: str) -> list[dict[str, float]]:
        """Return what the failed calls of a row cost, or may have cost."""
        if key not in self._failed:
            return []
        found = self._base.execute("SELECT spent FROM failed WHERE key = ? AND owner = ?", (key, owner))
        return [orjson.loads(text) for (text,) in found.fetchall()]

    async def keep(self, key: bytes, answer: Answer) -> None:
        """Put what arrived on the disk, before it is read."""
        values = (key, answer.owner, answer.body, answer.retries, answer.unsure)
        self._commit((_KEEP, values), (_FORGET, (key,)))
        if self._log is not None:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(done)
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync(self._log))
            await asyncio.shield(done)

    def unsure(self) -> list[bytes]:
        """Return the keys of requests that were sent and may have been paid for without an answer."""
        query = "SELECT key FROM sent UNION SELECT key FROM failed WHERE body = x'' ORDER BY 1"
        return [bytes(row[0]) for row in self._base.execute(query)]

    async def close(self) -> None:
        """Put what waits on the disk, and close the file."""
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
        """Put SQLite's log on the disk for as long as somebody waits for it."""
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
