"""Explains what blocks an experiment, in actionable sentences. Pure."""

import re
from collections.abc import Iterator

from asysi.contract.spec import KIND
from asysi_operator.failures import Failure, finished, last_failure
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import QUEUE
from asysi_operator.observation import (
    condition,
    containers,
    is_terminating,
    node_unreachable,
    owned,
    state_of,
    true_condition,
)
from asysi_operator.plugin.experiment_view import ExperimentView

ADVICE = {
    "ImagePullBackOff": "compare it with `workerImage` of the chart; a private registry needs a pull secret",
    "InvalidImageName": "correct the image's name",
    "BadConfiguration": "correct the spec and apply it again: the same spec is not retried",
    "CrashLoopBackOff": "`asysi cluster logs {name} -c {container} --previous` shows the end of its log",
    "OOMKilled": "raise the memory of {container} in the spec",
    "CreateContainerConfigError": "create the object that the message names",
    "FailedMount": "see whether the claims in spec.inputs and spec.output exist and are on no other node",
    "FailedAttachVolume": "see whether another pod has the claim on another node",
    "FailedCreatePodSandBox": "look at the node's network plugin and runtime class",
    "Unschedulable": "ask for less in the spec, free the node, or add one",
    "NodeUnreachable": "check the node; if it stays away, Kubernetes replaces the pod after some minutes",
    "ClaimTerminating": "copy what is on it with `asysi cluster fetch {name}` while the pod runs",
    "NameTaken": "delete or rename one of the two",
    "DeadlineExceeded": "raise spec.lifecycle.activeDeadlineSeconds",
    "LivenessProbeFailed": "check the node's load and disk; it continues from its checkpoint",
    "StartupProbeFailed": "`asysi cluster logs {name} -c {container} --previous` shows how far it came",
    "Error": "`asysi cluster logs {name} -c {container}` shows the rest",
}
"""Advice by failure reason."""
_QUOTA = re.compile(r"exceeded quota: (?P<quota>[^,]+), (?P<figures>requested: .*?)(?:\s*$|\. )", re.DOTALL)
_POD_SECURITY = re.compile(r"violates PodSecurity \"(?P<level>[^\"]+)\": (?P<what>.*)", re.DOTALL)
_WELL = {"Running", "Finishing"}


def explain(seen: ExperimentView) -> list[str]:
    """Return what blocks the experiment, most relevant sentence first; never empty."""
    said = [*_of_experiment(seen), *_of_age(seen), *_of_operator(seen)]
    return said or [f"{seen.name} is {_phase(seen)}, and no cause is visible that blocks it."]


def _phase(seen: ExperimentView) -> str:
    return str(seen.status.get("phase") or "without a status")


def _of_experiment(seen: ExperimentView) -> Iterator[str]:
    phase = _phase(seen)
    if is_terminating(seen.experiment):
        yield from _of_deletion(seen)
    elif not seen.status:
        if _operator_runs(seen):
            yield f"No operator has processed {seen.name} yet."
    elif phase == "Refused":
        accepted = condition(seen.experiment, "Accepted") or {}
        said = str(accepted.get("message", "")).rstrip(".")
        yield f"The spec of {seen.name} is refused: {said}. Correct it and apply it again."
    elif phase == "Succeeded":
        yield from _of_success(seen)
    elif phase == "Failed":
        yield from _of_end(seen)
    elif phase == "Suspended":
        yield from _of_suspension(seen)
    else:
        yield from _of_run(seen, phase)


def _of_age(seen: ExperimentView) -> Iterator[str]:
    generation, observed = (
        seen.experiment["metadata"].get("generation"),
        seen.status.get("observedGeneration"),
    )
    if generation and observed and observed < generation:
        yield f"This refers to the spec before its last edit: generation {generation} is not processed yet."


def _of_deletion(seen: ExperimentView) -> Iterator[str]:
    about = seen.experiment["metadata"]
    pods = ", ".join(sorted(one["metadata"]["name"] for one in seen.pods))
    waits = f" Its pods are still ending: {pods}." if pods else ""
    by = ", ".join(about.get("finalizers") or ())
    held = f" It waits for the finalizers {by}." if by else ""
    yield f"{seen.name} is being deleted, since {about['deletionTimestamp']}.{waits}{held}"


def _of_success(seen: ExperimentView) -> Iterator[str]:
    took = f" after {seen.status['duration']}" if seen.status.get("duration") else ""
    yield f"{seen.name} has succeeded{took}: `asysi cluster report {seen.name}` opens its report."
    sound = condition(seen.experiment, "DataSound")
    if sound and sound["status"] == "False":
        yield f"Its data has a warning, {sound['reason']}: {sound.get('message', '')}"


