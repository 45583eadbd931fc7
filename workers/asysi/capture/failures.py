"""Exceptions in capture: counted, hidden from the model, and logged outside the forward pass."""

import logging

log = logging.getLogger("asysi")


class DeviceRefusedError(RuntimeError):
    """A call of a hooked module on a device cannot be captured; the message says why, and what to do."""


class Failures:
    """Record of capture failures."""

    def __init__(self) -> None:
        self.count = 0
        """Number of suppressed exceptions."""
        self._told: set[type[Exception] | str] = set()
        self._untold: list[tuple[str, Exception]] = []

    def add(self, where: str, error: Exception) -> None:
        """Count an exception; `tell` logs the first one of each type."""
        self.count += 1
        kind = str(error) if isinstance(error, DeviceRefusedError) else type(error)
        if kind not in self._told:
            self._told.add(kind)
            self._untold.append((where, error))

    def note(self, where: str, error: Exception) -> None:
        """Record a problem that is not an exception; `tell` logs it once per `where`."""
        if where not in self._told:
            self._told.add(where)
            self._untold.append((where, error))

    def tell(self) -> None:
        """Log the failures since the last call."""
        while self._untold:
            where, error = self._untold.pop(0)
            kind = type(error).__name__
            log.warning(
                "capture failed at %s, the model continues: %s: %s", where, kind, error, exc_info=error
            )
