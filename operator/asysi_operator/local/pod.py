"""The pod as processes: order of starting, restarts in place, the end in band, and the ends that are not."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asysi.contract import runtime
from asysi.contract.runtime import Exit
from asysi_operator.local import backoff
from asysi_operator.local.containers import PodSpec
from asysi_operator.local.member import Launch, Member, Tell
from asysi_operator.local.probing import Asker
from asysi_operator.local.signals import UserSignals

TICK = 0.05
"""Seconds between two looks at everything."""
INTERRUPT_EVERY = 1.0
"""Seconds after which the host hears SIGINT again: it may not have listened yet."""
PATIENCE_AFTER_BAD_CONFIG = 10.0
"""Seconds that the others have for an end in band when the host has refused its configuration: it may have
left before there was a stream that could end."""


class PodTerminated(Exception):  # noqa: N818 - no error: the pod is to be deleted
    """The pod ends before its main containers do.

    Attributes:
        code: exit code of the run; None leaves it to the containers' exit codes.
        reason: a sentence for people.
    """

    def __init__(self, code: Exit | None, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True)
class Deadline:
    """A moment after which the pod is deleted."""

    at: float
    """Seconds of time.monotonic()."""
    reason: str
    code: Exit | None = Exit.FAILED
    """Exit code of the run; None leaves it to the containers' exit codes."""
    while_starting: bool = False
    """Whether it counts only until the main containers run."""


@dataclass(frozen=True)
class FaultInjection:
    """A container that is killed once, to show that it recovers.

    Attributes:
        name: the container.
        due: told how many seconds the main containers have run, says whether it is time.
    """

    name: str
    due: Callable[[float], bool]


class Pod:
    """One attempt.

    Args:
        spec: the pod.
        launch: starts a container's process.
        signals: what the user has asked for meanwhile.
        tell: takes note of events.
        look: called at every tick, for display and watching.
        asker: asks the probes.
        deadlines: when the pod is deleted at the latest.
        fault: whom to kill once, if anybody.
        full: returns the last words of a container that found no room for its results, None of others.
        when_full: `stop` deletes the pod then, `continue` lets the model read on.

    Attributes:
        members: the containers in the order in which they start.
        struck: whether the fault has fallen.
    """

    def __init__(
        self,
        spec: PodSpec,
        launch: Launch,
        *,
        signals: UserSignals,
        tell: Tell,
        look: Callable[["Pod"], None],
        asker: Asker,
        deadlines: Sequence[Deadline] = (),
        fault: FaultInjection | None = None,
        full: Callable[[str], str | None] = lambda _name: None,
        when_full: str = "stop",
    ) -> None:
        self._full, self._when_full = full, when_full
        self._grace, self._signals, self._look = spec.grace, signals, look
        self._deadlines, self._fault, self.struck = list(deadlines), fault, False
        self.members = [Member(container, launch, asker, tell, spec.grace) for container in spec.containers]
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
        """Whether the host has been asked for an early end."""
        return self._interrupted_at > 0

    @property
    def _model_is_through(self) -> bool:
        host = self.member(runtime.Container.HOST)
        return host is not None and host.ended

    def member(self, name: str) -> Member | None:
        """Return the container of that name."""
        return next((member for member in self.members if member.name == name), None)

    def run(self) -> PodTerminated | None:
        """Run to the end and leave no process behind; return why, when the pod had to be deleted."""
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
        """Run prepare, then start the sidecars side by side; False when prepare failed.

        None of them has anything to do before the host runs, so that they need not wait for each other.
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
        """Look at everything again and again until `done`.

        Raises:
            PodTerminated: the user, a deadline or a hopeless sidecar ends the pod.
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
        self._look(self)

    def _heed(self) -> None:
        now = time.monotonic()
        if self._signals.kill:
            raise PodTerminated(Exit.INTERRUPTED, "killed at your request")
        if self._signals.terminated:
            raise PodTerminated(Exit.TERMINATED, "terminated: the workers write their checkpoints")
        if self._signals.clean_end:
            self._interrupt(now)
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

    def _despair_of(self, member: Member) -> None:
        if not member.container.sidecar:
            return
        if member.code == Exit.CONFIG:
            raise PodTerminated(Exit.CONFIG, f"{member.name} refuses its configuration")
        if member.crashes and (words := self._full(member.name)):
            if self._when_full == "stop" or self._began is None:
                raise PodTerminated(Exit.FAILED, words)
            if self._model_is_through and not member.running:
                raise PodTerminated(Exit.FAILED, words)  # finish would wait for it in vain
            return
        if member.crashes >= backoff.PATIENCE:
            raise PodTerminated(
                Exit.FAILED, f"{member.name} has crashed {member.crashes} times in a row (exit {member.code})"
            )

    def _give_up_after_host(self, now: float) -> None:
        """Set the others a deadline once the host has failed: without a stream, nothing else tells them."""
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
        """End as a deleted pod does: main containers, then the sidecars from last to first, in one grace."""
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

    def _drain(self, members: Sequence[Member]) -> None:
        while any(member.running for member in members) and not self._signals.kill:
            self._tick()
            time.sleep(TICK)


_AFTER_HOST = "the host has failed, and the others did not end in their time"
