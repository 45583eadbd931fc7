"""Reads the objects of an `ExperimentView`; kinds that cannot be read are recorded and skipped."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from asysi.contract.crd import GROUP, PLURAL
from asysi.contract.errors import ConfigError
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import EXPERIMENT
from asysi_operator.plugin.access import ClusterError
from asysi_operator.plugin.diagnosis import no_such
from asysi_operator.plugin.experiment_view import ExperimentView
from asysi_operator.plugin.kubectl import Kubectl

OPERATOR = "app.kubernetes.io/component=operator,app.kubernetes.io/part-of=asysi"
"""Selects the operator's Deployments and their pods; the chart sets these labels."""
KIND = f"{PLURAL}.{GROUP}"


def find_experiment(kubectl: Kubectl, name: str) -> Manifest:
    """Return an experiment.

    Raises:
        ConfigError: no experiment has that name.
        ClusterError: access is forbidden.
    """
    found = kubectl.find(KIND, name)
    if found is None:
        raise unknown(kubectl, name)
    return found


def unknown(kubectl: Kubectl, name: str) -> ConfigError:
    """Return the error for a missing experiment, listing the existing ones."""
    known = [one["metadata"]["name"] for one in attempt(lambda: kubectl.items(KIND))]
    return ConfigError(no_such(name, kubectl.current_namespace(), known))


def observe(kubectl: Kubectl, name: str) -> ExperimentView:
    """Return an experiment with all related objects that can be read.

    Raises:
        ConfigError: there is no such experiment.
        ClusterError: access is forbidden, or the cluster does not respond.
    """
    experiment = find_experiment(kubectl, name)
    mine = f"--selector={EXPERIMENT}={name}"
    asked: dict[str, tuple[str, ...]] = {
        "jobs": ("jobs", mine),
        "pods": ("pods", mine),
        "persistentvolumeclaims": ("persistentvolumeclaims",),
        "events": ("events",),
        "deployments": ("deployments", "--all-namespaces", f"--selector={OPERATOR}"),
        "workloads": ("workloads.kueue.x-k8s.io",),
    }
    hidden: dict[str, str] = {}
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = {kind: threads.submit(_items, kubectl, kind, what, hidden) for kind, what in asked.items()}
        found = {kind: answer.result() for kind, answer in answers.items()}
    return ExperimentView(
        experiment,
        jobs=found["jobs"],
        pods=found["pods"],
        claims=found["persistentvolumeclaims"],
        events=found["events"],
        workloads=found["workloads"],
        operators=found["deployments"],
        hidden=hidden,
    )


def _items(kubectl: Kubectl, kind: str, what: tuple[str, ...], hidden: dict[str, str]) -> list[Manifest]:
    try:
        return kubectl.items(*what)
    except ClusterError as error:
        if kind != "workloads" or error.forbidden:  # expected on a cluster without Kueue
            hidden[kind] = str(error)
        return []


def attempt(read: Callable[[], list[Manifest]]) -> list[Manifest]:
    """Return the objects, or an empty list if they cannot be read."""
    try:
        return read()
    except ClusterError:
        return []
