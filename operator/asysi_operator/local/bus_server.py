"""The queue server of CONSUMER mode: started before a pod, ended after it; without it the attempt is over."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import LOG_FOLDER, QUEUE_KEY, QUEUE_SERVER
from asysi_operator.local.events import Event
from asysi_operator.local.process import Process

NAME = "bus"
"""Its name in events and logs."""
START_SECONDS = 60.0
"""Time for the server to listen."""

Tell = Callable[[str, Event, int | None, str | None], None]
"""Container, event, exit code, reason."""


class BusServer(Protocol):
    """What carries the bus beside the containers, for one attempt: a context manager."""

    def lost(self) -> str | None:
        """Return why the attempt cannot go on, or None."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class NoServer:
    """HPC mode: the rings are files."""

    def lost(self) -> str | None:
        """Return None: files do not die."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class QueueServer:
    """The queue server's process.

    Args:
        folder: for its socket and key.
        output: results directory, for its log.
        env: its environment.
        lock: file descriptor that it inherits, as the containers do.
        tell: records events.
    """

    def __init__(self, folder: Path, output: Path, env: Mapping[str, str], lock: int, tell: Tell) -> None:
        self._folder, self._tell = folder, tell
        self._env, self._log, self._lock = env, output / LOG_FOLDER / f"{NAME}.log", lock
        self._process: Process | None = None

    def lost(self) -> str | None:
        """Return a sentence once the server has ended: packets and counters have gone with it."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return None
        return f"the queue server ended with exit code {code}: the attempt's packets and counters are lost"

    def __enter__(self) -> Self:
        command = ["python", "-m", QUEUE_SERVER, str(self._folder)]
        self._process = process = Process(command, self._env, self._log, inherited=[self._lock])
        deadline = time.monotonic() + START_SECONDS
        while not (self._folder / QUEUE_KEY).exists():
            code = process.poll()
            if code is not None or time.monotonic() > deadline:
                process.kill()
                said = "does not listen" if code is None else f"ended with exit code {code}"
                raise ConfigError(f"the queue server {said}: see logs/{NAME}.log in the output folder")
            time.sleep(0.01)
        self._tell(NAME, "started", None, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        code = self._process.poll()
        self._process.kill()
        self._tell(NAME, "exited", code, "the run is over" if code is None else "it died")
