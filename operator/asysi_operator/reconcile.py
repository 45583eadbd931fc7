"""From what is wanted and what is there to what to do: level-triggered, deterministic, and pure.

A plan is a list of writes in order. Any prefix of it may have happened when the operator dies: planning again
from what is then there continues it. Names are fixed and removals name the identity of what they remove, so
what is observed too late can neither double nor delete anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import msgspec

from asysi.contract.canonical import digest
from asysi.contract.errors import ConfigError
from asysi.contract.frozen import changes, frozen_part, respelled
from asysi.contract.identity import output_path
from asysi.contract.quantity import same_amount
from asysi.contract.spec import ScanExperiment
from asysi_operator.acceptance import accept, notes
from asysi_operator.allowed import Allowed, trespasses
from asysi_operator.manifests import IMAGE, PULL_POLICIES, build
from asysi_operator.manifests.claim import as_retained, retained_by
from asysi_operator.manifests.config_map import applied_spec
from asysi_operator.manifests.environment import output_of
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import QUEUE, queue_of
from asysi_operator.manifests.names import ROWS, config_name_of, job_name, rows_name
from asysi_operator.observation import (
    Kin,
    Observed,
    began,
    holds,
    kin,
    leaving,
    owned,
    parse_time,
    spec_of,
)

APPLIED = "asysi.dev/applied"
"""Annotation: digest of an object as it was applied. It shows what no comparison can: a field that went."""
TEMPLATE = "asysi.dev/template"
"""Annotation of the Job: digest of what of it cannot change, as this operator rendered it."""
START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
BAD_CONFIGURATION = "BadConfiguration"
_OUR_ENDS = {START_DEADLINE_EXCEEDED, BAD_CONFIGURATION}
"""Reasons of the condition Failed when the operator itself ends an experiment: a host that does not start in
time, and a sidecar that refuses its configuration, which Kubernetes would start again for ever."""
PATIENCE = 1.0
"""Seconds until something that is going away is looked at again, should no event come."""
LEFT_SECONDS = 30.0
"""Seconds in which the garbage collector takes what an earlier experiment of the name has left. What it does
not take has come back from a backup, and is adopted."""
_PASSING = frozenset({"resourceVersion", "managedFields"})
_FIXED = (
    *("completions", "completionMode", "backoffLimit", "backoffLimitPerIndex"),
    *("podReplacementPolicy", "podFailurePolicy", "template"),
)
"""Fields of a Job's spec that the API server, or the meaning of an attempt, does not let change."""


@dataclass(frozen=True)
class OperatorSettings:
    """What the operator was started with."""

    image: str = IMAGE
    pull_policy: str = PULL_POLICIES[0]
    allowed: Allowed = field(default_factory=Allowed)
    readers: Sequence[Manifest] | None = None
    """Peers of a NetworkPolicy that may call the pods' ports; None lets everybody."""


@dataclass(frozen=True)
class Apply:
    """Make an object be as its manifest says."""

    manifest: Manifest
    exists: bool
    """Whether it was seen; if not, it must not be taken from somebody else."""
    undoes: str | None = None
    """What somebody else has changed of it since it was applied, and who; None when nobody has."""


@dataclass(frozen=True)
class Remove:
    """Delete this very object; a Job goes after its pods."""

    kind: str
    name: str
    uid: str


Action = Apply | Remove


def concurrent(actions: Sequence[Action]) -> list[list[Action]]:
    """Divide a plan into groups that follow one another; the writes of a group may happen at the same time.

    Objects that a pod needs do not depend on each other; the Job comes after all of them. Removals keep
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
    """Why a spec is not acted on."""

    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What to do now."""

    actions: Sequence[Action] = ()
    experiment: ScanExperiment | None = None
    """The experiment, when its spec is accepted."""
    refusal: SpecRefusal | None = None
    notes: Sequence[str] = ()
    """What is accepted without effect."""
    blocked: str | None = None
    """Whose object has a name that is needed: the rest of the plan waits until somebody clears it away."""
    again: float | None = None
    """Seconds until planning again may find something to do, without any event."""
    stale: bool = field(default=False)
    """Whether the Job that is there belongs to a spec that is no more, or is being removed."""


def plan(observed: Observed, settings: OperatorSettings) -> Plan:
    """Return what to do about an experiment."""
    if leaving(observed.experiment):
        return Plan()  # its objects go with it: they name it as their owner
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
    # What runs goes on though less is allowed by now: its Job is not asked for again.
    beyond = trespasses(experiment, settings.allowed) if job is None or changed else []
    if beyond:
        return replace(decided, refusal=SpecRefusal("NotAllowed", "; ".join(beyond)))
    return _go_on(observed, decided, objects, job if changed else None)


