"""One container of a running pod: its process, its probes, its restarts."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import Future

from asysi.contract.runtime import Exit
from asysi_operator.local import backoff
from asysi_operator.local.containers import LocalContainer
from asysi_operator.local.events import Event
from asysi_operator.local.probes import ProbeVerdict, watch
from asysi_operator.local.probing import ProbeClient
from asysi_operator.local.process import Process

Launch = Callable[[LocalContainer], Process]
Tell = Callable[[str, Event, int | None, str | None], None]
"""Container, event, exit code, reason."""


class ContainerRunner:
    """A container and its successive processes.

    Args:
        container: the rendered container.
        launch: starts its process.
        asker: runs its probes.
        tell: records events.
        grace: the pod's seconds between SIGTERM and SIGKILL.

    Attributes:
        code: exit code of the last process, None while one runs or before the first.
        restarts: number of processes after the first.
        crashes: consecutive failures after a short uptime.
        has_started: whether the startup probe has ever passed.
    """

    def __init__(
        self, container: LocalContainer, launch: Launch, asker: ProbeClient, tell: Tell, grace: float
    ) -> None:
        self.container, self.name = container, container.name
        self._launch, self._asker, self._tell, self._grace = launch, asker, tell, grace
        self._process: Process | None = None
        self._watch = watch(None, None, 0.0)
        self._question: Future[bool] | None = None
        self._kill_at: float | None = None
        self._again_at: float | None = None
        self._reason: str | None = None
        self.code: int | None = None
        self.restarts, self.crashes, self.has_started = 0, 0, False

    @property
    def running(self) -> bool:
        """Whether a process is running."""
        return self._process is not None and self.code is None

    @property
    def ended(self) -> bool:
        """Whether the last process has ended and no restart is scheduled."""
        return self.code is not None and self._again_at is None

    @property
    def port(self) -> int:
        """Port of the running process, 0 if none is running."""
        return self._process.port if self._process is not None and self.running else 0

    @property
    def state(self) -> str:
        """The state in one or two words, for display."""
        if self._again_at is not None:
            return "waits to restart"
        if self._process is None:
            return "waits"
        if self.code is not None:
            return "done" if self.code == Exit.OK else f"exit {self.code}"
        return "runs" if self._watch.started else "starts"

    def start(self) -> None:
        """Start the process."""
        again = self._process is not None
        self._process = self._launch(self.container)
        self._watch = watch(self.container.startup, self.container.liveness, time.monotonic())
        self._question = self._kill_at = self._again_at = self.code = self._reason = None
        self.has_started |= self._watch.started
        self.restarts += again
        self._tell(self.name, "restarted" if again else "started", None, None)

    def tick(self, *, restarting: bool) -> None:
        """Reap, probe, kill what is overdue, and restart if due and `restarting`."""
        now = time.monotonic()
        if self._again_at is not None:
            if not restarting:
                self._again_at = None
            elif now >= self._again_at:
                self.start()
        elif self.running and not self._reap(now, restarting=restarting):
            self._judge(now)
            if self._kill_at is not None and now >= self._kill_at:
                self.kill(self._reason or "did not end within its grace period")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if one runs."""
        if self._process is not None and self.running:
            self._process.send(number)

    def stop(self, grace: float, reason: str) -> None:
        """Send SIGTERM; SIGKILL follows after `grace` seconds."""
        if self.running and self._kill_at is None:
            self.send(signal.SIGTERM)
            self._kill_at, self._reason = time.monotonic() + grace, reason

    def kill(self, reason: str) -> None:
        """Kill the process at once, if one runs; it counts as a crash."""
        if self._process is not None and self.running:
            self._tell(self.name, "killed", None, reason)
            self._process.kill()

    def _reap(self, now: float, *, restarting: bool) -> bool:
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return False
        self.code, self._question = code, None
        self._tell(self.name, "exited", code, self._reason)
        if code == Exit.OK:
            self.has_started, self.crashes = True, 0
        elif self.container.sidecar and restarting:
            lived = now - self._process.started
            self.crashes = backoff.crashes_after(self.crashes, lived)
            self._again_at = now + backoff.delay(self.crashes)
        return True

    def _judge(self, now: float) -> None:
        if self._question is None:
            probe = self._watch.asks(now)
            if probe is not None and self._kill_at is None and self._process is not None:
                self._question = self._asker.is_well(self._process.port, probe.path, probe.timeout)
            return
        if not self._question.done():
            return
        probe, good = self._watch.probe, self._question.result()
        self._question = None
        self._watch, verdict = self._watch.answered(good, now)
        self.has_started |= verdict is ProbeVerdict.STARTED
        if verdict is ProbeVerdict.FAILED and probe is not None:
            self.stop(
                self._grace if probe.grace is None else probe.grace,
                f"{probe.path} failed {probe.threshold} times",
            )
