"""Derives an experiment's status from a snapshot. Pure and deterministic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from asysi.contract.telemetry import VERDICTS, Summary
from asysi_operator import summary
from asysi_operator.failures import DISRUPTIONS, Failure, disruptions, finished, last_failure, refusal
from asysi_operator.manifests.environment import output_of
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import queue_of
from asysi_operator.observation import (
    ConditionValue,
    Observed,
    attempt_of,
    began,
    condition,
    is_terminating,
    node_unreachable,
    parse_time,
    rfc3339,
    state_of,
    true_condition,
)
from asysi_operator.pinning import judge
from asysi_operator.reconcile import BAD_CONFIGURATION, START_DEADLINE_EXCEEDED, Plan, ended, started

CONDITIONS = (
    "Accepted",
    "PipelineComplete",
    "Scheduled",
    "CPUPinned",
    "Capturing",
    "Complete",
    *VERDICTS,
    "Failed",
    "Suspended",
    "Contended",
    "Ready",
    "Stalled",
)
COUNTED = ("counters", "sae", "ledger", "pipeline", "duration")
"""Parts of the status that change continuously while an experiment runs."""
MESSAGE_LIMIT = 4096


@dataclass(frozen=True)
class Derived:
    """A status, and when it must be derived again even without an event."""

    status: Manifest
    again: float | None = None
    """Seconds."""


def derive(
    observed: Observed,
    decided: Plan,
    *,
    trouble: Failure | None = None,
    contended: str | None = None,
) -> Derived:
    """Return the status of an experiment.

    Recorded facts are kept after the pod and the Job are deleted.

    Args:
        observed: the snapshot.
        decided: the plan made from it.
        trouble: what prevented the plan's writes.
        contended: which fields of the experiment's objects another client keeps changing, and who.
    """
    before, now, stage = observed.status, rfc3339(observed.now), observed.stage
    pod, job = stage.pod, None if decided.stale else stage.job
    refused = None if job is None or finished(job) else refusal(stage)
    failure = trouble or refused or (None if decided.stale else last_failure(stage))
    words = None if pod is None or job is None or stage.suffix else _last_words(pod)
    attempt = attempt_of(pod) if pod and not stage.suffix else None
    left = _until_start_deadline(observed, decided)
    standing = ended(observed)
    said: dict[str, ConditionValue] = {"Accepted": _accepted(decided)}
    if standing:  # the end is recorded: later observations do not revoke it
        known = [kind for kind in CONDITIONS[1:-2] if _always(kind) or condition(observed.experiment, kind)]
        said |= {kind: _as_recorded(observed, kind) for kind in known}
    else:
        said |= _of_the_pipeline(observed, decided, failure)
        said |= _of_the_run(
            stage, decided, job, failure, words, refused=refused, late=left is not None and left <= 0
        )
    if decided.experiment is not None and not standing:
        sets = _cpu_sets(observed) or ({} if job is None else before.get("cpuSets", {}))
        said["CPUPinned"] = judge(decided.experiment.spec, sets)
    if contended or condition(observed.experiment, "Contended"):
        said["Contended"] = _contended(contended)
    conditions = [_condition(observed, kind, said[kind], now) for kind in CONDITIONS if kind in said]
    word = phase(conditions)
    last, past = before.get("lastFailure"), before.get("failures") or []
    for one in (*disruptions(stage), failure):
        seen = one.as_status(now, last or {}) if one else None
        last, past = summary.failures({"lastFailure": last, "failures": past}, seen, word)
    stalled = summary.stalled(conditions, last)
    for kind, says in (("Ready", summary.ready(word, conditions)), ("Stalled", stalled)):
        conditions.append(_condition(observed, kind, says, now))
    start, end = before.get("startTime") or _host_began(observed), _completion(observed, conditions, now)
    found: Manifest = {
        "observedGeneration": observed.generation,
        "phase": word,
        "reason": summary.why(word, stalled, last),
        "conditions": conditions,
        "job": job["metadata"]["name"] if job else before.get("job"),
        "pod": pod["metadata"]["name"] if pod else before.get("pod"),
        "output": _results(job) if job else before.get("output"),
        "attempt": before.get("attempt") if attempt is None else attempt,
        "node": (pod["spec"].get("nodeName") if pod else None) or before.get("node"),
        "startTime": start,
        "completionTime": end,
        "cpuSets": _cpu_sets(observed) or before.get("cpuSets"),
        **_counted(observed, words),
        "duration": summary.duration(start, end, now) if end or word in _TIMED else before.get("duration"),
        "pipeline": _shards(observed) or before.get("pipeline"),
        "lastFailure": last,
        "failures": past,
    }
    return Derived(
        {key: value for key, value in found.items() if value not in (None, {}, [])},
        left if left and left > 0 else None,
    )


def phase(conditions: Sequence[Manifest]) -> str:
    """Return the summary of the conditions in one word; informational only."""
    true = {one["type"] for one in conditions if one["status"] == "True"}
    reasons = {one["type"]: one["reason"] for one in conditions}
    for kind, word in (("Complete", "Succeeded"), ("Failed", "Failed"), ("Suspended", "Suspended")):
        if kind in true:
            return word
    capturing = reasons.get("Capturing")
    if capturing in _RUNNING | _LEAVING:
        return (_RUNNING | _LEAVING)[capturing]
    if "Accepted" not in true:
        return "Refused"
    return "Preparing" if true & {"Scheduled", _PIPELINE} else "Pending"


_PIPELINE = CONDITIONS[1]
_RUNNING = {"HostStarting": "Running", "HostRunning": "Running", "HostEnded": "Finishing"}
_TIMED = set(_RUNNING.values())
_LEAVING = {"PodTerminating": "Terminating", "NodeUnreachable": "Unknown"}


def only_counters_changed(before: Manifest, after: Manifest) -> bool:
    """Whether two statuses differ in their counters only."""
    return _uncounted(before) == _uncounted(after)


def is_urgent(before: Manifest, after: Manifest) -> bool:
    """Whether a status must be written at once: it reports an end, a refusal, a suspension, or an edit."""
    was, now = _by_type(before), _by_type(after)
    return before.get("observedGeneration") != after.get("observedGeneration") or any(
        now.get(kind, {}).get("status") != was.get(kind, {}).get("status") for kind in _PRESSING
    )


_PRESSING = ("Accepted", "Complete", "Failed", "Suspended")


def _uncounted(status: Manifest) -> Manifest:
    return {key: value for key, value in status.items() if key not in COUNTED}


def _accepted(decided: Plan) -> ConditionValue:
    if decided.refusal is not None:
        return "False", decided.refusal.reason, decided.refusal.message
    return "True", "Valid", " ".join(["The spec is accepted.", *decided.notes])


def _of_the_pipeline(observed: Observed, decided: Plan, failure: Failure | None) -> dict[str, ConditionValue]:
    data = decided.experiment.spec.data if decided.experiment else None
    if decided.experiment is None and (was := condition(observed.experiment, _PIPELINE)):
        return {_PIPELINE: (was["status"], was["reason"], was.get("message", ""))}
    if data is None or data.pipeline is None:
        return {}
    return {_PIPELINE: _pipeline(observed, decided, failure, data.pipeline.shards)}


def _pipeline(observed: Observed, decided: Plan, failure: Failure | None, shards: int) -> ConditionValue:
    job = observed.rows.job
    if observed.job is not None or started(observed) or (job and true_condition(job, "Complete")):
        return "True", "RowsReady", "The pipeline has completed; its output is the model's input."
    if job is None or decided.stale:
        return "False", "NotStarted", "The pipeline's Job does not exist yet."
    if end := finished(job):
        why = failure.message if failure else end.get("message", "")
        return "False", end.get("reason") or "Failed", why
    if job["spec"].get("suspend"):
        return "False", "Suspended", "The pipeline is suspended."
    return "False", "Running", f"The pipeline runs, in {shards} {'shard' if shards == 1 else 'shards'}."


def _shards(observed: Observed) -> Manifest:
    """Return the pipeline's progress in shards, as counted by its Job."""
    job = observed.rows.job
    if job is None:
        return {}
    status = job.get("status") or {}
    counts = {
        "done": status.get("succeeded"),
        "running": status.get("active"),
        "failed": status.get("failed"),
    }
    return {"shards": job["spec"]["completions"], **{key: int(value or 0) for key, value in counts.items()}}


