"""A snapshot of one experiment and its objects: the only input of every decision."""

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

ConditionValue = tuple[str, str, str]
"""Status, reason and message of a condition."""


@dataclass(frozen=True)
class Observed:
    """An experiment, its objects, and the status its pods reported. Any part may be stale."""

    experiment: Manifest
    """The ScanExperiment as the API server has it."""
    now: datetime
    children: Sequence[Manifest] = ()
    """Objects with the experiment's label, whoever owns them; pods excluded."""
    pods: Sequence[Manifest] = ()
    """Pods with the label."""
    answers: Mapping[str, RunStatus] = field(default_factory=dict)
    """Last status reported by the current pod's containers, by container name."""
    events: Sequence[Manifest] = ()
    """Events about the current pod, or about the Job if there is no pod; read only for unexplained states."""
    put_out: Sequence[Manifest] = ()
    """Pods that were evicted and deleted since the last recorded status."""
    claims: Sequence[Manifest] = ()
    """Claims that the experiment references or owns, whoever created them."""
    suffix: str = ""
    """Name suffix of the Job that `job`, `attempts` and `pod` refer to; ROWS selects the pipeline's Job."""

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return str(self.experiment["metadata"]["name"])

    @property
    def uid(self) -> str:
        """UID of the experiment; a recreated experiment of the same name has a different one."""
        return str(self.experiment["metadata"]["uid"])

    @property
    def generation(self) -> int:
        """Generation of the spec."""
        return int(self.experiment["metadata"].get("generation", 1))

    @property
    def status(self) -> Manifest:
        """The last recorded status."""
        return dict(self.experiment.get("status") or {})

    @property
    def job(self) -> Manifest | None:
        """The experiment's own Job, unless it is being deleted."""
        found = self.child("Job", f"{self.name}{self.suffix}")
        return found if found and owned(found, self.uid) and not is_terminating(found) else None

    def child(self, kind: str, name: str) -> Manifest | None:
        """Return a labelled object by kind and name, whoever owns it."""
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
        """The current attempt's pod; for the pipeline, preferably a pod that is scheduled."""
        placed = [pod for pod in self.attempts if self.suffix and true_condition(pod, "PodScheduled")]
        return next(reversed(placed or self.attempts), None)

    @property
    def rows(self) -> "Observed":
        """The same snapshot, viewed for the pipeline's Job."""
        return replace(self, suffix=ROWS)

    @property
    def stage(self) -> "Observed":
        """The same snapshot, viewed for the current Job: the pipeline's until it has completed."""
        job = self.rows.job
        before = self.job is None and job is not None and true_condition(job, "Complete") is None
        return self.rows if before else self


def owned(item: Manifest, uid: str) -> bool:
    """Whether the object with `uid` owns `item`."""
    return any(owner.get("uid") == uid for owner in item["metadata"].get("ownerReferences") or ())


class Ownership(Enum):
    """Ownership of an object with an experiment's label."""

    OURS = "ours"
    ORPHAN = "orphan"
    """Ours by its labels but without an owner: its experiment was deleted and left it, or it was restored."""
    LEFT = "left"
    """Owned by an earlier experiment of this name: the garbage collector deletes it if it knew that one."""
    FOREIGN = "foreign"


def ownership(item: Manifest, observed: Observed) -> Ownership:
    """Return the ownership of an object."""
    owners = item["metadata"].get("ownerReferences") or ()
    if owned(item, observed.uid):
        return Ownership.OURS
    labels = item["metadata"].get("labels") or {}
    dead = all(one.get("kind") == KIND and one.get("name") == observed.name for one in owners)
    if labels.get(MANAGED_BY) != MANAGER or labels.get(EXPERIMENT) != observed.name or not dead:
        return Ownership.FOREIGN
    return Ownership.LEFT if owners else Ownership.ORPHAN


def is_terminating(item: Manifest) -> bool:
    """Whether an object is being deleted."""
    return "deletionTimestamp" in item["metadata"]


def spec_of(job: Manifest) -> str | None:
    """Return the digest of the spec that a Job was created from."""
    return _annotation(job["spec"]["template"], SPEC)


def attempt_of(pod: Manifest) -> int | None:
    """Return a pod's attempt number, from 0, as assigned by prepare; None before prepare has ended."""
    kind, detail = state_of(pod, Container.PREPARE)
    return read_attempt(detail.get("message") or "") if kind == "terminated" else None


def _age(pod: Manifest) -> tuple[str, bool, int]:
    """Sort key, oldest first: of pods created in the same second, the later has no number or a higher one."""
    number = attempt_of(pod)
    return pod["metadata"]["creationTimestamp"], number is None, number or 0


def containers(pod: Manifest) -> dict[str, Manifest]:
    """Return the status of each container by name, init containers first."""
    status = pod.get("status") or {}
    found = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return {one["name"]: one for one in found}


def state_of(pod: Manifest, container: str) -> tuple[str, Manifest]:
    """Return waiting, running or terminated and its details; unknown before the kubelet has reported."""
    state = containers(pod).get(container, {}).get("state") or {}
    return next(iter(state.items()), ("unknown", {}))


def began(pod: Manifest, container: str) -> str | None:
    """Return when a container first started, as far as the pod status shows."""
    status = containers(pod).get(container, {})
    for state in (status.get("lastState") or {}, status.get("state") or {}):
        for detail in state.values():
            if when := (detail or {}).get("startedAt"):
                return str(when)
    return None


def condition(item: Manifest, kind: str) -> Manifest | None:
    """Return a status condition by type, or None."""
    found: Sequence[Manifest] = (item.get("status") or {}).get("conditions") or ()
    return next((one for one in found if one["type"] == kind), None)


def true_condition(item: Manifest, kind: str) -> Manifest | None:
    """Return a status condition if it is True, else None."""
    found = condition(item, kind)
    return found if found and found["status"] == "True" else None


def node_unreachable(pod: Manifest) -> bool:
    """Whether the pod's node is unreachable, so that the pod's status is stale.

    The node controller marks such a pod not ready, but leaves the kubelet's container statuses unchanged.
    """
    ready, containers_ready = condition(pod, "Ready"), condition(pod, "ContainersReady")
    return bool(ready and containers_ready) and (
        ready["status"] != "True" and containers_ready["status"] == "True"  # type: ignore[index]
    )


def rfc3339(moment: datetime) -> str:
    """Format a time as Kubernetes does, in whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """Parse a Kubernetes timestamp."""
    return datetime.fromisoformat(text)


def _annotation(item: Manifest, key: str) -> str | None:
    value = (item.get("metadata", {}).get("annotations") or {}).get(key)
    return None if value is None else str(value)
