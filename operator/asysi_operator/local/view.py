"""What there is to see of a run at one moment."""

from dataclasses import dataclass

from asysi.contract.telemetry import RunStatus

STARTING = RunStatus(phase="starting")
"""Before finish has said anything."""


@dataclass(frozen=True)
class ProcessView:
    """A container, for people."""

    name: str
    state: str
    restarts: int


@dataclass(frozen=True)
class View:
    """A run at one moment."""

    name: str
    attempt: int = 0
    seconds: float = 0.0
    """Since the run began."""
    processes: tuple[ProcessView, ...] = ()
    status: RunStatus = STARTING
    rows: str = ""
    """How far the pipeline is, while it runs."""
    notes: tuple[str, ...] = ()
    """What the user should know now."""

    @property
    def phase(self) -> str:
        """Where the run stands, in one word."""
        return self.status.phase or "running"

    @property
    def restarts(self) -> int:
        """Restarts in place, of all containers."""
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
