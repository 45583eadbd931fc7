"""The Job: runs one pod after another until one completes, retries are pointless, or the user stops it."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from asysi.contract import runtime
from asysi.contract.errors import NO_ROOM
from asysi.contract.identity import ended_early
from asysi.contract.runtime import Exit
from asysi_operator.local.bus_server import BusServer, NoServer, QueueServer, Tell
from asysi_operator.local.containers import LocalContainer, PodSpec, read_pod
from asysi_operator.local.environment import Setting, environment
from asysi_operator.local.events import Event, Events
from asysi_operator.local.pod import Deadline, FaultInjection, Pod, PodTerminated
from asysi_operator.local.policy import Judgement, judge
from asysi_operator.local.probing import ProbeClient
from asysi_operator.local.process import Process, free_port
from asysi_operator.local.run_directories import RunDirectories
from asysi_operator.local.signals import UserSignals
from asysi_operator.local.verdict import read_verdict
from asysi_operator.manifests.job import START_DEADLINE
from asysi_operator.manifests.kinds import Manifest


@dataclass(frozen=True)
class RunOutcome:
    """How the Job ended.

    Attributes:
        code: exit code of the run.
        attempts: number of pods started.
        restarts: in-place restarts by container, summed over all attempts; without containers that had none.
        reason: why the Job did not end normally, in sentences; None if it did.
    """

    code: Exit
    attempts: int
    restarts: Mapping[str, int]
    reason: str | None


class Attempts:
    """Runs a rendered Job.

    Args:
        job: the rendered Job.
        directories: directories of the run.
        output: results directory.
        events: event log.
        signals: signals received from the user.
        on_tick: called at every tick with the attempt number and its pod.
        asker: runs the probes.
        cpus: CPUs of each container, by name; containers not listed may use all.
        fault: fault to inject once, if any.
        first: number of the first attempt.
        when_full: whether the model run stops or continues when the disk is full: `stop` or `continue`.
        queues: whether the containers need a queue server.
    """

    def __init__(
        self,
        job: Manifest,
        *,
        directories: RunDirectories,
        output: Path,
        events: Events,
        signals: UserSignals,
        on_tick: Callable[[int, Pod], None],
        asker: ProbeClient,
        cpus: Mapping[str, frozenset[int]],
        fault: FaultInjection | None = None,
        first: int = 0,
        when_full: str = "stop",
        queues: bool = False,
    ) -> None:
        self._queues = queues
        self._job, self._spec = job, read_pod(job["spec"]["template"])
        self._directories, self._output, self._events, self._signals = directories, output, events, signals
        self._on_tick, self._asker, self._cpus, self._fault = on_tick, asker, cpus, fault
        self._first = first
        self._when_full = when_full
        self._restarts: dict[str, int] = {}

    def run(self) -> RunOutcome:
        """Start pods until one completes the Job or a retry is pointless."""
        limit, began = int(self._job["spec"]["backoffLimit"]), time.monotonic()
        attempt = 0
        while True:
            with self._server(attempt) as server:
                pod = self._pod(attempt, began, server)
                leave = pod.run()
            self._count(pod)
            own = leave is None or leave.code is None
            again = (
                own
                and not any(self._full(name) for name in pod.codes)
                and not self._signals.clean_end
                and self._judge(pod) is Judgement.RETRY
            )
            if not again or attempt >= limit:
                return self._outcome(pod, leave, attempt + 1)
            if pod.struck:
                self._fault = None
            attempt += 1
            self._directories.fresh()

    def _server(self, attempt: int) -> BusServer:
        if not self._queues:
            return NoServer()
        directories = self._directories
        return QueueServer(
            directories.rings, self._output, os.environ, directories.lock, self._teller(attempt)
        )

    def _teller(self, attempt: int) -> Tell:
        def tell(container: str, event: Event, code: int | None, reason: str | None) -> None:
            self._events.write(container, event, attempt=self._first + attempt, code=code, reason=reason)

        return tell

    def _pod(self, attempt: int, began: float, server: BusServer) -> Pod:
        def launch(container: LocalContainer) -> Process:
            return self._launch(container, attempt)

        return Pod(
            self._spec,
            launch,
            signals=self._signals,
            tell=self._teller(attempt),
            on_tick=lambda pod: self._on_tick(self._first + attempt, pod),
            asker=self._asker,
            deadlines=self._deadlines(began),
            fault=self._fault,
            full=self._full,
            when_full=self._when_full,
            lost=server.lost,
        )

    def _launch(self, container: LocalContainer, attempt: int) -> Process:
        port = free_port() if container.serves else 0
        setting = Setting(
            self._directories.mounts(self._output),
            self._first + attempt,
            port,
            self._directories.termination(container.name),
        )
        return Process(
            container.command,
            environment(container, setting, os.environ),
            self._output / runtime.LOG_FOLDER / f"{container.name}.log",
            port=port,
            cpus=self._cpus.get(container.name, frozenset()),
            inherited=[self._directories.lock],
        )

    def _deadlines(self, began: float) -> list[Deadline]:
        deadlines, now = [], time.monotonic()
        if whole := self._job["spec"].get("activeDeadlineSeconds"):
            reason = f"the run exceeded its deadline of {whole} s (activeDeadlineSeconds)"
            deadlines.append(Deadline(began + whole, reason))
        if start := self._job["metadata"].get("annotations", {}).get(START_DEADLINE):
            reason = f"the model did not start within {start} s (startDeadlineSeconds)"
            deadlines.append(Deadline(now + float(start), reason, while_starting=True))
        return deadlines

    def _judge(self, pod: Pod) -> Judgement:
        mains = [container.name for container in self._spec.mains]
        return judge(pod.codes, mains, self._job["spec"]["podFailurePolicy"]["rules"])

    def _count(self, pod: Pod) -> None:
        for member in pod.members:
            if member.restarts:
                self._restarts[member.name] = self._restarts.get(member.name, 0) + member.restarts

    def _outcome(self, pod: Pod, leave: PodTerminated | None, attempts: int) -> RunOutcome:
        code, reason = verdict(self._spec, pod.codes, leave, interrupted=pod.interrupted)
        if code == Exit.INTERRUPTED and leave is None and not ended_early(self._output):
            reason = "all text had already been read when you interrupted it: the run is complete"
        if code == Exit.FAILED and (full := next(filter(None, map(self._full, pod.codes)), None)):
            return RunOutcome(code, attempts, dict(self._restarts), f"{full} with --resume")
        if leave is None and (unsound := self._unsound(pod.codes)):
            return RunOutcome(code, attempts, dict(self._restarts), unsound)
        words = self._last_words(pod.codes, code) if code in {Exit.FAILED, Exit.CONFIG} else []
        if leave is not None and leave.code is None and leave.reason != reason:
            words = [leave.reason]  # what the containers said follows from it
        if reason and not (code == Exit.CONFIG and words):  # the refusing container states the reason
            words = [reason, *words]
        return RunOutcome(code, attempts, dict(self._restarts), "\n".join(words) or None)

    def _unsound(self, codes: Mapping[str, int]) -> str | None:
        """Return the verdict sentence if a bad verdict is the only failure; the summary has the details."""
        if [name for name, code in codes.items() if code not in _FINE] != [runtime.Container.FINISH]:
            return None
        found = read_verdict(self._output / runtime.VERDICT_FILE)
        return found.sentence or None if found is not None and found.level == "fail" else None

    def _last_words(self, codes: Mapping[str, int], verdict: Exit) -> list[str]:
        """Return the termination messages of the failed containers, or the last lines of their logs.

        If one refuses its configuration, the messages of the others are consequences and are omitted.
        """
        failed = [name for name, code in codes.items() if code not in _FINE]
        if verdict == Exit.CONFIG:
            failed = [name for name in failed if codes[name] == Exit.CONFIG]
        said = {name: self._termination(name) for name in failed}
        logs = self._output / runtime.LOG_FOLDER
        return [
            f"{name}: {words}" for name in failed if (words := said[name] or log_end(logs / f"{name}.log"))
        ]

    def _full(self, name: str) -> str | None:
        words = self._termination(name)
        return words if words.startswith(NO_ROOM) else None

    def _termination(self, name: str) -> str:
        path = self._directories.termination(name)
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return in_sentences(file.read(_WORDS).decode(errors="replace").strip())


_FINE = frozenset({Exit.OK, Exit.TERMINATED, Exit.KILLED})
"""Exit codes of containers that ended as requested."""


_WORDS = 4096
"""Bytes of a termination message that count, as for the kubelet."""
_LOG_END = 16_384
"""Bytes of a log that are read for its last lines."""


def log_end(log: Path) -> str:
    """Return the last lines of a log, eight at most, "" where there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_END))
        lines = file.read(_LOG_END).decode(errors="replace").splitlines()
    return "\n".join(lines[-8:])


def in_sentences(message: str) -> str:
    """Return a readable termination message; for a JSON summary, the problems it lists."""
    try:
        summary = json.loads(message)
    except ValueError:
        return message
    problems = summary.get("problems") if isinstance(summary, dict) else None
    return "\n".join(map(str, problems)) if isinstance(problems, list) else message


def verdict(
    spec: PodSpec, codes: Mapping[str, int], leave: PodTerminated | None, *, interrupted: bool
) -> tuple[Exit, str | None]:
    """Return the exit code of a run whose last pod ended with `codes`, and the reason if it failed."""
    if leave is not None and leave.code is not None:
        return leave.code, leave.reason
    failed = {
        name: codes[name] for name in (c.name for c in spec.containers if not c.sidecar) if codes.get(name)
    }
    if not failed:
        return (
            (Exit.INTERRUPTED, "stopped early at your request: continue it with --resume")
            if interrupted
            else (Exit.OK, None)
        )
    reason = ", ".join(f"{name} ended with exit code {code}" for name, code in failed.items())
    return (Exit.CONFIG if Exit.CONFIG in failed.values() else Exit.FAILED), reason
