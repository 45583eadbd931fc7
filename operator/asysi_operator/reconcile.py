"""Plans the writes from desired and actual state: level-triggered, deterministic, and pure.

A plan is an ordered list of writes. The operator may die after any prefix of it; planning again from the
state at that point continues it. Names are fixed and removals carry the UID of what they remove, so stale
observations can neither duplicate nor delete anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import msgspec

from asysi.contract.canonical import digest
from asysi.contract.errors import ConfigError
from asysi.contract.frozen import changes, frozen_part, normalise_quantities
from asysi.contract.identity import output_path
from asysi.contract.quantity import same_amount
from asysi.contract.spec import ScanExperiment
from asysi_operator.acceptance import notes, validate
from asysi_operator.allowed import Allowed, violations
from asysi_operator.manifests import IMAGE, PULL_POLICIES, build
from asysi_operator.manifests.claim import as_retained, retained_by
from asysi_operator.manifests.config_map import applied_spec
from asysi_operator.manifests.environment import output_of
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import QUEUE, queue_of
from asysi_operator.manifests.names import ROWS, config_name_of, job_name, rows_name
from asysi_operator.observation import (
    Observed,
    Ownership,
    began,
    is_terminating,
    owned,
    ownership,
    parse_time,
    spec_of,
    true_condition,
)

APPLIED = "asysi.dev/applied"
"""Annotation: digest of the applied object. It reveals what a comparison cannot: a removed field."""
TEMPLATE = "asysi.dev/template"
"""Annotation on the Job: digest of its immutable part, as this operator rendered it."""
START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
BAD_CONFIGURATION = "BadConfiguration"
_OUR_ENDS = {START_DEADLINE_EXCEEDED, BAD_CONFIGURATION}
"""Reasons of the condition Failed when the operator itself ends an experiment: a host that does not start in
time, or a sidecar that refuses its configuration, which Kubernetes would restart forever."""
PATIENCE = 1.0
"""Seconds until a deletion in progress is checked again if no event arrives."""
LEFT_SECONDS = 30.0
"""Seconds given to the garbage collector to delete objects of an earlier experiment of the same name. What
remains was restored from a backup, and is adopted."""
_PASSING = frozenset({"resourceVersion", "managedFields"})
_FIXED = (
    *("completions", "completionMode", "backoffLimit", "backoffLimitPerIndex"),
    *("podReplacementPolicy", "podFailurePolicy", "template"),
)
"""Fields of a Job's spec that are immutable, or that must not change within an attempt."""


@dataclass(frozen=True)
class OperatorSettings:
    """The operator's settings."""

    image: str = IMAGE
    pull_policy: str = PULL_POLICIES[0]
    allowed: Allowed = field(default_factory=Allowed)
    readers: Sequence[Manifest] | None = None
    """NetworkPolicy peers that may call the pods' ports; None allows all."""


@dataclass(frozen=True)
class Apply:
    """Apply a manifest."""

    manifest: Manifest
    exists: bool
    """Whether the object was observed; if not, the apply must not take over another owner's object."""
    undoes: str | None = None
    """Which fields another client changed since the last apply, and who; None if there is no such change."""


@dataclass(frozen=True)
class Remove:
    """Delete the object with this UID; a Job is deleted after its pods."""

    kind: str
    name: str
    uid: str


Action = Apply | Remove


def concurrent(actions: Sequence[Action]) -> list[list[Action]]:
    """Split a plan into sequential groups; the writes within a group may run concurrently.

    Objects that a pod needs do not depend on each other; the Job follows all of them. Removals keep
    their order.
    """
    groups: list[list[Action]] = []
    for action in actions:
        if not groups or _alone(action) or _alone(groups[-1][0]):
            groups.append([])
        groups[-1].append(action)
    return groups


def _alone(action: Action) -> bool:
    return isinstance(action, Remove) or action.manifest["kind"] == "Job"


@dataclass(frozen=True)
class SpecRefusal:
    """Why a spec is rejected."""

    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """The writes to make now."""

    actions: Sequence[Action] = ()
    experiment: ScanExperiment | None = None
    """The experiment, if its spec is accepted."""
    refusal: SpecRefusal | None = None
    notes: Sequence[str] = ()
    """Fields that are accepted but have no effect."""
    blocked: str | None = None
    """Name conflict with an object of another owner: the rest of the plan waits until a user removes it."""
    again: float | None = None
    """Seconds after which to plan again even without an event."""
    stale: bool = field(default=False)
    """Whether the existing Job belongs to an outdated spec, or is being deleted."""


