"""A thread that runs jobs in order, with a limit on the bytes of queued jobs."""

import threading
from collections import deque
from collections.abc import Callable

_IDLE_SECONDS = 1.0
"""Idle time after which the thread ends; the next job starts a new one."""


class JobQueue:
    """Runs jobs in the order in which they were put, on its own thread.

    The first job that raises stops the queue: the jobs after it are discarded, and its error is raised once,
    by the next `put`, `check` or `drain`.

    Args:
        limit: maximum bytes of queued jobs; a single larger job is queued alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: deque[tuple[Callable[[], None], int]] = deque()
        self._changed = threading.Condition()
        self._waiting = 0
        self._alive = False
        self._error: BaseException | None = None

    @property
    def waiting(self) -> int:
        """Bytes of unfinished jobs."""
        return self._waiting

    def put(self, job: Callable[[], None], size: int) -> None:
        """Add a job that holds `size` bytes; wait while there is no room for it.

        Raises:
            RuntimeError: no thread can start; the job is not added.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or not self._waiting or self._waiting + size <= self._limit
            )
            self._raise()
            if not self._alive:  # first, because it may fail: a job without a thread would wait for ever
                threading.Thread(target=self._run, name="mscan-writer", daemon=True).start()
                self._alive = True
            self._jobs.append((job, size))
            self._waiting += size
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the error of a failed job, once."""
        if self._error is not None:
            with self._changed:
                self._raise()

    def drain(self) -> None:
        """Wait until every job is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or not self._jobs)
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        while job := self._next():
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - raised where the writer is used
                self._done(error)
            else:
                self._done(None)

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs, _IDLE_SECONDS)
            self._alive = bool(self._jobs)
            return self._jobs[0][0] if self._jobs else None

    def _done(self, error: BaseException | None) -> None:
        with self._changed:
            _, size = self._jobs.popleft()
            self._waiting -= size
            if error is not None:
                self._error = error
                self._jobs.clear()
                self._waiting = 0
            self._changed.notify_all()
