"""A snapshot of a run for display."""

from dataclasses import dataclass

from asysi.contract.telemetry import RunStatus

STARTING = RunStatus(phase="starting")
"""Status before finish has responded."""


@dataclass(frozen=True)
class ProcessView:
    """A container, for display."""

    name: str
    state: str
    restarts: int


@dataclass(frozen=True)
class View:
    """Snapshot of a run."""

    name: str
    attempt: int = 0
    seconds: float = 0.0
    """Seconds since the start of the run."""
    processes: tuple[ProcessView, ...] = ()
    status: RunStatus = STARTING
    rows: str = ""
    """Progress of the pipeline while it runs."""
    notes: tuple[str, ...] = ()
    """Current notices for the user."""

    @property
    def phase(self) -> str:
        """Phase of the run in one word."""
        return self.status.phase or "running"

    @property
    def restarts(self) -> int:
        """Total in-place restarts of all containers."""
        return sum(process.restarts for process in self.processes)

    @property
    def remaining(self) -> float | None:
        """Seconds that the model still needs at its present pace, or finish for what it reads again; None
        when unknown.
        """
        if self.phase == "analysing":
            return self.status.rereading.seconds_left
        at = self.status.progress
        if self.phase != "running" or not at.tokens_total or at.tokens is None or not at.tokens_per_second:
            return None
        left = at.tokens_total - at.tokens
        return left / at.tokens_per_second if left > 0 else None