def _go_on(observed: Observed, decided: Plan, objects: Sequence[Manifest], old: Manifest | None) -> Plan:
    """Return what is to be done next for an experiment that may run: a Job of another spec goes first."""
    rows = _rows(objects)
    old = old or _outdated(observed, rows)
    if old is not None:
        return replace(decided, actions=[_remove(old)], again=PATIENCE, stale=True)
    due = _due(observed, objects, rows)
    if _held(decided):
        due = [one for one in due if one["kind"] != "Job"]
    return _towards(observed, decided, due)


def _held(decided: Plan) -> bool:
    """Whether an experiment of a queue is suspended by its spec: then it has no Job.

    Kueue starts what it has admitted. A Job that only we suspend it would resume, again and again.
    """
    experiment = decided.experiment
    return experiment is not None and experiment.spec.lifecycle.suspend and queue_of(experiment) is not None


def _text(tree: Manifest) -> bytes:
    """Return what a spec is accepted by, without what changes whenever anything is written."""
    metadata = {key: value for key, value in tree["metadata"].items() if key not in _PASSING}
    rest = {key: value for key, value in tree.items() if key not in {"metadata", "status"}}
    return msgspec.json.encode(rest | {"metadata": metadata})


@lru_cache(maxsize=64)
def _accepted(text: bytes) -> ScanExperiment:
    """Return the experiment; one that is new is looked at several times within a second."""
    return accept(msgspec.json.decode(text))


@lru_cache(maxsize=64)
def _rendered(
    text: bytes, output: str, image: str, pull_policy: str, readers: bytes | None
) -> tuple[Manifest, ...]:
    """Return the sealed objects of an experiment, in the order of `build`: shared, so never to be changed."""
    peers = None if readers is None else msgspec.json.decode(readers)
    objects = build(_accepted(text), image=image, pull_policy=pull_policy, output=output, readers=peers)
    return tuple(map(sealed, objects))


def _output(observed: Observed, experiment: ScanExperiment) -> str:
    """Return the folder of the results on the volume: what has begun keeps its place.

    A Job that is there says where its results are, the status says it of one that was lost. Experiments that
    began before there were folders of their own have no such status: theirs is the root.
    """
    jobs = (observed.child("Job", name) for name in (job_name(experiment), rows_name(experiment)))
    there = next((job for job in jobs if job is not None and owned(job, observed.uid)), None)
    if there is not None:
        return output_of(there)
    if not started(observed):
        return str(output_path(experiment))
    return str(observed.status.get("output") or "").partition("/")[2] or "."


def _as_applied(observed: Observed) -> Manifest:
    """Return the experiment with its quantities spelled as they were when its objects were made."""
    spec = observed.experiment.get("spec")
    before = applied_spec(observed.child("ConfigMap", config_name_of(observed.name)) or {})
    if not before or not isinstance(spec, dict):
        return observed.experiment
    return observed.experiment | {"spec": respelled(spec, before)}


def started(observed: Observed) -> bool:
    """Whether the host has ever run: from then on the output holds what came of this spec."""
    return bool(observed.status.get("startTime")) or any(began(pod, "host") for pod in observed.attempts)


def ended(observed: Observed, *, changed: bool = False) -> bool:
    """Whether the recorded end still stands. An edit before the host's first start begins anew."""
    if holds(observed.experiment, "Complete"):
        return True
    failed = holds(observed.experiment, "Failed")
    if failed is None:
        return False
    if observed.status.get("startTime"):
        return True
    if observed.child("Job", observed.name) is not None:
        return not changed
    return bool(failed.get("observedGeneration") == observed.generation)


def _rows(objects: Sequence[Manifest]) -> Manifest | None:
    """Return the pipeline's Job, if there is a pipeline: all Jobs but the last are such."""
    return next((one for one in objects[:-1] if one["kind"] == "Job"), None)


def _outdated(observed: Observed, rows: Manifest | None) -> Manifest | None:
    """Return the pipeline's Job if it is of another spec, and nobody reads yet what it makes."""
    there = observed.rows.job
    if rows is None or there is None or observed.job is not None or started(observed):
        return None
    return there if spec_of(there) != spec_of(rows) else None


