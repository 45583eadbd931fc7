"""A memory budget shared by several threads."""

import contextlib
import threading
from collections.abc import Iterator


class MemoryBudget:
    """Admits work within a memory limit; work that exceeds the limit runs alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held, self._condition = limit, 0, threading.Condition()

    @contextlib.contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are available, reserve them, and release them on exit."""
        with self._condition:
            self._condition.wait_for(lambda: self._held == 0 or self._held + size <= self._limit)
            self._held += size
        try:
            yield
        finally:
            with self._condition:
                self._held -= size
                self._condition.notify_all()
