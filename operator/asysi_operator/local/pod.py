"""The pod as processes: start order, in-place restarts, the end in band, and abnormal ends."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asysi.contract import runtime
from asysi.contract.runtime import Exit
from asysi_operator.local import backoff
from asysi_operator.local.containers import PodSpec
from asysi_operator.local.member import ContainerRunner, Launch, Tell
from asysi_operator.local.probing import ProbeClient
from asysi_operator.local.signals import UserSignals

TICK = 0.05
"""Seconds between two ticks."""
INTERRUPT_EVERY = 1.0
"""Seconds after which SIGINT is sent to the host again, in case it had no handler yet."""
PATIENCE_AFTER_BAD_CONFIG = 10.0
"""Seconds that the other containers have to end in band after the host has refused its configuration: it may
have exited before there was a stream to end."""


class PodTerminated(Exception):  # noqa: N818 - not an error: the pod is to be deleted
    """The pod must end before its main containers do.

    Attributes:
        code: exit code of the run; None derives it from the containers' exit codes.
        reason: the reason as a sentence.
    """

    def __init__(self, code: Exit | None, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True)
class Deadline:
    """A time after which the pod is deleted."""

    at: float
    """Seconds of time.monotonic()."""
    reason: str
    code: Exit | None = Exit.FAILED
    """Exit code of the run; None derives it from the containers' exit codes."""
    while_starting: bool = False
    """Whether it applies only until the main containers run."""


@dataclass(frozen=True)
class FaultInjection:
    """A container that is killed once, to show that it recovers.

    Attributes:
        name: the container.
        due: given the seconds that the main containers have run, returns whether to inject the fault.
    """

    name: str
    due: Callable[[float], bool]