def plan(observed: Observed, settings: OperatorSettings) -> Plan:
    """Return the plan for an experiment."""
    if is_terminating(observed.experiment):
        return Plan()  # its objects are garbage-collected with it: they have it as their owner
    try:
        text = _text(_as_applied(observed))
        experiment = _accepted(text)
        readers = None if settings.readers is None else msgspec.json.encode(settings.readers)
        place = _output(observed, experiment)
        objects = _rendered(text, place, settings.image, settings.pull_policy, readers)
    except ConfigError as error:
        return Plan(refusal=SpecRefusal("Invalid", str(error)))
    decided = Plan(experiment=experiment, notes=notes(experiment))
    job = observed.job
    changed = job is not None and spec_of(job) != spec_of(objects[-1])
    if changed and started(observed):
        decided = replace(decided, refusal=SpecRefusal("SpecIsFrozen", _frozen(observed, experiment)))
        return _after_the_end(observed, decided, objects) if ended(observed) else decided
    if ended(observed, changed=changed):
        return _after_the_end(observed, decided, objects)
    # A running experiment continues if its choices are no longer allowed: no new Job is requested.
    beyond = violations(experiment, settings.allowed) if job is None or changed else []
    if beyond:
        return replace(decided, refusal=SpecRefusal("NotAllowed", "; ".join(beyond)))
    return _go_on(observed, decided, objects, job if changed else None)


def _go_on(observed: Observed, decided: Plan, objects: Sequence[Manifest], old: Manifest | None) -> Plan:
    """Plan the next step of an experiment that may run; a Job of another spec is removed first."""
    rows = _rows(objects)
    old = old or _outdated(observed, rows)
    if old is not None:
        return replace(decided, actions=[_remove(old)], again=PATIENCE, stale=True)
    due = _due(observed, objects, rows)
    if _held(decided):
        due = [one for one in due if one["kind"] != "Job"]
    return _towards(observed, decided, due)


def _held(decided: Plan) -> bool:
    """Whether a queued experiment is suspended by its spec, in which case it gets no Job.

    Kueue starts the Jobs it has admitted: it would keep resuming a Job that only the operator suspends.
    """
    experiment = decided.experiment
    return experiment is not None and experiment.spec.lifecycle.suspend and queue_of(experiment) is not None


def _text(tree: Manifest) -> bytes:
    """Return the part of an experiment that determines acceptance, as JSON, without status and versions."""
    metadata = {key: value for key, value in tree["metadata"].items() if key not in _PASSING}
    rest = {key: value for key, value in tree.items() if key not in {"metadata", "status"}}
    return msgspec.json.encode(rest | {"metadata": metadata})


@lru_cache(maxsize=64)
def _accepted(text: bytes) -> ScanExperiment:
    """Return the experiment; cached, because a new one is reconciled several times within a second."""
    return validate(msgspec.json.decode(text))


@lru_cache(maxsize=64)
def _rendered(
    text: bytes, output: str, image: str, pull_policy: str, readers: bytes | None
) -> tuple[Manifest, ...]:
    """Return the sealed objects of an experiment, in the order of `build`: shared, so never to be changed."""
    peers = None if readers is None else msgspec.json.decode(readers)
    objects = build(_accepted(text), image=image, pull_policy=pull_policy, output=output, readers=peers)
    return tuple(map(sealed, objects))


def _output(observed: Observed, experiment: ScanExperiment) -> str:
    """Return the results directory on the volume; an experiment that has started keeps its directory.

    An existing Job records its directory; the status does so for a Job that was lost. Experiments started
    before directories per experiment existed have no such status: they use the root.
    """
    jobs = (observed.child("Job", name) for name in (job_name(experiment), rows_name(experiment)))
    there = next((job for job in jobs if job is not None and owned(job, observed.uid)), None)
    if there is not None:
        return output_of(there)
    if not started(observed):
        return str(output_path(experiment))
    return str(observed.status.get("output") or "").partition("/")[2] or "."


def _as_applied(observed: Observed) -> Manifest:
    """Return the experiment with its quantities spelled as when its objects were created."""
    spec = observed.experiment.get("spec")
    before = applied_spec(observed.child("ConfigMap", config_name_of(observed.name)) or {})
    if not before or not isinstance(spec, dict):
        return observed.experiment
    return observed.experiment | {"spec": normalise_quantities(spec, before)}


def started(observed: Observed) -> bool:
    """Whether the host has ever run: from then on the output contains results of this spec."""
    return bool(observed.status.get("startTime")) or any(began(pod, "host") for pod in observed.attempts)