def _of_the_run(
    observed: Observed,
    decided: Plan,
    job: Manifest | None,
    failure: Failure | None,
    words: Summary | None,
    *,
    refused: Failure | None,
    late: bool,
) -> dict[str, ConditionValue]:
    end = finished(job) if job else None  # of the pipeline's, only a failure is an end
    return {
        "Scheduled": _scheduled(observed, job, failure),
        "Capturing": _capturing(observed, job, running=end is None and not late and refused is None),
        "Complete": _complete(end, words),
        **{kind: _verdict(observed, kind, end, words) for kind in VERDICTS},
        "Failed": _refused(refused) if refused else _failed(observed, decided, end, failure, late=late),
        "Suspended": _suspended(observed, decided, job),
    }


def _scheduled(observed: Observed, job: Manifest | None, failure: Failure | None) -> ConditionValue:
    pod = observed.pod if job else None
    if pod is None:
        if failure is not None and failure.container is None:
            return "False", failure.reason, failure.message
        return "False", "NoPod", "There is no pod yet."
    scheduled = condition(pod, "PodScheduled")
    if scheduled and scheduled["status"] == "True":
        return (
            "True",
            "Scheduled",
            f"{pod['metadata']['name']} is scheduled on {pod['spec'].get('nodeName', 'a node')}.",
        )
    if scheduled:
        return "False", scheduled.get("reason") or "Unschedulable", scheduled.get("message", "")
    return "False", "Pending", "The scheduler has not seen the pod yet."


