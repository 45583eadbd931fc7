"""Liveness: true only while the worker's own loop makes progress or has nothing to do."""

import threading
import time


class Health:
    """Heartbeat of one loop. The loop beats; the HTTP thread asks.

    Args:
        grace: seconds without a beat after which the worker is not alive.
    """

    def __init__(self, grace: float = 30.0) -> None:
        self._grace = grace
        self._last = time.monotonic()
        self._ready = threading.Event()

    def beat(self) -> None:
        """Say that the loop made progress, or found nothing to do."""
        self._last = time.monotonic()

    def ready(self) -> None:
        """Say that start-up is over: rings are mapped, checkpoints are loaded."""
        self.beat()
        self._ready.set()

    @property
    def age(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._last

    @property
    def alive(self) -> bool:
        """Whether the last beat is recent enough; slow loading is the startup probe's business."""
        return not self._ready.is_set() or self.age < self._grace

    @property
    def started(self) -> bool:
        """Whether start-up is over."""
        return self._ready.is_set()
