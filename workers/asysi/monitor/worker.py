"""The context of a worker: its experiment, folders, health, and received signals."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import ATTEMPT_FILE, Container, Env
from asysi.contract.spec import ScanExperiment
from asysi.monitor.health import Health

_TERMINATION_LIMIT = 4096
log = logging.getLogger("asysi")


@dataclass
class StopSignal:
    """Received signals. SIGTERM: checkpoint and exit with 143. SIGINT: stop early and cleanly."""

    terminated: bool = False
    interrupted: bool = False

    @property
    def requested(self) -> bool:
        """Whether the loop should stop."""
        return self.terminated or self.interrupted


@dataclass
class Worker:
    """The context of a worker."""

    container: Container
    experiment: ScanExperiment
    shm: Path
    output: Path
    workspace: Path
    attempt: int
    port: int
    health: Health = field(default_factory=Health)
    stop: StopSignal = field(default_factory=StopSignal)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    status: Callable[[], dict[str, object]] = dict
    """Returns the content of /status; a worker can replace it."""

    @classmethod
    def from_environment(cls, container: Container) -> "Worker":
        """Create the context from the environment set by the pod or the local runner.

        Raises:
            ConfigError: a variable is missing, or the configuration cannot be read.
        """
        missing = [
            name for name in (Env.CONFIG, Env.SHM, Env.OUTPUT, Env.WORKSPACE) if not os.environ.get(name)
        ]
        if missing:
            raise ConfigError(
                f"{container} needs {', '.join(missing)} in its environment: it runs in an experiment's pod"
            )
        path = Path(os.environ[Env.CONFIG])
        try:
            experiment = ScanExperiment.model_validate(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{container} cannot read the experiment in {path}: {error}") from error
        return cls(
            container=container,
            experiment=experiment,
            shm=Path(os.environ[Env.SHM]),
            output=Path(os.environ[Env.OUTPUT]),
            workspace=Path(os.environ[Env.WORKSPACE]),
            attempt=_attempt(Path(os.environ[Env.WORKSPACE])),
            port=_whole_number(Env.PORT),
        )

    def last_words(self, text: str) -> None:
        """Write `text` as the container's termination message."""
        leave_last_words(text)


def _whole_number(name: Env) -> int:
    return _number(str(name), os.environ.get(name) or "0")


def _attempt(workspace: Path) -> int:
    """Return the attempt number from the environment, otherwise the one allocated by prepare."""
    file = workspace / ATTEMPT_FILE
    if os.environ.get(Env.ATTEMPT) or not file.is_file():
        return _whole_number(Env.ATTEMPT)
    return _number(str(file), file.read_text().strip())


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r} and must be a whole number from 0")
    return int(text)


def leave_last_words(text: str) -> None:
    """Write `text` as the termination message of this process's container."""
    if path := os.environ.get(Env.TERMINATION):
        try:
            Path(path).write_bytes(text.encode()[:_TERMINATION_LIMIT].decode(errors="ignore").encode())
        except OSError as error:  # the exit code matters more than a missing message
            log.warning("cannot write the termination message to %s: %s", path, error)
