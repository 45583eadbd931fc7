"""Failures in readable form, derived from waiting, terminated and unschedulable states. Pure."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from asysi.contract.runtime import Container, Exit
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.observation import (
    Observed,
    attempt_of,
    condition,
    containers,
    is_terminating,
    node_unreachable,
    owned,
    parse_time,
    state_of,
    true_condition,
)

QUIET_WAITS = frozenset({"ContainerCreating", "PodInitializing"})
"""Reasons of a waiting container that are not failures in themselves."""
_SAME = {"ErrImagePull": "ImagePullBackOff", "ErrImageNeverPull": "ImagePullBackOff"}
"""The kubelet alternates between these while nothing changes."""
_SIGNALS = frozenset({137, 143})
_ODD_SECONDS = 3.0
"""Seconds without progress after which events are read."""
_PROBE = re.compile(r"failed (liveness|startup) probe")
_NODE_TROUBLE = frozenset({"FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"})
_MAINS = ("prepare", "host", "finish")
DISRUPTIONS = frozenset(
    {
        *("EvictionByEvictionAPI", "PreemptionByScheduler", "DeletionByTaintManager", "DeletionByPodGC"),
        *("TerminationByKubelet", "Evicted"),
    }
)
"""Reasons of an evicted pod: a drain, preemption, or loss of its node. The pod has not failed, so these do
not count as restarts."""
MESSAGE_LIMIT = 4096


@dataclass(frozen=True)
class Failure:
    """As `status.lastFailure`."""

    reason: str
    message: str
    container: str | None = None
    exit_code: int | None = None
    attempt: int | None = None
    time: str | None = None
    """None means ongoing: the time of the status applies, or that of the first report."""

    def as_status(self, now: str, recorded: Mapping[str, object]) -> Manifest:
        """Return the status entry. An ongoing failure keeps its recorded time and message."""
        found = {
            "container": self.container,
            "reason": self.reason,
            "message": self.message[:MESSAGE_LIMIT],
            "exitCode": self.exit_code,
            "attempt": self.attempt,
            "time": self.time,
        }
        entry = {key: value for key, value in found.items() if value is not None}
        same = all(
            recorded.get(key) == entry.get(key) for key in ("container", "reason", "exitCode", "attempt")
        )
        if same and self.time is None:
            return dict(recorded)
        return {"time": now} | entry


def last_failure(observed: Observed) -> Failure | None:
    """Return the most recent failure, or None if none is known."""
    pods = observed.attempts
    if (going := _of_claims(observed)) is not None:
        return going
    if observed.suffix:
        return _of_shards(observed)
    found = [failure for pod in pods[-1:] for failure in _of_pod(pod, observed)]
    ongoing = next((failure for failure in found if failure.time is None), None)
    past = [failure for failure in found if failure.time is not None]
    past += [failure for pod in pods[:-1] for failure in _of_pod(pod, observed) if failure.time is not None]
    job = _of_job(observed)
    if job is not None and (job.reason == "DeadlineExceeded" or not (past or ongoing)):
        return job
    return ongoing or max(past, key=lambda failure: failure.time or "", default=None)


def disruptions(observed: Observed) -> list[Failure]:
    """Return why pods of the Job, deleted since the last reconcile, were evicted; oldest first."""
    job = observed.job
    own = [pod for pod in observed.put_out if job and owned(pod, job["metadata"]["uid"])]
    return [failure for pod in own for failure in _of_pod(pod, observed) if failure.time is not None]


def _of_claims(observed: Observed) -> Failure | None:
    """Report a claim that is being deleted while the experiment still runs."""
    if observed.job is None or finished(observed.job):
        return None
    for claim in observed.claims:
        if is_terminating(claim):
            name, since = claim["metadata"]["name"], claim["metadata"]["deletionTimestamp"]
            said = f"the claim {name} is being deleted: its data is removed as soon as no pod uses it"
            return Failure("ClaimTerminating", said, time=since)
    return None


def _of_shards(observed: Observed) -> Failure | None:
    """Return the most recent failure of the pipeline's pods, which run in parallel, naming the pod."""
    found = []
    for pod in observed.attempts:
        uid = pod["metadata"]["uid"]
        own = [event for event in observed.events if (event.get("involvedObject") or {}).get("uid") == uid]
        name = pod["metadata"]["name"]
        found += [
            replace(failure, message=f"{name}: {failure.message}")
            for failure in _of_pod(pod, replace(observed, events=own))
        ]
    # Shards that wait for capacity while others run have not failed.
    busy = any(
        true_condition(pod, "PodScheduled") and state_of(pod, Container.PIPELINE)[0] != "terminated"
        for pod in observed.attempts
    )
    ongoing = [one for one in found if one.time is None and not (busy and one.container is None)]
    past = [one for one in found if one.time is not None]
    job = _of_job(observed)
    if job is not None and (job.reason == "DeadlineExceeded" or not (past or ongoing)):
        return job
    return next(iter(ongoing), None) or max(past, key=lambda failure: failure.time or "", default=None)