def ended(observed: Observed, *, changed: bool = False) -> bool:
    """Whether the recorded end is still valid. An edit before the host's first start discards it."""
    if true_condition(observed.experiment, "Complete"):
        return True
    failed = true_condition(observed.experiment, "Failed")
    if failed is None:
        return False
    if observed.status.get("startTime"):
        return True
    if observed.child("Job", observed.name) is not None:
        return not changed
    return bool(failed.get("observedGeneration") == observed.generation)


def _rows(objects: Sequence[Manifest]) -> Manifest | None:
    """Return the pipeline's Job, if there is a pipeline: every Job except the last object."""
    return next((one for one in objects[:-1] if one["kind"] == "Job"), None)


def _outdated(observed: Observed, rows: Manifest | None) -> Manifest | None:
    """Return the pipeline's Job if it was created from another spec and its output is not in use yet."""
    there = observed.rows.job
    if rows is None or there is None or observed.job is not None or started(observed):
        return None
    return there if spec_of(there) != spec_of(rows) else None


def _due(observed: Observed, objects: Sequence[Manifest], rows: Manifest | None) -> list[Manifest]:
    """Return the objects to create now: the pipeline's Job first, the other Job once it has completed.

    A pipeline whose Job was lost runs again and resumes from its ledgers, but not once the experiment's Job
    exists.
    """
    if rows is None:
        return list(objects)
    own = objects[-1]
    begun = started(observed) or observed.child("Job", own["metadata"]["name"]) is not None
    there = observed.rows.job
    if begun:
        return [one for one in objects if one is not rows or there is not None]
    complete = there is not None and true_condition(there, "Complete") is not None
    return [one for one in objects if one is not own or complete]


def _towards(observed: Observed, decided: Plan, objects: Sequence[Manifest]) -> Plan:
    """Return the writes that are missing, in the order of `objects`, which are sealed: the Job comes last."""
    actions: list[Action] = []
    for rendered in objects:
        wanted = rendered
        there = observed.child(wanted["kind"], wanted["metadata"]["name"])
        if there is None:
            actions.append(Apply(wanted, exists=False))
            continue
        whose = ownership(there, observed)
        if wanted["kind"] == "PersistentVolumeClaim":
            wanted = as_retained(wanted, there, observed.uid)
        if is_terminating(there) or (whose is Ownership.LEFT and _age(observed) < LEFT_SECONDS):
            # Left by an earlier experiment of this name, or being deleted: wait for the garbage collector.
            return replace(decided, actions=actions, again=PATIENCE, stale=wanted["kind"] == "Job")
        if whose is Ownership.FOREIGN:
            taken = name_taken(wanted["kind"], wanted["metadata"]["name"])
            return replace(decided, actions=actions, blocked=taken)
        if whose is Ownership.LEFT or (
            whose is Ownership.ORPHAN and wanted["metadata"].get("ownerReferences")
        ):
            actions.append(_adopt(there, wanted))
            if isinstance(actions[-1], Remove):
                return replace(decided, actions=actions, again=PATIENCE, stale=True)
            continue
        if wanted["kind"] == "PersistentVolumeClaim" and not _covers(there["spec"], wanted["spec"]):
            used = observed.job or observed.child("Job", f"{observed.name}{ROWS}")
            if used is None and not started(observed) and not _inherited(there, observed):
                return replace(decided, actions=[*actions, _remove(there)], again=PATIENCE)
            # Its size is part of the spec; changes made by hand are left alone.
            wanted = _as_there(wanted, there)  # as far as it can still change
        if wanted["kind"] == "Job":
            wanted = _carried(wanted, there)  # as far as it can still change
        manifest = wanted if wanted is rendered else sealed(wanted)
        if not current(there, manifest):
            undoes = _undone(there, manifest)
            actions.append(Apply(_as_placed(manifest, there), exists=True, undoes=undoes))
    return replace(decided, actions=[*actions, *_prune(observed, objects)])


def _adopt(there: Manifest, wanted: Manifest) -> Action:
    """Return the action that adopts an orphan; a Job of another spec is removed instead.

    A claim keeps its spec and its data.
    """
    if wanted["kind"] == "Job":
        if spec_of(there) != spec_of(wanted):
            return _remove(there)
        wanted = _carried(wanted, there)
    if wanted["kind"] == "PersistentVolumeClaim":
        wanted = _as_there(wanted, there)
    return Apply(sealed(wanted), exists=True)


def _as_there(wanted: Manifest, there: Manifest) -> Manifest:
    """Return the desired claim with the size, class and access modes of the existing one."""
    return wanted | {"spec": {key: there["spec"].get(key, wanted["spec"][key]) for key in wanted["spec"]}}


