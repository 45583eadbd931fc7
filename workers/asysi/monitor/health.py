"""Liveness: true only while the worker's loop makes progress or is idle."""

import threading
import time


class Health:
    """Heartbeat of one loop, set by the loop and read by the HTTP thread.

    Args:
        grace: seconds without a heartbeat after which the worker is not alive.
    """

    def __init__(self, grace: float = 30.0) -> None:
        self._grace = grace
        self._last = time.monotonic()
        self._ready = threading.Event()

    def beat(self) -> None:
        """Record that the loop made progress or is idle."""
        self._last = time.monotonic()

    def ready(self) -> None:
        """Record that startup is complete: rings are mapped, checkpoints are loaded."""
        self.beat()
        self._ready.set()

    @property
    def age(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._last

    @property
    def alive(self) -> bool:
        """Whether the last heartbeat is recent enough; the startup probe handles slow loading."""
        return not self._ready.is_set() or self.age < self._grace

    @property
    def started(self) -> bool:
        """Whether startup is complete."""
        return self._ready.is_set()
