"""A snapshot of an experiment on a cluster, as read through kubectl."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from asysi.contract.spec import KIND
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.names import ROWS
from asysi_operator.observation import Observed, is_terminating


@dataclass(frozen=True)
class ExperimentView:
    """An experiment and its related objects. Kinds that could not be read are listed in `hidden`."""

    experiment: Manifest
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    jobs: Sequence[Manifest] = ()
    pods: Sequence[Manifest] = ()
    claims: Sequence[Manifest] = ()
    """Every claim of the namespace."""
    events: Sequence[Manifest] = ()
    """Events of the namespace."""
    workloads: Sequence[Manifest] = ()
    """Kueue's Workloads of the namespace."""
    operators: Sequence[Manifest] = ()
    """Deployments of the operator, in any namespace."""
    hidden: Mapping[str, str] = field(default_factory=dict)
    """Why a kind could not be read, by kind."""

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return str(self.experiment["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.experiment["metadata"].get("namespace", "default"))

    @property
    def status(self) -> Manifest:
        """Its status."""
        return dict(self.experiment.get("status") or {})

    @property
    def observed(self) -> Observed:
        """The snapshot as the operator sees it, viewed for the current Job."""
        events = [one for one in self.events if one.get("type") == "Warning"]
        jobs = [{**one, "kind": "Job"} for one in self.jobs]
        found = Observed(
            {**self.experiment, "kind": KIND}, self.now, jobs, self.pods, {}, events, claims=self.named_claims
        )
        return found.stage

    @property
    def named_claims(self) -> list[Manifest]:
        """The claims that the experiment references or owns."""
        return [one for one in self.claims if one["metadata"]["name"] in self.claim_names]

    @property
    def claim_names(self) -> list[str]:
        """Names of the claims that the experiment references or owns."""
        spec = self.experiment.get("spec") or {}
        output = (spec.get("output") or {}).get("claim") or f"{self.name}-output"
        return [output, *(one["claim"] for one in spec.get("inputs") or ())]

    @property
    def pod(self) -> Manifest | None:
        """The current pod: the newest that is not being deleted, else the newest."""
        newest = sorted(self.pods, key=lambda one: str(one["metadata"].get("creationTimestamp", "")))
        staying = [one for one in newest if not is_terminating(one)]
        return next(reversed(staying or newest), None)

    @property
    def job(self) -> Manifest | None:
        """The experiment's Job, or the pipeline's if that does not exist yet."""
        jobs = {one["metadata"]["name"]: one for one in self.jobs}
        return jobs.get(self.name) or jobs.get(f"{self.name}{ROWS}")

    def events_of(self, item: Manifest) -> list[Manifest]:
        """Return the events about an object, newest first."""
        uid = item["metadata"].get("uid")
        own = [one for one in self.events if (one.get("involvedObject") or {}).get("uid") == uid]
        return sorted(own, key=_when, reverse=True)


def _when(event: Manifest) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