def _capturing(  # noqa: PLR0911 - a case each
    observed: Observed, job: Manifest | None, *, running: bool
) -> ConditionValue:
    pod = observed.pod if job else None
    if not running:
        return "False", "Ended", "The experiment has ended."
    if pod is None:
        return "False", "NotStarted", "There is no pod yet."
    name = pod["metadata"]["name"]
    if node_unreachable(pod):
        return "Unknown", "NodeUnreachable", f"The node of {name} is unreachable: the pod's state is unknown."
    if is_terminating(pod):
        return "False", "PodTerminating", f"{name} is being deleted; its output is kept."
    kind, detail = state_of(pod, "host")
    if kind == "terminated":
        return "False", "HostEnded", f"The host exited with code {detail.get('exitCode')}."
    if kind != "running":
        return "False", "NotStarted", "The host has not started yet."
    answer = observed.answers.get("finish")
    if answer is None and (was := condition(observed.experiment, "Capturing")) and was["reason"] in _RUNNING:
        return was["status"], was["reason"], was.get("message", "")
    if answer is None or answer.phase in {None, "starting"}:
        return "False", "HostStarting", "The host has not taken its first step yet."
    if answer.phase == "running":
        return "True", "HostRunning", "The host is running and its hook points are being captured."
    return "False", "HostEnded", "The host has closed its stream."


def _complete(end: Manifest | None, words: Summary | None) -> ConditionValue:
    if end is None:
        return "False", "NotEnded", "The experiment has not ended."
    if end["type"] == "Failed":
        return "False", "Failed", "The experiment has failed."
    balanced = " Its ledger balances." if words and words.balanced else ""
    return "True", "Finished", f"The stream has ended and everything is written.{balanced}"


def _verdict(observed: Observed, kind: str, end: Manifest | None, words: Summary | None) -> ConditionValue:
    """Return finish's verdict on the ledger or the data, from its termination message or its last status."""
    answer = observed.answers.get("finish")
    for source in (words, answer):
        if source is not None and kind in source.conditions:
            said = source.conditions[kind]
            return said.status, said.reason, said.message
    before = condition(observed.experiment, kind)
    if before is not None and before["reason"] not in _NO_VERDICT:
        return before["status"], before["reason"], before.get("message", "")
    if end is None:
        return "Unknown", "NotEnded", "The experiment has not ended."
    return (
        "Unknown",
        "NoVerdict",
        "finish left no verdict: it was killed, or the experiment failed before it.",
    )


