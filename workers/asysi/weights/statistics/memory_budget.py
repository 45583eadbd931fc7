"""Memory that several threads share."""

import contextlib
import threading
from collections.abc import Iterator


class MemoryBudget:
    """Lets work begin while what is held stays within a limit; what alone is larger runs alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held, self._condition = limit, 0, threading.Condition()

    @contextlib.contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Wait until there is room for `size` bytes, and give it back in the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._held == 0 or self._held + size <= self._limit)
            self._held += size
        try:
            yield
        finally:
            with self._condition:
                self._held -= size
                self._condition.notify_all()