def _of_end(seen: ExperimentView) -> Iterator[str]:
    failed = condition(seen.experiment, "Failed") or {}
    last = seen.status.get("lastFailure")
    if last:
        failure = Failure(last["reason"], last.get("message", ""), last.get("container"))
        yield f"{seen.name} has failed. {_sentence(seen, failure)}"
        if failed.get("reason") not in {None, last["reason"]}:
            yield f"Reason for its end: {failed['reason']}: {failed.get('message', '')}"
    else:
        yield f"{seen.name} has failed, by {failed.get('reason', 'Failed')}: {failed.get('message', '')}"


def _of_suspension(seen: ExperimentView) -> Iterator[str]:
    spec = seen.experiment.get("spec") or {}
    if (spec.get("lifecycle") or {}).get("suspend"):
        patch = '{"spec":{"lifecycle":{"suspend":false}}}'
        yield (
            f"{seen.name} is suspended by its own spec (lifecycle.suspend): "
            f"`kubectl patch scanx {seen.name} --type merge -p '{patch}'` resumes it."
        )
        return
    queue = _queue(seen)
    if queue is None:
        message = (condition(seen.experiment, "Suspended") or {}).get("message", "its Job is suspended")
        yield f"{seen.name} is suspended: {message}"
        return
    yield f"{seen.name} waits for its queue {queue}: {_of_workload(seen)}"


def _queue(seen: ExperimentView) -> str | None:
    named = ((seen.experiment.get("spec") or {}).get("scheduling") or {}).get("queueName")
    job = seen.job or {"metadata": {}}
    for labels in (seen.experiment["metadata"].get("labels"), job["metadata"].get("labels")):
        named = named or (labels or {}).get(QUEUE)
    return named


def _of_workload(seen: ExperimentView) -> str:
    job = seen.job
    own = [one for one in seen.workloads if job and owned(one, job["metadata"]["uid"])]
    for workload in own:
        for kind in ("Evicted", "QuotaReserved", "Admitted"):
            found = condition(workload, kind)
            if found and found["status"] == ("True" if kind == "Evicted" else "False"):
                return f"Kueue has not admitted it: {found.get('message') or found.get('reason')}"
    if own:
        return "Kueue has not processed it yet."
    if "workloads" in seen.hidden:
        return f"Kueue has not admitted it, and the cause cannot be read: {seen.hidden['workloads']}."
    return "Kueue has made no Workload for its Job: is it running, with the LocalQueue in this namespace?"


def _of_run(seen: ExperimentView, phase: str) -> Iterator[str]:
    found = [*_of_claims(seen), *_of_events(seen)]
    pod = seen.pod
    failure = last_failure(seen.observed) if seen.job else None
    recorded = seen.status.get("lastFailure")
    if failure is None and recorded and phase not in _WELL:
        failure = Failure(recorded["reason"], recorded.get("message", ""), recorded.get("container"))
    if found:
        yield from found
    elif failure is not None and not (phase in _WELL and failure.time is not None):
        yield _sentence(seen, failure)
    elif pod is None:
        yield _without_pod(seen)
    elif is_terminating(pod):
        yield f"The pod {pod['metadata']['name']} is terminating and writes its checkpoints; another follows."
    elif node_unreachable(pod):
        yield f"The node of {pod['metadata']['name']} is unreachable."
    else:
        yield _of_progress(seen, pod, phase)
    if contended := true_condition(seen.experiment, "Contended"):
        yield f"Another client repeatedly changes its objects: {contended.get('message', '')}"


def _without_pod(seen: ExperimentView) -> str:
    job = seen.job
    if job is None:
        return f"{seen.name} is accepted, and its Job is not there yet."
    name = job["metadata"]["name"]
    if job["spec"].get("suspend"):
        return f"The Job {name} is suspended" + (f": {_of_workload(seen)}" if _queue(seen) else ".")
    if finished(job):
        return f"The Job {name} has ended, and the operator has not recorded it yet."
    return f"The Job {name} has no pod yet: after a failure, Kubernetes creates the next with back-off."


def _of_claims(seen: ExperimentView) -> Iterator[str]:
    """Yield problems with the claims that the experiment references."""
    if "persistentvolumeclaims" in seen.hidden:
        return
    there = {one["metadata"]["name"]: one for one in seen.claims}
    for name in seen.claim_names:
        claim = there.get(name)
        if claim is None:
            if name != f"{seen.name}-output":  # created by the operator
                yield (
                    f"The claim {name} does not exist in namespace {seen.namespace}: create it, or let "
                    f"`asysi cluster put {name} FILES… --create 10Gi` create and fill it."
                )
            continue
        phase = (claim.get("status") or {}).get("phase")
        if phase == "Lost":
            yield f"The claim {name} has lost its volume: restore it, or create the claim again."
        elif phase == "Pending" and (event := _of_provisioning(seen, claim)):
            kind = (claim["spec"] or {}).get("storageClassName") or "none"
            yield f"The claim {name} gets no volume (storage class {kind}): {event['message'].strip()}"


