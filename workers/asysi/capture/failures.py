"""Exceptions in capture: counted, kept away from the model, and logged when no layer waits."""

import logging

log = logging.getLogger("asysi")


class DeviceRefusedError(RuntimeError):
    """A call of a hooked module on a device cannot be captured; the message says why, and what to do."""


class Failures:
    """What went wrong in capture."""

    def __init__(self) -> None:
        self.count = 0
        """Exceptions that the model never saw."""
        self._told: set[type[Exception] | str] = set()
        self._untold: list[tuple[str, Exception]] = []

    def add(self, where: str, error: Exception) -> None:
        """Count an exception; the first of its kind is logged by `tell`."""
        self.count += 1
        kind = str(error) if isinstance(error, DeviceRefusedError) else type(error)
        if kind not in self._told:
            self._told.add(kind)
            self._untold.append((where, error))

    def note(self, where: str, error: Exception) -> None:
        """Have `tell` log what was not an exception, once for each `where`."""
        if where not in self._told:
            self._told.add(where)
            self._untold.append((where, error))

    def tell(self) -> None:
        """Log what came since the last time."""
        while self._untold:
            where, error = self._untold.pop(0)
            kind = type(error).__name__
            log.warning("capture failed at %s, the model goes on: %s: %s", where, kind, error, exc_info=error)
