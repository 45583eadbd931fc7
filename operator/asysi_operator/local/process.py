"""One container as a process, with its own session and log; it does not outlive the runner."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_ENTRY = Path(__file__).with_name("container_entry.py")


class Process:
    """A running container.

    Must be created on a thread that lives as long as the runner: the kernel ties the child to the thread.

    Args:
        command: the container's command; `python` is replaced by this interpreter.
        env: its complete environment.
        log: file for stdout and stderr; an existing one is renamed first.
        port: port that it serves, 0 for none.
        cpus: CPUs it is bound to, empty for all.
        inherited: file descriptors that the process inherits.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        *,
        port: int = 0,
        cpus: frozenset[int] = frozenset(),
        inherited: Sequence[int] = (),
    ) -> None:
        rotate(log)
        program = sys.executable if command[0] in {"python", "python3"} else command[0]
        bound = ",".join(str(cpu) for cpu in sorted(cpus))
        enter = [sys.executable, "-I", "-S", str(_ENTRY), str(os.getpid()), bound]
        with _opened(log) as output:
            self._child = subprocess.Popen(  # noqa: S603 - the rendered command
                [*enter, program, *command[1:]],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=tuple(inherited),
            )
        self.port = port
        self.started = time.monotonic()

    @property
    def pid(self) -> int:
        """The process ID, which is also the session ID."""
        return self._child.pid

    def poll(self) -> int | None:
        """Return the exit code as a shell would (128 + signal), or None while it runs.

        Processes left in its session are killed with it, as in a container.
        """
        if self._child.returncode is None:
            # Checked before reaping: until then the PID cannot be reused.
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self._kill_session()
            self._child.wait(timeout=30)
        code = self._child.returncode
        return code if code >= 0 else 128 - code

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it still runs."""
        if self.poll() is None:
            self._child.send_signal(number)

    def kill(self) -> int:
        """Kill the whole session at once and return the exit code.

        Raises subprocess.TimeoutExpired if it has not ended after 30 s.
        """
        if self._child.returncode is None:
            self._kill_session()
            self._child.wait(timeout=30)
        return self.poll() or 0

    def _kill_session(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _opened(log: Path) -> IO[bytes]:
    """Open the log; if the disk is too full to create it, the container's output is discarded."""
    try:
        return log.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


def rotate(log: Path) -> None:
    """Rename an existing log to the first free `<name>.<n>.log`, n >= 1; the newest has the plain name."""
    if not log.exists():
        return
    number = 1
    while (older := log.with_suffix(f".{number}.log")).exists():
        number += 1
    log.rename(older)


def free_port() -> int:
    """Return a currently unused port on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