def _inherited(claim: Manifest, observed: Observed) -> bool:
    """Whether a claim is older than the experiment and may hold the results of an earlier one."""
    made = observed.experiment["metadata"].get("creationTimestamp")
    return bool(made and claim["metadata"]["creationTimestamp"] < made)


def _age(observed: Observed) -> float:
    made = observed.experiment["metadata"].get("creationTimestamp")
    return (observed.now - parse_time(made)).total_seconds() if made else 0.0


def name_taken(kind: str, name: str) -> str:
    """Return the message for a name that another owner's object already uses."""
    return f"{kind} {name} exists and is not this experiment's: delete or rename one of them"


def _prune(observed: Observed, objects: Sequence[Manifest]) -> list[Action]:
    """Return the removals of the experiment's objects that are no longer desired."""
    wanted = {(one["kind"], one["metadata"]["name"]) for one in objects}
    return [
        _remove(there)
        for there in observed.children
        if (there["kind"], there["metadata"]["name"]) not in wanted
        and (owned(there, observed.uid) or _retained(there, observed))
        and not is_terminating(there)
        and not (
            there["kind"] == "PersistentVolumeClaim" and (started(observed) or _inherited(there, observed))
        )
    ]


def _retained(there: Manifest, observed: Observed) -> bool:
    """Whether a claim is the experiment's own and retained, that is, without an owner reference."""
    own = there["kind"] == "PersistentVolumeClaim" and ownership(there, observed) is Ownership.ORPHAN
    return own and retained_by(there) == observed.uid


def _after_the_end(observed: Observed, decided: Plan, objects: Sequence[Manifest]) -> Plan:
    """Keep everything except expired objects (TTL) and Jobs that the operator has ended.

    Whether the claim outlives the experiment can still be changed.
    """
    decided = replace(decided, actions=_reowned(observed, objects))
    jobs = [job for job in (observed.rows.job, observed.job) if job is not None]
    failed = true_condition(observed.experiment, "Failed")
    if jobs and failed and failed["reason"] in _OUR_ENDS:
        return replace(decided, actions=[*decided.actions, *map(_remove, jobs)])
    assert decided.experiment is not None
    ttl, end = (
        decided.experiment.spec.lifecycle.ttl_seconds_after_finished,
        observed.status.get("completionTime"),
    )
    if ttl is None or end is None:
        return decided
    left = ttl - (observed.now - parse_time(end)).total_seconds()
    if left > 0:
        return replace(decided, again=left)
    return replace(decided, actions=[*decided.actions, *_leavings(observed)])


def _reowned(observed: Observed, objects: Sequence[Manifest]) -> Sequence[Action]:
    """Return the action that makes a finished experiment's claim owned or retained, as the spec now says."""
    actions: list[Action] = []
    for wanted in objects:
        there = observed.child(wanted["kind"], wanted["metadata"]["name"])
        if wanted["kind"] != "PersistentVolumeClaim" or there is None or is_terminating(there):
            continue
        manifest = as_retained(_as_there(wanted, there), there, observed.uid)
        goes = bool(manifest["metadata"].get("ownerReferences"))
        if ownership(there, observed) in {Ownership.OURS, Ownership.ORPHAN} and goes is not owned(
            there, observed.uid
        ):
            actions.append(Apply(sealed(manifest), exists=True))
    return tuple(actions)


def _leavings(observed: Observed) -> list[Action]:
    """Return the removals of all of an experiment's objects except its results."""
    return [
        _remove(there)
        for there in observed.children
        if owned(there, observed.uid)
        and not is_terminating(there)
        and there["kind"] != "PersistentVolumeClaim"
    ]


def _carried(wanted: Manifest, there: Manifest) -> Manifest:
    """Return the desired Job with the immutable fields of the existing one.

    A Job created by another version of the operator continues unchanged.
    """
    made = (there["metadata"].get("annotations") or {}).get(TEMPLATE)
    if made == wanted["metadata"]["annotations"][TEMPLATE]:
        return wanted
    fixed = {key: there["spec"][key] for key in _FIXED if key in there["spec"]}
    spec = {key: value for key, value in wanted["spec"].items() if key not in _FIXED}
    metadata = wanted["metadata"] | {"annotations": wanted["metadata"]["annotations"] | {TEMPLATE: made}}
    return wanted | {"metadata": metadata, "spec": spec | fixed}


def _is_queued(job: Manifest) -> bool:
    return QUEUE in (job["metadata"].get("labels") or {})