_NO_VERDICT = {"NotEnded", "NoVerdict"}


def _always(kind: str) -> bool:
    """Whether every experiment has the condition; some conditions are optional or were added later."""
    return kind not in {_PIPELINE, *VERDICTS, "Contended"}


def _failed(
    observed: Observed, decided: Plan, end: Manifest | None, failure: Failure | None, *, late: bool
) -> ConditionValue:
    if late:
        assert decided.experiment is not None
        seconds = decided.experiment.spec.lifecycle.start_deadline_seconds
        why = f": {failure.reason}: {failure.message}" if failure else ""
        return (
            "True",
            START_DEADLINE_EXCEEDED,
            f"The host did not start within lifecycle.startDeadlineSeconds ({seconds} s){why}",
        )
    if end is None or end["type"] != "Failed":
        return "False", "NotFailed", "The experiment has not failed."
    why = (
        f"{failure.container}: {failure.message}" if failure and failure.container else end.get("message", "")
    )
    return "True", end.get("reason") or "Failed", why


def _refused(refused: Failure) -> ConditionValue:
    return "True", BAD_CONFIGURATION, f"{refused.container}: {refused.message}"


def _suspended(observed: Observed, decided: Plan, job: Manifest | None) -> ConditionValue:
    experiment = decided.experiment
    wished = experiment is not None and experiment.spec.lifecycle.suspend
    queue = queue_of(experiment) if experiment else None
    pods = observed.pods if job is None else observed.attempts
    ending = any(pod.get("status", {}).get("phase") not in {"Succeeded", "Failed"} for pod in pods)
    if job is not None and job["spec"].get("suspend") and not ending:
        asked = "lifecycle.suspend is true." if wished else "Waiting for admission by its queue."
        return "True", "Suspended", asked
    if job is None and wished and queue and not ending:
        return "True", "Suspended", f"lifecycle.suspend is true: no Job in queue {queue} until it is resumed."
    if wished:
        return "False", "Suspending", "lifecycle.suspend is true; the pod is terminating."
    return "False", "Active", "The experiment is not suspended."


def _contended(by: str | None) -> ConditionValue:
    if by is None:
        return "False", "Settled", "No other client is changing the experiment's objects any more."
    return "True", "ChangedByOthers", f"{by}; it is reverted each time, after a growing delay."


def _condition(observed: Observed, kind: str, said: ConditionValue, now: str) -> Manifest:
    status, reason, message = said[0], said[1], said[2][:MESSAGE_LIMIT]
    before = condition(observed.experiment, kind)
    same = before is not None and before["status"] == status
    return {
        "type": kind,
        "status": status,
        "observedGeneration": observed.generation,
        "lastTransitionTime": before["lastTransitionTime"] if before and same else now,
        "reason": reason,
        "message": message,
    }


def _as_recorded(observed: Observed, kind: str) -> ConditionValue:
    before = condition(observed.experiment, kind)
    return (
        (before["status"], before["reason"], before.get("message", ""))
        if before
        else ("Unknown", "Unknown", "")
    )


def _completion(observed: Observed, conditions: Sequence[Manifest], now: str) -> str | None:
    if not any(one["status"] == "True" and one["type"] in {"Complete", "Failed"} for one in conditions):
        return None
    job = observed.stage.job
    end = finished(job) if job else None
    return observed.status.get("completionTime") or (end and end.get("lastTransitionTime")) or now


def _host_began(observed: Observed) -> str | None:
    return min((when for pod in observed.attempts if (when := began(pod, "host"))), default=None)


def _until_start_deadline(observed: Observed, decided: Plan) -> float | None:
    """Return the seconds until the start deadline, or None if no deadline applies."""
    job = observed.job
    if decided.experiment is None or job is None or decided.stale or finished(job) or ended(observed):
        return None
    deadline = decided.experiment.spec.lifecycle.start_deadline_seconds
    since = (job.get("status") or {}).get("startTime")
    if deadline is None or since is None or observed.status.get("startTime") or _host_began(observed):
        return None
    return deadline - (observed.now - parse_time(since)).total_seconds()