def _of_provisioning(seen: ExperimentView, claim: Manifest) -> Manifest | None:
    """Return the event that explains why a claim is pending; waiting for a first consumer is no error."""
    telling = {"ProvisioningFailed", "FailedBinding"}
    return next((one for one in seen.events_of(claim) if one.get("reason") in telling), None)


def _of_events(seen: ExperimentView) -> Iterator[str]:
    """Yield why the Job could not create its pod, rephrased from the controller's event."""
    job = seen.job
    if job is None or seen.pod is not None:
        return
    event = next((one for one in seen.events_of(job) if one.get("reason") == "FailedCreate"), None)
    if event is None:
        return
    message = str(event.get("message", ""))
    if quota := _QUOTA.search(message):
        yield (
            f"The quota {quota['quota']} of namespace {seen.namespace} has no room for its pod: "
            f"{quota['figures'].strip()}. Ask for less in the spec, wait, or have the quota raised."
        )
    elif security := _POD_SECURITY.search(message):
        level, what = security["level"], security["what"].strip()
        yield f"Pod Security's level {level} of the namespace refuses its pod: {what}"
    else:
        yield f"The Job may not make its pod: {message}"


def _sentence(seen: ExperimentView, failure: Failure) -> str:
    """Return a failure as a sentence, with advice."""
    who = f"{failure.container}: " if failure.container else ""
    message = failure.message.strip().rstrip(".")
    advice = ADVICE.get(failure.reason, "")
    told = f"{who}{failure.reason}: {message}." if message else f"{who}{failure.reason}."
    what = advice.format(name=seen.name, container=failure.container or "host")
    return f"{told} What to do: {what}." if what else told


def _of_progress(seen: ExperimentView, pod: Manifest, phase: str) -> str:
    name = pod["metadata"]["name"]
    if phase in _WELL:
        counted = seen.status.get("counters") or {}
        rows = f" {counted['captured']:,} rows are captured." if counted.get("captured") else ""
        doing = "runs" if phase == "Running" else "has run, and the report is being written"
        return f"Nothing holds it up: {seen.name} {doing}.{rows}"
    if not true_condition(pod, "PodScheduled"):
        return f"The scheduler has not placed {name} yet."
    waiting = [
        (container, detail.get("reason"))
        for container in containers(pod)
        for kind, detail in (state_of(pod, container),)
        if kind == "waiting"
    ]
    running = [container for container in containers(pod) if state_of(pod, container)[0] == "running"]
    if running:
        return f"Nothing holds it up: {name} starts, and {', '.join(running)} runs."
    first = waiting[0][0] if waiting else "prepare"
    return f"{name} has a node, and {first} is being started: its image is fetched and its volumes mounted."


def _operator_runs(seen: ExperimentView) -> bool:
    """Whether an operator that watches the namespace is ready; also True if that cannot be read."""
    return "deployments" in seen.hidden or any(
        (one.get("status") or {}).get("readyReplicas") and watches(one, seen.namespace)
        for one in seen.operators
    )


def _of_operator(seen: ExperimentView) -> Iterator[str]:
    if _operator_runs(seen):
        return
    stale = " Its status may be out of date." if seen.status else ""
    ours = [one for one in seen.operators if watches(one, seen.namespace)]
    if not seen.operators:
        yield (
            f"No operator is installed in this cluster, so {seen.name} is not managed: "
            f"`helm install asysi charts/asysi --namespace asysi --create-namespace`.{stale}"
        )
    elif not ours:
        known = ", ".join(sorted({name for one in seen.operators for name in watched(one)}))
        yield (
            f"No operator watches namespace {seen.namespace}: they watch {known}. Add it to "
            f"`namespaces` of a release.{stale}"
        )
    else:
        about = ours[0]["metadata"]
        yield (
            f"The operator is not ready, so {seen.name} is not managed: `kubectl --namespace "
            f"{about['namespace']} describe deployment {about['name']}` says why.{stale}"
        )


def watched(deployment: Manifest) -> list[str]:
    """Return the namespaces that an operator's Deployment watches; empty means all."""
    arguments = deployment["spec"]["template"]["spec"]["containers"][0].get("args") or ()
    return [one.partition("=")[2] for one in arguments if one.startswith("--namespace=")]


def watches(deployment: Manifest, namespace: str) -> bool:
    """Return whether an operator watches a namespace."""
    names = watched(deployment)
    return not names or namespace in names


def no_such(name: str, namespace: str, known: list[str]) -> str:
    """Return the message for an experiment that does not exist."""
    there = f"there are {', '.join(sorted(known))}" if known else "there is none"
    return f"there is no {KIND} {name} in namespace {namespace}: {there}"
