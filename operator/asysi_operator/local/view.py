"""What there is to see of a run at one moment."""

from dataclasses import dataclass, field

from asysi_operator.local.status import Status


@dataclass(frozen=True)
class Process:
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
    processes: tuple[Process, ...] = ()
    status: Status = field(default_factory=Status)
    rows: str = ""
    """How far the pipeline is, while it runs."""
    notes: tuple[str, ...] = ()
    """What the user should know now."""

    @property
    def restarts(self) -> int:
        """Restarts in place, of all containers."""
        return sum(process.restarts for process in self.processes)

    @property
    def remaining(self) -> float | None:
        """Seconds that the model still needs at its present pace, None when unknown."""
        status = self.status
        if (
            status.phase != "running"
            or not status.tokens_total
            or status.tokens is None
            or not status.tokens_per_second
        ):
            return None
        left = status.tokens_total - status.tokens
        return left / status.tokens_per_second if left > 0 else None