def _as_placed(manifest: Manifest, there: Manifest) -> Manifest:
    """Return a queued Job's manifest with the existing values of the fields that Kueue manages.

    Kueue writes the pod's placement into the template, which is immutable while the Job runs. If Kueue itself
    put the Job into a default queue, the manifest still contains `suspend`.
    """
    if manifest["kind"] != "Job" or not _is_queued(there):
        return manifest
    kept = (*_FIXED, *(["suspend"] if "suspend" in manifest["spec"] else []))
    found = {key: there["spec"][key] for key in kept if key in there["spec"]}
    return manifest | {"spec": manifest["spec"] | found}


def sealed(manifest: Manifest) -> Manifest:
    """Return a manifest annotated with its own digest and, for a Job, the digest of its immutable part."""
    annotations = dict(manifest["metadata"].get("annotations") or {})
    annotations.pop(APPLIED, None)
    if manifest["kind"] == "Job":
        annotations.setdefault(TEMPLATE, _template_digest(manifest))
    manifest = manifest | {"metadata": manifest["metadata"] | {"annotations": annotations}}
    annotations[APPLIED] = digest(manifest)
    return manifest


def current(there: Manifest, wanted: Manifest) -> bool:
    """Whether an object matches the last apply and has not been changed since."""
    applied = (there["metadata"].get("annotations") or {}).get(APPLIED)
    if applied != wanted["metadata"]["annotations"][APPLIED]:
        return False
    return not _changed(there, wanted)


def _undone(there: Manifest, wanted: Manifest) -> str | None:
    """Return what applying the object again would revert, and who changed it; None if the manifest is new."""
    applied = (there["metadata"].get("annotations") or {}).get(APPLIED)
    if applied != wanted["metadata"]["annotations"][APPLIED]:
        return None
    paths = _changed(there, wanted)
    others = [
        str(entry.get("manager"))
        for entry in there["metadata"].get("managedFields") or ()
        if any(_holds_field(entry.get("fieldsV1") or {}, path) for path in paths)
    ]
    who = ", ".join(sorted(set(others))) or "an admission policy or webhook"
    return f"{', '.join('.'.join(path) for path in paths)} is changed by {who}"


def _holds_field(fields: Manifest, path: Sequence[str]) -> bool:
    """Whether a set of managed fields contains a field or one of its parents."""
    for key in path:
        if f"f:{key}" not in fields:
            return False
        fields = fields[f"f:{key}"]
        if not fields:
            return True
    return True


def _changed(there: Manifest, wanted: Manifest) -> list[tuple[str, ...]]:
    """Return the paths of desired fields that differ. Additional fields are ignored."""
    owners = wanted["metadata"].get("ownerReferences") or ()
    metadata = {key: value for key, value in wanted["metadata"].items() if key != "ownerReferences"}
    wanted = wanted | {"metadata": metadata}
    if wanted["kind"] == "Job":  # immutable fields cannot have changed; `suspend` of a queued Job is Kueue's
        passed = (*_FIXED, *(["suspend"] if _is_queued(there) else []))
        wanted = wanted | {"spec": {key: value for key, value in wanted["spec"].items() if key not in passed}}
    paths = list(_differences(there, wanted))
    missing = any(not owned(there, owner["uid"]) for owner in owners)  # others may own it too
    return [*paths, ("metadata", "ownerReferences")] if missing else paths


def _template_digest(job: Manifest) -> str:
    return digest({key: value for key, value in job["spec"].items() if key in _FIXED})


def _differences(there: Any, wanted: Manifest, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each desired field that differs; a list is compared as a whole."""
    for key, value in wanted.items():
        found = there.get(key)
        if isinstance(value, dict) and isinstance(found, dict):
            yield from _differences(found, value, (*path, key))
        elif not _covers(found, value):
            yield (*path, key)


def _covers(there: Any, wanted: Any) -> bool:
    """Whether everything desired is present; an empty value equals a missing one."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        return all(_covers(there.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(there, list):
        return len(there) == len(wanted) and all(map(_covers, there, wanted))
    if isinstance(wanted, str) and isinstance(there, str) and same_amount(there, wanted):
        return True  # the API server writes 1024Mi as 1Gi
    return bool(there == wanted) or (not there and not wanted)


def _remove(there: Manifest) -> Remove:
    return Remove(there["kind"], there["metadata"]["name"], there["metadata"]["uid"])


def _frozen(observed: Observed, experiment: ScanExperiment) -> str:
    before = applied_spec(observed.child("ConfigMap", config_name_of(experiment.metadata.name)) or {})
    changed = changes(before, frozen_part(experiment)) if before else []
    return (
        f"{', '.join(changed) or 'spec'} was changed after the host of {observed.name} had started, which "
        "would mix results of two specs: undo the change, or delete the experiment and recreate it"
    )
