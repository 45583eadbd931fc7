"""The frame that every worker runs in: environment, signals, endpoints, last words and exit code."""

import faulthandler
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from prometheus_client import CollectorRegistry

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Container, Env, Exit
from asysi.contract.spec import ScanExperiment
from asysi.monitor.health import Health

_TERMINATION_LIMIT = 4096
log = logging.getLogger("asysi")


@dataclass
class Stop:
    """What signals asked for. SIGTERM: checkpoint and leave with 143. SIGINT: end early and cleanly."""

    terminated: bool = False
    interrupted: bool = False

    @property
    def requested(self) -> bool:
        """Whether the loop should leave."""
        return self.terminated or self.interrupted


@dataclass
class Worker:
    """What a worker is given."""

    container: Container
    experiment: ScanExperiment
    shm: Path
    output: Path
    workspace: Path
    attempt: int
    port: int
    health: Health = field(default_factory=Health)
    stop: Stop = field(default_factory=Stop)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    status: Callable[[], dict[str, object]] = dict
    """What /status answers; a worker may replace it."""

    @classmethod
    def from_environment(cls, container: Container) -> "Worker":
        """Read the environment that the pod, or the local runner, has set.

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
            attempt=_whole_number(Env.FIRST_ATTEMPT) + _whole_number(Env.ATTEMPT),
            port=_whole_number(Env.PORT),
        )

    def last_words(self, text: str) -> None:
        """Leave `text` as the container's termination message."""
        _say(text)


def _whole_number(name: Env) -> int:
    text = os.environ.get(name) or "0"
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r} and must be a whole number from 0")
    return int(text)


def run_worker(container: Container, main: Callable[[Worker], int]) -> NoReturn:
    """Run `main` as the process of `container` and leave with its exit code.

    A ConfigError ends in exit code 2 with its sentences as last words, any other exception in 1 with a
    traceback in the log. After SIGTERM an exit code 0 becomes 143. A sidecar whose stream has ended already
    does nothing until SIGTERM, and leaves with 0.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {container} %(levelname)s %(message)s"
    )
    faulthandler.enable()  # a crash in native code leaves a traceback too
    worker: Worker | None = None
    try:
        worker = Worker.from_environment(container)
        _listen(worker.stop)
        _serve(worker)
        code = _work(worker, main)
    except ConfigError as error:
        for problem in error.problems:
            log.error("%s", problem)  # noqa: TRY400 - a sentence for a person, no traceback
        code = Exit.CONFIG
        _say(str(error))
    except Exception as error:  # the process ends here, with everything it knows
        log.exception("%s failed", container)
        code = Exit.FAILED
        _say(f"{type(error).__name__}: {error}")
    logging.shutdown()
    sys.stdout.flush()
    sys.exit(int(code))


def _work(worker: Worker, main: Callable[[Worker], int]) -> int:
    from asysi.monitor.rest import has_ended, rest  # noqa: PLC0415 - it works with this module's Worker

    if has_ended(worker):
        return rest(worker)
    code = main(worker)
    return Exit.TERMINATED if worker.stop.terminated and code == Exit.OK else code


def _say(text: str) -> None:
    if path := os.environ.get(Env.TERMINATION):
        try:
            Path(path).write_bytes(text.encode()[:_TERMINATION_LIMIT].decode(errors="ignore").encode())
        except OSError as error:  # the exit code says more than the message that could not be left
            log.warning("no termination message left in %s: %s", path, error)


def _listen(stop: Stop) -> None:
    def on_term(_signal: int, _frame: FrameType | None) -> None:
        stop.terminated = True

    def on_int(_signal: int, _frame: FrameType | None) -> None:
        stop.interrupted = True

    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGINT, on_int)


def _serve(worker: Worker) -> None:
    if worker.port:
        from asysi.monitor.endpoints import serve  # noqa: PLC0415 - not needed where nothing listens

        serve(worker)
