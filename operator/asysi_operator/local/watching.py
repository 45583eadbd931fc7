"""Monitors the running pod: polls finish for its status and displays it."""

import time
from collections.abc import Callable
from concurrent.futures import Future

from asysi.contract.runtime import Container
from asysi.contract.telemetry import RunStatus
from asysi_operator.local.display import Display
from asysi_operator.local.pod import Pod
from asysi_operator.local.probing import ProbeClient
from asysi_operator.local.signals import UserSignals
from asysi_operator.local.view import STARTING, ProcessView, View

ASK_EVERY = 0.5
"""Seconds between status requests to finish."""


class StatusMonitor:
    """Keeps the latest status and displays it.

    Args:
        name: name of the experiment.
        display: the display.
        asker: HTTP client for finish.
        signals: signals received from the user.
        fault: container that is killed once, if any.
        rows: returns the pipeline's progress.

    Attributes:
        status: the latest status of finish in the current attempt.
    """

    def __init__(
        self,
        name: str,
        display: Display,
        asker: ProbeClient,
        signals: UserSignals,
        fault: str | None,
        *,
        rows: Callable[[], str] = str,
    ) -> None:
        self._name, self._display, self._asker, self._signals, self._fault = (
            name,
            display,
            asker,
            signals,
            fault,
        )
        self._rows, self._rows_at, self._made = rows, 0.0, ""
        self._began = time.monotonic()
        self._answer: Future[RunStatus | None] | None = None
        self._asked_at, self._attempt = 0.0, 0
        self.status = STARTING

    def on_tick(self, attempt: int, pod: Pod) -> None:
        """Request the status if due, take a response if there is one, and update the display."""
        if attempt != self._attempt:
            self._attempt, self.status, self._answer = attempt, STARTING, None
        self._ask(pod)
        self._display.show(self._view(attempt, pod))

    def _ask(self, pod: Pod) -> None:
        now, finish = time.monotonic(), pod.member(Container.FINISH)
        if self._answer is not None and self._answer.done():
            self.status = self._answer.result() or self.status
            self._answer = None
        if self._answer is None and finish is not None and finish.port and now - self._asked_at >= ASK_EVERY:
            self._answer, self._asked_at = self._asker.status(finish.port, 1.0), now

    def _view(self, attempt: int, pod: Pod) -> View:
        return View(
            name=self._name,
            attempt=attempt,
            seconds=time.monotonic() - self._began,
            processes=tuple(
                ProcessView(member.name, member.state, member.restarts) for member in pod.members
            ),
            status=self.status,
            rows=self._pipeline(pod),
            notes=tuple(self._notes(pod)),
        )

    def _pipeline(self, pod: Pod) -> str:
        now = time.monotonic()
        if pod.member(Container.PIPELINE) is None:
            return ""
        if now - self._rows_at >= ASK_EVERY:
            self._made, self._rows_at = self._rows(), now
        return self._made

    def _notes(self, pod: Pod) -> list[str]:
        notes = []
        if self._fault is not None:
            done = "was killed on purpose, to show that it recovers"
            notes.append(
                f"{self._fault} {done if pod.struck else 'will be killed once, to show that it recovers'}"
            )
        if self._signals.clean_end:
            notes.append("stopping early: the model stops, files are written; Ctrl-C again to kill")
        elif self._signals.terminated:
            notes.append("terminating: the workers are writing their checkpoints")
        return notes