class Pod:
    """One attempt.

    Args:
        spec: the pod.
        launch: starts a container's process.
        signals: signals received from the user.
        tell: records events.
        on_tick: called at every tick, for display and monitoring.
        asker: runs the probes.
        deadlines: when to delete the pod.
        fault: fault to inject once, if any.
        full: returns the termination message of a container that ran out of disk space, None for others.
        when_full: `stop` then deletes the pod, `continue` lets the model run on.
        lost: returns why the attempt cannot go on, once that is so.

    Attributes:
        members: the containers in start order.
        struck: whether the fault has been injected.
    """

    def __init__(
        self,
        spec: PodSpec,
        launch: Launch,
        *,
        signals: UserSignals,
        tell: Tell,
        on_tick: Callable[["Pod"], None],
        asker: ProbeClient,
        deadlines: Sequence[Deadline] = (),
        fault: FaultInjection | None = None,
        full: Callable[[str], str | None] = lambda _name: None,
        when_full: str = "stop",
        lost: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._lost = lost
        self._full, self._when_full = full, when_full
        self._grace, self._signals, self._on_tick = spec.grace, signals, on_tick
        self._deadlines, self._fault, self.struck = list(deadlines), fault, False
        self.members = [
            ContainerRunner(container, launch, asker, tell, spec.grace) for container in spec.containers
        ]
        self._inits = self.members[: len(spec.inits)]
        self._mains = self.members[len(spec.inits) :]
        self._restarting = True
        self._began: float | None = None
        self._interrupted_at = 0.0

    @property
    def codes(self) -> dict[str, int]:
        """Exit codes of the containers that have ended."""
        return {member.name: member.code for member in self.members if member.code is not None}

    @property
    def interrupted(self) -> bool:
        """Whether the host has been asked to stop early."""
        return self._interrupted_at > 0

    @property
    def _model_is_through(self) -> bool:
        host = self.member(runtime.Container.HOST)
        return host is not None and host.ended

    def member(self, name: str) -> ContainerRunner | None:
        """Return the container with that name, or None."""
        return next((member for member in self.members if member.name == name), None)

    def run(self) -> PodTerminated | None:
        """Run to the end and leave no process behind; return the reason if the pod had to be deleted."""
        try:
            return self._lived()
        finally:
            for member in self.members:
                member.kill("the run is over")
                member.tick(restarting=False)

    def _lived(self) -> PodTerminated | None:
        try:
            if self._initialise():
                self._began = time.monotonic()
                for member in self._mains:
                    member.start()
                self._until(lambda: all(member.ended for member in self._mains))
            self._stop(self._grace)
        except PodTerminated as leave:
            if not self._signals.kill:
                self._delete()
            return leave
        return None

    def _initialise(self) -> bool:
        """Run prepare, then start the sidecars in parallel; False if prepare failed.

        No sidecar has work before the host runs, so they need not wait for each other.
        """
        for member in self._inits:
            if not member.container.sidecar:
                member.start()
                self._until(lambda member=member: member.ended)  # type: ignore[misc]
                if member.code != Exit.OK:
                    return False
        sidecars = [member for member in self._inits if member.container.sidecar]
        for member in sidecars:
            member.start()
        self._until(lambda: all(member.has_started for member in sidecars))
        return True

    def _until(self, done: Callable[[], bool]) -> None:
        """Tick until `done`.

        Raises:
            PodTerminated: the user, a deadline or a permanently failing sidecar ends the pod.
        """
        while True:
            self._tick()
            if done():
                return
            self._heed()
            time.sleep(TICK)

    def _tick(self) -> None:
        for member in self.members:
            member.tick(restarting=self._restarting)
        self._strike_once()
        self._on_tick(self)

    def _heed(self) -> None:
        now = time.monotonic()
        if self._signals.kill:
            raise PodTerminated(Exit.INTERRUPTED, "killed at your request")
        if self._signals.terminated:
            raise PodTerminated(Exit.TERMINATED, "terminated: the workers are writing their checkpoints")
        if self._signals.clean_end:
            self._interrupt(now)
        if lost := self._lost():
            raise PodTerminated(None, lost)
        for member in self._inits:
            self._despair_of(member)
        self._give_up_after_host(now)
        for deadline in self._deadlines:
            if now >= deadline.at and not (deadline.while_starting and self._began is not None):
                raise PodTerminated(deadline.code, deadline.reason)

    def _interrupt(self, now: float) -> None:
        if self._began is None:
            raise PodTerminated(Exit.INTERRUPTED, "interrupted before the model ran")
        if now - self._interrupted_at >= INTERRUPT_EVERY:
            self._interrupted_at = now
            host = self.member(runtime.Container.HOST)
            if host is not None:
                host.send(signal.SIGINT)
            elif pipeline := self.member(runtime.Container.PIPELINE):
                pipeline.send(signal.SIGTERM)  # a second SIGINT would kill it

    def _despair_of(self, member: ContainerRunner) -> None:
        if not member.container.sidecar:
            return
        if member.code == Exit.CONFIG:
            raise PodTerminated(Exit.CONFIG, f"{member.name} refuses its configuration")
        if member.crashes and (words := self._full(member.name)):
            if self._when_full == "stop" or self._began is None:
                raise PodTerminated(Exit.FAILED, words)
            if self._model_is_through and not member.running:
                raise PodTerminated(Exit.FAILED, words)  # finish would wait for it forever
            return
        if member.crashes >= backoff.MAX_CRASHES:
            raise PodTerminated(
                Exit.FAILED, f"{member.name} has crashed {member.crashes} times in a row (exit {member.code})"
            )

    def _give_up_after_host(self, now: float) -> None:
        """Set a deadline for the others once the host has failed: without a stream, nothing ends them."""
        host = self.member(runtime.Container.HOST)
        if (
            host is None
            or not host.ended
            or host.code == Exit.OK
            or any(d.reason == _AFTER_HOST for d in self._deadlines)
        ):
            return
        patience = min(self._grace, PATIENCE_AFTER_BAD_CONFIG) if host.code == Exit.CONFIG else self._grace
        self._deadlines.append(Deadline(now + patience, _AFTER_HOST, code=None))

    def _strike_once(self) -> None:
        fault = self._fault
        if fault is None or self.struck or self._began is None or not self._restarting:
            return
        member = self.member(fault.name)
        if member is not None and member.running and fault.due(time.monotonic() - self._began):
            self.struck = True
            member.kill("on purpose, once, to show that it recovers")

    def _delete(self) -> None:
        """End like a deleted pod: main containers, then sidecars in reverse order, in one grace period."""
        self._restarting = False
        end = time.monotonic() + self._grace
        first = [member for member in self.members if not member.container.sidecar]
        for member in first:
            member.stop(self._grace, "the pod is deleted")
        self._drain(first)
        self._stop(end - time.monotonic())

    def _stop(self, grace: float) -> None:
        """End the sidecars from last to first."""
        self._restarting = False
        end = time.monotonic() + grace
        for member in reversed(self._inits):
            member.stop(max(0.0, end - time.monotonic()), "the pod has ended")
            self._drain([member])

    def _drain(self, members: Sequence[ContainerRunner]) -> None:
        while any(member.running for member in members) and not self._signals.kill:
            self._tick()
            time.sleep(TICK)


_AFTER_HOST = "the host failed, and the other containers did not end in time"