def _due(observed: Observed, objects: Sequence[Manifest], rows: Manifest | None) -> list[Manifest]:
    """Return the objects whose time has come: the pipeline's Job, and once it has completed the other one.

    A pipeline whose Job was lost runs again, and finds in its ledgers what it has done; not any more once the
    experiment's Job is there.
    """
    if rows is None:
        return list(objects)
    own = objects[-1]
    begun = started(observed) or observed.child("Job", own["metadata"]["name"]) is not None
    there = observed.rows.job
    if begun:
        return [one for one in objects if one is not rows or there is not None]
    complete = there is not None and holds(there, "Complete") is not None
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
        whose = kin(there, observed)
        if wanted["kind"] == "PersistentVolumeClaim":
            wanted = as_retained(wanted, there, observed.uid)
        if leaving(there) or (whose is Kin.LEFT and _age(observed) < LEFT_SECONDS):
            # Of an earlier experiment of this name, or on its way out: the garbage collector is at it.
            return replace(decided, actions=actions, again=PATIENCE, stale=wanted["kind"] == "Job")
        if whose is Kin.FOREIGN:
            taken = name_taken(wanted["kind"], wanted["metadata"]["name"])
            return replace(decided, actions=actions, blocked=taken)
        if whose is Kin.LEFT or (whose is Kin.ORPHAN and wanted["metadata"].get("ownerReferences")):
            actions.append(_adopt(there, wanted))
            if isinstance(actions[-1], Remove):
                return replace(decided, actions=actions, again=PATIENCE, stale=True)
            continue
        if wanted["kind"] == "PersistentVolumeClaim" and not _covers(there["spec"], wanted["spec"]):
            used = observed.job or observed.child("Job", f"{observed.name}{ROWS}")
            if used is None and not started(observed) and not _inherited(there, observed):
                return replace(decided, actions=[*actions, _remove(there)], again=PATIENCE)
            # Its size is part of the spec; what was changed by hand is the volume's affair.
            wanted = _as_there(wanted, there)  # as far as it can still change
        if wanted["kind"] == "Job":
            wanted = _carried(wanted, there)  # as far as it can still change
        manifest = wanted if wanted is rendered else sealed(wanted)
        if not current(there, manifest):
            undoes = _undone(there, manifest)
            actions.append(Apply(_as_placed(manifest, there), exists=True, undoes=undoes))
    return replace(decided, actions=[*actions, *_prune(observed, objects)])


def _adopt(there: Manifest, wanted: Manifest) -> Action:
    """Return what makes an orphan the experiment's own; a Job of another spec gives way.

    A claim stays as it is, with what is on it.
    """
    if wanted["kind"] == "Job":
        if spec_of(there) != spec_of(wanted):
            return _remove(there)
        wanted = _carried(wanted, there)
    if wanted["kind"] == "PersistentVolumeClaim":
        wanted = _as_there(wanted, there)
    return Apply(sealed(wanted), exists=True)


def _as_there(wanted: Manifest, there: Manifest) -> Manifest:
    """Return a wanted claim with the size, class and access modes of the one that is there."""
    return wanted | {"spec": {key: there["spec"].get(key, wanted["spec"][key]) for key in wanted["spec"]}}


def _inherited(claim: Manifest, observed: Observed) -> bool:
    """Whether a claim is older than the experiment: it may hold the results of an earlier one."""
    made = observed.experiment["metadata"].get("creationTimestamp")
    return bool(made and claim["metadata"]["creationTimestamp"] < made)


def _age(observed: Observed) -> float:
    made = observed.experiment["metadata"].get("creationTimestamp")
    return (observed.now - parse_time(made)).total_seconds() if made else 0.0


def name_taken(kind: str, name: str) -> str:
    """Return what is said when the name of an object is somebody else's."""
    return f"{kind} {name} exists and is not this experiment's: delete or rename one of them"


def _prune(observed: Observed, objects: Sequence[Manifest]) -> list[Action]:
    """Return the removal of the experiment's own objects that nothing wants any more."""
    wanted = {(one["kind"], one["metadata"]["name"]) for one in objects}
    return [
        _remove(there)
        for there in observed.children
        if (there["kind"], there["metadata"]["name"]) not in wanted
        and (owned(there, observed.uid) or _retained(there, observed))
        and not leaving(there)
        and not (
            there["kind"] == "PersistentVolumeClaim" and (started(observed) or _inherited(there, observed))
        )
    ]


def _retained(there: Manifest, observed: Observed) -> bool:
    """Whether a claim is the experiment's own, which it would leave behind."""
    own = there["kind"] == "PersistentVolumeClaim" and kin(there, observed) is Kin.ORPHAN
    return own and retained_by(there) == observed.uid


