"""From what is wanted and what is there to what to do: level-triggered, deterministic, and pure.

A plan is a list of writes in order. Any prefix of it may have happened when the operator dies: planning again
from what is then there continues it. Names are fixed and removals name the identity of what they remove, so
what is observed too late can neither double nor delete anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from asysi.contract.canonical import digest
from asysi.contract.errors import ConfigError
from asysi.contract.frozen import changes, frozen_part
from asysi.contract.identity import output_path
from asysi.contract.spec import ScanExperiment
from asysi_operator.acceptance import accept, notes
from asysi_operator.manifests import IMAGE, PULL_POLICIES, build
from asysi_operator.manifests.config_map import applied_spec
from asysi_operator.manifests.environment import output_of
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import FIRST_ATTEMPT, SPEC, spec_digest
from asysi_operator.manifests.names import ROWS, config_name, job_name, rows_name
from asysi_operator.observation import (
    Observed,
    began,
    first_attempt,
    holds,
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
_FIXED = (
    *("completions", "completionMode", "backoffLimit", "backoffLimitPerIndex"),
    *("podReplacementPolicy", "podFailurePolicy", "template"),
)
"""Fields of a Job's spec that the API server, or the meaning of an attempt, does not let change."""


@dataclass(frozen=True)
class Settings:
    """What the operator was started with."""

    image: str = IMAGE
    pull_policy: str = PULL_POLICIES[0]


@dataclass(frozen=True)
class Apply:
    """Make an object be as its manifest says."""

    manifest: Manifest
    exists: bool
    """Whether it was seen; if not, it must not be taken from somebody else."""


@dataclass(frozen=True)
class Remove:
    """Delete this very object; a Job goes after its pods."""

    kind: str
    name: str
    uid: str


Action = Apply | Remove


@dataclass(frozen=True)
class Refusal:
    """Why a spec is not acted on."""

    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What to do now."""

    actions: Sequence[Action] = ()
    experiment: ScanExperiment | None = None
    """The experiment, when its spec is accepted."""
    refusal: Refusal | None = None
    notes: Sequence[str] = ()
    """What is accepted without effect."""
    again: float | None = None
    """Seconds until planning again may find something to do, without any event."""
    stale: bool = field(default=False)
    """Whether the Job that is there belongs to a spec that is no more, or is being removed."""


def plan(observed: Observed, settings: Settings) -> Plan:
    """Return what to do about an experiment."""
    if leaving(observed.experiment):
        return Plan()  # its objects go with it: they name it as their owner
    try:
        experiment = accept(observed.experiment)
        objects = build(
            experiment,
            image=settings.image,
            pull_policy=settings.pull_policy,
            first_attempt=_first(observed, suspend=experiment.spec.lifecycle.suspend),
            output=_output(observed, experiment),
        )
    except ConfigError as error:
        return Plan(refusal=Refusal("Invalid", str(error)))
    decided = Plan(experiment=experiment, notes=notes(experiment))
    job = observed.job
    changed = job is not None and spec_of(job) != spec_digest(experiment)
    if changed and started(observed):
        return replace(decided, refusal=Refusal("SpecIsFrozen", _frozen(observed, experiment)))
    if ended(observed, changed=changed):
        return _after_the_end(observed, decided)
    rows = _rows(objects)
    old = job if changed else _outdated(observed, rows)
    if old is not None:
        return replace(decided, actions=[_remove(old)], again=PATIENCE, stale=True)
    return _towards(observed, decided, _due(observed, objects, rows))


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
    """Return the writes that are missing, in the order of `objects`: the Job comes last."""
    actions: list[Action] = []
    for wanted in objects:
        there = observed.child(wanted["kind"], wanted["metadata"]["name"])
        if there is None:
            actions.append(Apply(sealed(wanted), exists=False))
            continue
        if leaving(there) or not owned(there, observed.uid):
            # Of an earlier experiment of this name, or on its way out: the garbage collector is at it.
            return replace(decided, actions=actions, again=PATIENCE, stale=wanted["kind"] == "Job")
        if wanted["kind"] == "PersistentVolumeClaim" and not _covers(there["spec"], wanted["spec"]):
            used = observed.job or observed.child("Job", f"{observed.name}{ROWS}")
            if used is None and not started(observed):
                return replace(decided, actions=[*actions, _remove(there)], again=PATIENCE)
            continue  # its size is part of the spec; what was changed by hand is the volume's affair
        if wanted["kind"] == "Job":
            wanted = _carried(wanted, there)  # noqa: PLW2901 - the same object, as far as it can still change
        manifest = sealed(wanted)
        if not current(there, manifest):
            actions.append(Apply(manifest, exists=True))
    return replace(decided, actions=[*actions, *_prune(observed, objects)])


def _prune(observed: Observed, objects: Sequence[Manifest]) -> list[Action]:
    """Return the removal of the experiment's own objects that nothing wants any more."""
    wanted = {(one["kind"], one["metadata"]["name"]) for one in objects}
    return [
        _remove(there)
        for there in observed.children
        if (there["kind"], there["metadata"]["name"]) not in wanted
        and owned(there, observed.uid)
        and not leaving(there)
        and not (there["kind"] == "PersistentVolumeClaim" and started(observed))
    ]