def refusal(observed: Observed) -> Failure | None:
    """Return the failure of a sidecar that refused its configuration (exit code 2).

    No podFailurePolicy rule sees it, because a sidecar is restarted whatever its exit code.
    """
    pod = observed.pod
    if pod is None or observed.suffix or is_terminating(pod):
        return None
    for name, status in containers(pod).items():
        if name not in _MAINS:
            for detail in _terminations(status):
                if _code(detail) == Exit.CONFIG:
                    return _terminated(name, detail, attempt_of(pod), observed.events)
    return None


@dataclass(frozen=True)
class Oddity:
    """A state that only events explain."""

    uid: str
    """UID of the object that the events are about."""
    what: str
    """What is odd; distinguishes one oddity from the next."""
    due: float = 0.0
    """Seconds until it counts as odd: most waiting states resolve by themselves."""


def oddity(observed: Observed) -> Oddity | None:
    """Return the state that pod and Job status do not explain, if any."""
    job, pod = observed.job, observed.pod
    if pod is None:
        if job is None or job["spec"].get("suspend") or finished(job):
            return None
        return Oddity(str(job["metadata"]["uid"]), "no pod", _due(job, observed))
    if is_terminating(pod):
        return None
    uid = str(pod["metadata"]["uid"])
    killed = [
        f"{name} {detail.get('finishedAt')}"
        for name, status in containers(pod).items()
        for detail in _terminations(status)
        if _killed(detail)
    ]
    if killed:
        return Oddity(uid, ", ".join(killed))
    name, state = _next(pod)
    return Oddity(uid, f"{name} waits", _due(pod, observed)) if state.get("reason") in QUIET_WAITS else None


def finished(job: Manifest) -> Manifest | None:
    """Return the condition that ended a Job (Complete or Failed), or None."""
    return true_condition(job, "Complete") or true_condition(job, "Failed")


def _next(pod: Manifest) -> tuple[str, Manifest]:
    """Return the first container that has neither started nor succeeded, and its waiting state."""
    for name, status in containers(pod).items():
        kind, detail = state_of(pod, name)
        if not status.get("started") and not (kind == "terminated" and not _code(detail)):
            return name, detail if kind == "waiting" else {}
    return "", {}


def _of_pod(pod: Manifest, observed: Observed) -> Iterator[Failure]:
    attempt = attempt_of(pod)
    if node_unreachable(pod):
        node = pod["spec"].get("nodeName", "?")
        said = f"the node {node} is unreachable, and so is {pod['metadata']['name']} on it"
        yield Failure("NodeUnreachable", said, attempt=attempt)
    scheduled = condition(pod, "PodScheduled")
    if scheduled and scheduled["status"] == "False" and scheduled.get("reason") != "SchedulingGated":
        reason = str(scheduled.get("reason") or "Unschedulable")
        yield Failure(reason, scheduled.get("message", ""), attempt=attempt)
    phase = pod.get("status", {}).get("phase")
    if phase == "Failed" and (evicted := pod["status"].get("reason")):
        yield Failure(evicted, pod["status"].get("message", ""), attempt=attempt, time=_end_of(pod))
        return
    if put_out := true_condition(pod, "DisruptionTarget"):
        reason, when = str(put_out.get("reason") or "Disrupted"), str(put_out.get("lastTransitionTime"))
        yield Failure(reason, put_out.get("message", ""), attempt=attempt, time=when)
        return  # the containers' exit codes are a consequence
    yield from _of_containers(pod, attempt, observed.events)


def _of_containers(pod: Manifest, attempt: int | None, events: Sequence[Manifest]) -> Iterator[Failure]:
    statuses = containers(pod)
    ended = _ended_mains(statuses)
    lost = any(_code(state_of(pod, name)[1]) for name in ("prepare", "host"))
    for name, status in statuses.items():
        kind, state = state_of(pod, name)
        if kind == "waiting" and state.get("reason", "") not in QUIET_WAITS | {""}:
            if (failure := _waiting(name, status, state, attempt, events)) is not None:
                yield failure
            continue
        if kind == "waiting" and (event := _telling(events, name, _NODE_TROUBLE)):
            yield Failure(event["reason"], event.get("message", ""), name, attempt=attempt)
        for detail in _terminations(status):
            if name == "finish" and lost:
                continue  # its verdict only repeats that the stream was cut off
            if _expected(pod, name, detail, ended):
                continue
            yield _terminated(name, detail, attempt, events)