def _after_the_end(observed: Observed, decided: Plan, objects: Sequence[Manifest]) -> Plan:
    """Keep everything as it is, but for what has outlived its time, and Jobs that the operator has ended.

    Whether the claim outlives the experiment may still be decided otherwise.
    """
    decided = replace(decided, actions=_reowned(observed, objects))
    jobs = [job for job in (observed.rows.job, observed.job) if job is not None]
    failed = holds(observed.experiment, "Failed")
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
    """Return what makes the claim of a finished experiment go with it, or stay, as is wanted now."""
    actions: list[Action] = []
    for wanted in objects:
        there = observed.child(wanted["kind"], wanted["metadata"]["name"])
        if wanted["kind"] != "PersistentVolumeClaim" or there is None or leaving(there):
            continue
        manifest = as_retained(_as_there(wanted, there), there, observed.uid)
        goes = bool(manifest["metadata"].get("ownerReferences"))
        if kin(there, observed) in {Kin.OURS, Kin.ORPHAN} and goes is not owned(there, observed.uid):
            actions.append(Apply(sealed(manifest), exists=True))
    return tuple(actions)


def _leavings(observed: Observed) -> list[Action]:
    """Return the removal of all that an experiment ran with, but for its results."""
    return [
        _remove(there)
        for there in observed.children
        if owned(there, observed.uid) and not leaving(there) and there["kind"] != "PersistentVolumeClaim"
    ]


def _carried(wanted: Manifest, there: Manifest) -> Manifest:
    """Return the wanted Job with everything that cannot change as it is there.

    A Job that another version of the operator has made goes on as it was made.
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
    """Return a manifest of a queued Job with what is Kueue's as it is there.

    Kueue writes into the pod's template where the pod shall run. It cannot be changed while that runs. Where
    Kueue itself has put the Job into a default queue, its `suspend` was ours once.
    """
    if manifest["kind"] != "Job" or not _is_queued(there):
        return manifest
    kept = (*_FIXED, *(["suspend"] if "suspend" in manifest["spec"] else []))
    found = {key: there["spec"][key] for key in kept if key in there["spec"]}
    return manifest | {"spec": manifest["spec"] | found}


def sealed(manifest: Manifest) -> Manifest:
    """Return a manifest that carries its own digest, and a Job that of its fixed part."""
    annotations = dict(manifest["metadata"].get("annotations") or {})
    annotations.pop(APPLIED, None)
    if manifest["kind"] == "Job":
        annotations.setdefault(TEMPLATE, _template_digest(manifest))
    manifest = manifest | {"metadata": manifest["metadata"] | {"annotations": annotations}}
    annotations[APPLIED] = digest(manifest)
    return manifest


def current(there: Manifest, wanted: Manifest) -> bool:
    """Whether an object is as it was applied, and nobody has changed it since."""
    applied = (there["metadata"].get("annotations") or {}).get(APPLIED)
    if applied != wanted["metadata"]["annotations"][APPLIED]:
        return False
    return not _changed(there, wanted)


def _undone(there: Manifest, wanted: Manifest) -> str | None:
    """Return what applying an object again undoes, and whose work that is; None when it brings news."""
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
    """Whether a set of managed fields has a field in it, or the whole that the field is a part of."""
    for key in path:
        if f"f:{key}" not in fields:
            return False
        fields = fields[f"f:{key}"]
        if not fields:
            return True
    return True


def _changed(there: Manifest, wanted: Manifest) -> list[tuple[str, ...]]:
    """Return the paths of what is wanted and is not there. What else is there is not ours to look at."""
    owners = wanted["metadata"].get("ownerReferences") or ()
    metadata = {key: value for key, value in wanted["metadata"].items() if key != "ownerReferences"}
    wanted = wanted | {"metadata": metadata}
    if wanted["kind"] == "Job":  # what of it is fixed cannot have been changed, and a queue's is the queue's
        passed = (*_FIXED, *(["suspend"] if _is_queued(there) else []))
        wanted = wanted | {"spec": {key: value for key, value in wanted["spec"].items() if key not in passed}}
    paths = list(_differences(there, wanted))
    missing = any(not owned(there, owner["uid"]) for owner in owners)  # others may own it too
    return [*paths, ("metadata", "ownerReferences")] if missing else paths


def _template_digest(job: Manifest) -> str:
    return digest({key: value for key, value in job["spec"].items() if key in _FIXED})


def _differences(there: Any, wanted: Manifest, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield where something wanted is not there: the path to the field, a list being one whole."""
    for key, value in wanted.items():
        found = there.get(key)
        if isinstance(value, dict) and isinstance(found, dict):
            yield from _differences(found, value, (*path, key))
        elif not _covers(found, value):
            yield (*path, key)


def _covers(there: Any, wanted: Any) -> bool:
    """Whether everything wanted is there; an empty value is as good as none."""
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
        f"{', '.join(changed) or 'spec'} was changed after the host of {observed.name} had started, and its "
        "results of two specs would be mixed: undo the change, or delete the experiment and recreate it"
    )
