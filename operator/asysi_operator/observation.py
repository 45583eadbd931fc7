"""What is known of one experiment at one moment: the only input of every decision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum

from asysi.contract.runtime import Container
from asysi.contract.spec import KIND
from asysi.contract.telemetry import RunStatus, read_attempt
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import EXPERIMENT, MANAGED_BY, MANAGER, SPEC
from asysi_operator.manifests.names import ROWS

Said = tuple[str, str, str]
"""Status, reason and message of a condition."""


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
    answers: Mapping[str, RunStatus] = field(default_factory=dict)
    """What the current pod's containers last answered, by name."""
    events: Sequence[Manifest] = ()
    """Warnings about the current pod, or about the Job while it has none, asked for when something is odd."""
    put_out: Sequence[Manifest] = ()
    """Pods that were put out, and have gone since the last look."""
    claims: Sequence[Manifest] = ()
    """Claims that the experiment names or has, whoever made them."""
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
        return sorted(own, key=_age)

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


class Kin(Enum):
    """Whose an object with an experiment's label is."""

    OURS = "ours"
    ORPHAN = "orphan"
    """Ours by its labels, and owned by nobody: its experiment was deleted without it, or it was restored."""
    LEFT = "left"
    """Of an earlier experiment of the name: the garbage collector is at it, if it ever saw that one."""
    FOREIGN = "foreign"


def kin(item: Manifest, observed: Observed) -> Kin:
    """Return whose an object is."""
    owners = item["metadata"].get("ownerReferences") or ()
    if owned(item, observed.uid):
        return Kin.OURS
    labels = item["metadata"].get("labels") or {}
    dead = all(one.get("kind") == KIND and one.get("name") == observed.name for one in owners)
    if labels.get(MANAGED_BY) != MANAGER or labels.get(EXPERIMENT) != observed.name or not dead:
        return Kin.FOREIGN
    return Kin.LEFT if owners else Kin.ORPHAN


def leaving(item: Manifest) -> bool:
    """Whether an object is being deleted."""
    return "deletionTimestamp" in item["metadata"]


def spec_of(job: Manifest) -> str | None:
    """Return the digest of the spec that a Job was made from."""
    return _annotation(job["spec"]["template"], SPEC)


def attempt_of(pod: Manifest) -> int | None:
    """Return the number of a pod's attempt, from 0, as prepare has taken it; None before it has."""
    kind, detail = state_of(pod, Container.PREPARE)
    return read_attempt(detail.get("message") or "") if kind == "terminated" else None


def _age(pod: Manifest) -> tuple[str, bool, int]:
    """Return what sorts pods, oldest first: of two of one second the later has no number yet, or a higher."""
    number = attempt_of(pod)
    return pod["metadata"]["creationTimestamp"], number is None, number or 0


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


def unheard(pod: Manifest) -> bool:
    """Whether the pod's node is not heard of: what is then said of the pod is old.

    The node controller marks such a pod as not ready, and leaves what the kubelet said of its containers.
    """
    ready, containers_ready = condition(pod, "Ready"), condition(pod, "ContainersReady")
    return bool(ready and containers_ready) and (
        ready["status"] != "True" and containers_ready["status"] == "True"  # type: ignore[index]
    )


def rfc3339(moment: datetime) -> str:
    """Return a moment as Kubernetes writes it, in whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """Return the moment that Kubernetes wrote."""
    return datetime.fromisoformat(text)


def _annotation(item: Manifest, key: str) -> str | None:
    value = (item.get("metadata", {}).get("annotations") or {}).get(key)
    return None if value is None else str(value)