def _waiting(
    name: str, status: Manifest, state: Manifest, attempt: int | None, events: Sequence[Manifest]
) -> Failure | None:
    """Return why a container waits; for one in back-off, its last termination explains it."""
    reason = str(state["reason"])
    last = (status.get("lastState") or {}).get("terminated")
    if reason != "CrashLoopBackOff" or last is None:
        return Failure(_SAME.get(reason, reason), state.get("message", ""), name, attempt=attempt)
    if last.get("exitCode") == 0:
        return None
    failure = _terminated(name, last, attempt, events)
    if failure.reason != "Error":
        return failure
    message = failure.message or state.get("message", "")
    return Failure("CrashLoopBackOff", message, name, failure.exit_code, attempt, failure.time)


def _terminated(name: str, detail: Manifest, attempt: int | None, events: Sequence[Manifest]) -> Failure:
    code, reason = detail.get("exitCode"), detail.get("reason") or "Error"
    message = detail.get("message") or ""
    if _killed(detail) and (event := _telling(events, name, {"Killing"})) and _PROBE.search(event["message"]):
        kind = "LivenessProbeFailed" if "liveness" in event["message"] else "StartupProbeFailed"
        return Failure(kind, event["message"], name, code, attempt, detail.get("finishedAt"))
    if reason == "Error" and code == Exit.CONFIG:
        reason = "BadConfiguration"
    if not message:
        message = f"{name} exited with code {code}; see its log"
    return Failure(reason, message.strip(), name, code, attempt, detail.get("finishedAt"))


def _expected(pod: Manifest, name: str, detail: Manifest, ended: str | None) -> bool:
    """Whether a container ended because it was signalled to, or because the pod's work was done."""
    if _code(detail) == 0:
        return True
    signalled = _code(detail) in _SIGNALS and detail.get("reason") != "OOMKilled"
    after = name not in _MAINS and ended is not None and detail.get("finishedAt", "") >= ended
    return signalled and (is_terminating(pod) or after)


def _of_job(observed: Observed) -> Failure | None:
    job = observed.job
    if job is None:
        return None
    if failed := true_condition(job, "Failed"):
        return Failure(
            failed.get("reason", "Failed"),
            failed.get("message", ""),
            attempt=observed.status.get("attempt"),
            time=failed.get("lastTransitionTime"),
        )
    if observed.pod is None and (event := _telling(observed.events, None, {"FailedCreate"})):
        return Failure(event["reason"], event.get("message", ""))
    return None


def _telling(events: Sequence[Manifest], container: str | None, reasons: Collection[str]) -> Manifest | None:
    """Return the newest event with one of `reasons`; one that names a container must name `container`."""
    for event in sorted(events, key=_when, reverse=True):
        field = (event.get("involvedObject") or {}).get("fieldPath") or ""
        if event.get("reason") in reasons and (not field or container is None or f"{{{container}}}" in field):
            return event
    return None


def _when(event: Manifest) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _terminations(status: Manifest) -> Iterator[Manifest]:
    for state in (status.get("lastState") or {}, status.get("state") or {}):
        if detail := state.get("terminated"):
            yield detail


def _killed(detail: Manifest) -> bool:
    return _code(detail) in _SIGNALS and detail.get("reason") != "OOMKilled"


def _code(detail: Manifest) -> int:
    return int(detail.get("exitCode") or 0)


def _ended_mains(statuses: Mapping[str, Manifest]) -> str | None:
    """Return when the last main container ended, or None while one still runs."""
    ends = [
        ((statuses.get(name, {}).get("state") or {}).get("terminated") or {}).get("finishedAt")
        for name in ("host", "finish")
    ]
    return None if None in ends else max(str(end) for end in ends)


def _end_of(pod: Manifest) -> str:
    ends = [
        str(detail.get("finishedAt") or "")
        for status in containers(pod).values()
        for detail in _terminations(status)
    ]
    return max((end for end in ends if end), default=str(pod["metadata"]["creationTimestamp"]))


def _due(item: Manifest, observed: Observed) -> float:
    age: timedelta = observed.now - parse_time(item["metadata"]["creationTimestamp"])
    return max(0.0, _ODD_SECONDS - age.total_seconds())