def _after_the_end(observed: Observed, decided: Plan) -> Plan:
    """Keep everything as it is, but for Jobs whose time to live is over or that the operator has ended."""
    jobs = [job for job in (observed.rows.job, observed.job) if job is not None]
    failed = holds(observed.experiment, "Failed")
    if not jobs:
        return decided
    if failed and failed["reason"] in _OUR_ENDS:
        return replace(decided, actions=[_remove(job) for job in jobs])
    assert decided.experiment is not None
    ttl, end = (
        decided.experiment.spec.lifecycle.ttl_seconds_after_finished,
        observed.status.get("completionTime"),
    )
    if ttl is None or end is None:
        return decided
    left = ttl - (observed.now - parse_time(end)).total_seconds()
    return (
        replace(decided, actions=[_remove(job) for job in jobs])
        if left <= 0
        else replace(decided, again=left)
    )


def _first(observed: Observed, *, suspend: bool) -> int:
    """Return the number that the Job counts its attempts from: what has run before keeps its own."""
    job, recorded = observed.job, observed.status.get("attempt")
    before = int(recorded) + 1 if recorded is not None and started(observed) else 0
    if job is None:
        return before
    resumed = job["spec"].get("suspend") and not suspend and "startTime" not in (job.get("status") or {})
    if not resumed:
        return first_attempt(job)
    # A suspended Job's pod does not count as failed, and those that did may be forgotten: numbers would come
    # twice. Counting on from here may leave one out, which harms nobody.
    return max(first_attempt(job), before)


def _carried(wanted: Manifest, there: Manifest) -> Manifest:
    """Return the wanted Job with everything that cannot change as it is there.

    A Job that another version of the operator has made goes on as it was made.
    """
    made = (there["metadata"].get("annotations") or {}).get(TEMPLATE)
    if made == _template_digest(wanted):
        return wanted
    fixed = {key: there["spec"][key] for key in _FIXED if key in there["spec"]}
    template = fixed["template"]
    counted = template["metadata"] | {
        "annotations": (template["metadata"].get("annotations") or {})
        | {FIRST_ATTEMPT: wanted["spec"]["template"]["metadata"]["annotations"][FIRST_ATTEMPT]}
    }
    fixed["template"] = template | {"metadata": counted}
    spec = {key: value for key, value in wanted["spec"].items() if key not in _FIXED}
    metadata = wanted["metadata"] | {
        "annotations": wanted["metadata"].get("annotations", {}) | {TEMPLATE: made}
    }
    return wanted | {"metadata": metadata, "spec": spec | fixed}


def sealed(manifest: Manifest) -> Manifest:
    """Return a manifest that carries its own digest, and a Job that of its fixed part."""
    annotations = dict(manifest["metadata"].get("annotations") or {})
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
    if wanted["kind"] == "Job":  # what of it is fixed cannot have been changed
        wanted = wanted | {"spec": {key: value for key, value in wanted["spec"].items() if key not in _FIXED}}
    return _covers(there, wanted)


def _template_digest(job: Manifest) -> str:
    fixed: dict[str, Any] = {key: value for key, value in job["spec"].items() if key in _FIXED}
    metadata = fixed["template"]["metadata"]
    kept = {key: value for key, value in metadata["annotations"].items() if key == SPEC}
    return digest(fixed | {"template": fixed["template"] | {"metadata": metadata | {"annotations": kept}}})


def _covers(there: Any, wanted: Any) -> bool:
    """Whether everything wanted is there; an empty value is as good as none."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        return all(_covers(there.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(there, list):
        return len(there) == len(wanted) and all(map(_covers, there, wanted))
    return bool(there == wanted) or (not there and not wanted)


def _remove(there: Manifest) -> Remove:
    return Remove(there["kind"], there["metadata"]["name"], there["metadata"]["uid"])


def _frozen(observed: Observed, experiment: ScanExperiment) -> str:
    before = applied_spec(observed.child("ConfigMap", config_name(experiment)) or {})
    changed = changes(before, frozen_part(experiment)) if before else []
    return (
        f"{', '.join(changed) or 'spec'} was changed after the host of {observed.name} had started, and its "
        "results would be of two specs: undo the change, or delete the experiment and create it anew"
    )