def _results(job: Manifest) -> str:
    """Return the claim and the directory on it that a Job's pods write their results to."""
    volumes = {one["name"]: one for one in job["spec"]["template"]["spec"].get("volumes") or ()}
    claim = volumes.get("output", {}).get("persistentVolumeClaim", {}).get("claimName", "")
    return str(PurePosixPath(claim) / output_of(job))


def _cpu_sets(observed: Observed) -> dict[str, str]:
    return {name: answer.cpus for name, answer in sorted(observed.answers.items()) if answer.cpus}


def _counted(observed: Observed, words: Summary | None) -> Manifest:
    """Return counters, quality and ledger: finish's termination message, its last status, or the record."""
    before, answer = observed.status, observed.answers.get("finish")
    if words is not None:
        ledger: Manifest = {} if words.balanced is None else {"balanced": words.balanced}
        ledger |= {"unbalanced": list(words.unbalanced)} if words.unbalanced else {}
        return {
            "counters": dict(words.counters),
            "sae": dict(words.sae) or before.get("sae"),
            "ledger": ledger,
        }
    if answer is None:
        return {key: before.get(key) for key in COUNTED}
    balanced = {"balanced": answer.balanced} if answer.balanced is not None else {}
    return {"counters": dict(answer.counters), "sae": dict(answer.sae), "ledger": balanced}


def _last_words(pod: Manifest) -> Summary | None:
    kind, detail = state_of(pod, "finish")
    return Summary.read(detail.get("message") or "") if kind == "terminated" else None


def announcements(name: str, before: Manifest, after: Manifest) -> list[tuple[str, str, str]]:
    """Return the events for a status change: type, reason from a fixed set, and message."""
    told = []
    was, now = _by_type(before), _by_type(after)
    for kind, status, level, reason in _TOLD:
        entry = now.get(kind)
        if (
            entry
            and entry["status"] == status
            and was.get(kind, {}).get("status", _INITIAL.get(kind)) != status
            and (was or kind != "Suspended")
        ):
            told.append((level, reason, entry["message"]))
    known = [*(before.get("failures") or ()), before.get("lastFailure")]
    for failure in (*(after.get("failures") or ()), after.get("lastFailure")):
        if not failure or failure in known:
            continue
        who = f"{failure['container']}: " if "container" in failure else ""
        reason = "ContainerFailed" if who else "PodFailed"
        level = "Warning"
        if failure["reason"] in DISRUPTIONS:
            level, reason, who = "Normal", "Disrupted", f"Attempt {failure.get('attempt', '?')} was evicted: "
        told.append((level, reason, f"{who}{failure['reason']}: {failure.get('message', '')}"))
    if before.get("attempt") is not None and after.get("attempt", 0) > before["attempt"]:
        told.append(("Normal", "NextAttempt", f"Attempt {after['attempt']} of {name} has begun."))
    return told


_INITIAL = {"Accepted": "True"}
"""Assumed value of a condition before it is first recorded; a suspension from the start emits no event."""
_TOLD = (
    ("Accepted", "False", "Warning", "Refused"),
    (_PIPELINE, "True", "Normal", "PipelineComplete"),
    ("Capturing", "True", "Normal", "Capturing"),
    ("Suspended", "True", "Normal", "Suspended"),
    ("Suspended", "False", "Normal", "Resumed"),
    ("Complete", "True", "Normal", "Complete"),
    ("LedgerBalanced", "False", "Warning", "LedgerNotBalanced"),
    ("DataSound", "False", "Warning", "DataNotSound"),
    ("Failed", "True", "Warning", "Failed"),
    ("Contended", "True", "Warning", "Contended"),
)
EVENT_REASONS = (
    *(reason for *_rest, reason in _TOLD),
    "ContainerFailed",
    "PodFailed",
    "Disrupted",
    "NextAttempt",
)
"""All reasons of the operator's events."""


def _by_type(status: Mapping[str, object]) -> dict[str, Manifest]:
    conditions = status.get("conditions")
    return {one["type"]: one for one in conditions} if isinstance(conditions, list) else {}
