"""What is known of one experiment at one moment: the only input of every decision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from asysi_operator.answers import Answer
from asysi_operator.manifests.environment import FAILURES
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import FIRST_ATTEMPT, SPEC
from asysi_operator.manifests.names import ROWS


@dataclass(frozen=True)
class Observed:
    """An experiment, its objects, and what its pods have said. Any part may be stale."""

    experiment: Manifest
    """The ScanExperiment as the API server has it."""
    now: datetime
    children: Sequence[Manifest] = ()
    """Objects that carry the experiment's label, whoever owns them; no pods."""
    pods: Sequence[Manifest] = ()
    """Pods that carry the label."""
    answers: Mapping[str, Answer] = field(default_factory=dict)
    """What the current pod's containers last answered, by name."""
    events: Sequence[Manifest] = ()
    """Warnings about the current pod, or about the Job while it has none, asked for when something is odd."""
    suffix: str = ""
    """Of the name of the Job that `job`, `attempts` and `pod` are about: ROWS is the pipeline's."""

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return str(self.experiment["metadata"]["name"])

    @property
    def uid(self) -> str:
        """Identity of the experiment: another one of the same name has another."""
        return str(self.experiment["metadata"]["uid"])

    @property
    def generation(self) -> int:
        """Generation of the spec."""
        return int(self.experiment["metadata"].get("generation", 1))

    @property
    def status(self) -> Manifest:
        """The status recorded last."""
        return dict(self.experiment.get("status") or {})

    @property
    def job(self) -> Manifest | None:
        """The experiment's own Job, unless it is going away."""
        found = self.child("Job", f"{self.name}{self.suffix}")
        return found if found and owned(found, self.uid) and not leaving(found) else None

    def child(self, kind: str, name: str) -> Manifest | None:
        """Return an object with the label, whoever owns it."""
        return next(
            (one for one in self.children if one["kind"] == kind and one["metadata"]["name"] == name), None
        )

    @property
    def attempts(self) -> list[Manifest]:
        """Pods of the experiment's own Job, oldest first."""
        job = self.job
        own = [pod for pod in self.pods if job and owned(pod, job["metadata"]["uid"])]
        return sorted(own, key=lambda pod: (pod["metadata"]["creationTimestamp"], attempt_of(pod)))

    @property
    def pod(self) -> Manifest | None:
        """The current attempt's pod; of the pipeline's many one that is on a node, if any is."""
        placed = [pod for pod in self.attempts if self.suffix and holds(pod, "PodScheduled")]
        return next(reversed(placed or self.attempts), None)

    @property
    def rows(self) -> "Observed":
        """The same, but about the pipeline's Job."""
        return replace(self, suffix=ROWS)

    @property
    def stage(self) -> "Observed":
        """The same, about the Job that matters now: the pipeline's, until it has completed."""
        job = self.rows.job
        before = self.job is None and job is not None and holds(job, "Complete") is None
        return self.rows if before else self


def owned(item: Manifest, uid: str) -> bool:
    """Whether the object with `uid` owns `item`."""
    return any(owner.get("uid") == uid for owner in item["metadata"].get("ownerReferences") or ())


def leaving(item: Manifest) -> bool:
    """Whether an object is being deleted."""
    return "deletionTimestamp" in item["metadata"]


def spec_of(job: Manifest) -> str | None:
    """Return the digest of the spec that a Job was made from."""
    return _annotation(job["spec"]["template"], SPEC)


def first_attempt(job: Manifest) -> int:
    """Return the number that a Job counts its attempts from."""
    return _number(_annotation(job["spec"]["template"], FIRST_ATTEMPT))


def attempt_of(pod: Manifest) -> int:
    """Return the number of a pod's attempt, from 0."""
    return _number(_annotation(pod, FIRST_ATTEMPT)) + _number(_annotation(pod, FAILURES))


def containers(pod: Manifest) -> dict[str, Manifest]:
    """Return the status of each container by name, init containers first."""
    status = pod.get("status") or {}
    found = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return {one["name"]: one for one in found}


def state_of(pod: Manifest, container: str) -> tuple[str, Manifest]:
    """Return waiting, running or terminated and its details; unknown before the node has said anything."""
    state = containers(pod).get(container, {}).get("state") or {}
    return next(iter(state.items()), ("unknown", {}))


def began(pod: Manifest, container: str) -> str | None:
    """Return when a container first ran, as far as the pod tells."""
    status = containers(pod).get(container, {})
    for state in (status.get("lastState") or {}, status.get("state") or {}):
        for detail in state.values():
            if when := (detail or {}).get("startedAt"):
                return str(when)
    return None


def condition(item: Manifest, kind: str) -> Manifest | None:
    """Return a condition of an object's status by its type."""
    found: Sequence[Manifest] = (item.get("status") or {}).get("conditions") or ()
    return next((one for one in found if one["type"] == kind), None)


def holds(item: Manifest, kind: str) -> Manifest | None:
    """Return a condition of an object's status if it is True."""
    found = condition(item, kind)
    return found if found and found["status"] == "True" else None


def rfc3339(moment: datetime) -> str:
    """Return a moment as Kubernetes writes it, in whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """Return the moment that Kubernetes wrote."""
    return datetime.fromisoformat(text)


def _annotation(item: Manifest, key: str) -> str | None:
    value = (item.get("metadata", {}).get("annotations") or {}).get(key)
    return None if value is None else str(value)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
