"""Signals from the user: Ctrl-C once for a clean end, twice to kill; SIGTERM to checkpoint and exit."""

import signal
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Self


@dataclass
class UserSignals:
    """Counts signals; as a context manager, installs itself as their handler (main thread only)."""

    interrupts: int = 0
    terminated: bool = False
    _before: dict[int, Any] = field(default_factory=dict)

    @property
    def clean_end(self) -> bool:
        """Whether the stream should end early, in band."""
        return self.interrupts > 0

    @property
    def kill(self) -> bool:
        """Whether to kill without waiting."""
        return self.interrupts > 1

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self.interrupts += 1
        else:
            self.terminated = True
