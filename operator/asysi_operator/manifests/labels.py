"""Labels and metadata that every object of an experiment carries."""

import re

from asysi.contract.canonical import digest
from asysi.contract.frozen import frozen_part
from asysi.contract.spec import API_VERSION, KIND, ScanExperiment
from asysi_operator.manifests.kinds import Manifest

EXPERIMENT = "asysi.dev/experiment"
MANAGER = "asysi-operator"
"""Field manager of everything that is applied, source of events, and who manages all our objects."""
MANAGED_BY = "app.kubernetes.io/managed-by"
COMPONENT = "app.kubernetes.io/component"
QUEUE = "kueue.x-k8s.io/queue-name"
SPEC = "asysi.dev/spec"
"""Annotation of the pod: digest of what of the spec is frozen once the host has started."""
_POD_PREFIX = "label.asysi.dev/"
_PART = 63
"""Characters of a label's name behind its prefix at most."""
_RESERVED = re.compile(r"(.*\.)?(kubernetes\.io|k8s\.io|asysi\.dev)/|(job-name|controller-uid)$")
"""Labels by which Kubernetes and we know objects: a user's are not passed on."""


def queue_of(experiment: ScanExperiment) -> str | None:
    """Return the name of Kueue's LocalQueue: the spec's, or that of Kueue's own label on the experiment."""
    return experiment.spec.scheduling.queue_name or experiment.metadata.labels.get(QUEUE) or None


def selector(experiment: ScanExperiment) -> dict[str, str]:
    """Return the label that all objects of one experiment share, and no other object has."""
    return {EXPERIMENT: experiment.metadata.name}


def labels(experiment: ScanExperiment) -> dict[str, str]:
    """Return the user's labels and ours; those that mean something to a cluster are not the user's to set."""
    return {**_users(experiment), **_ours(experiment)}


def pod_labels(experiment: ScanExperiment) -> dict[str, str]:
    """Return the labels of a pod: the user's stand behind a prefix, so that no Service of others selects it.

    `team` becomes `label.asysi.dev/team`, and `example.com/team` becomes `label.asysi.dev/example.com.team`.
    """
    users = {f"{_POD_PREFIX}{_short(key)}": value for key, value in _users(experiment).items()}
    return {**users, **_ours(experiment)}


def _short(key: str) -> str:
    """Return a label's key as the part behind a prefix: at most 63 characters, without a slash."""
    name = key.replace("/", ".")
    return name if len(name) <= _PART else f"{name[: _PART - 11]}-{digest(key)[:10]}"


def _users(experiment: ScanExperiment) -> dict[str, str]:
    return {key: value for key, value in experiment.metadata.labels.items() if not _RESERVED.match(key)}


def _ours(experiment: ScanExperiment) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "asysi",
        "app.kubernetes.io/instance": experiment.metadata.name,
        COMPONENT: "experiment",
        "app.kubernetes.io/part-of": "asysi",
        MANAGED_BY: MANAGER,
        **selector(experiment),
    }


def spec_digest(experiment: ScanExperiment) -> str:
    """Return a digest of the frozen part of the spec, as SPEC holds it."""
    return digest(frozen_part(experiment))


def rows_digest(experiment: ScanExperiment) -> str:
    """Return a digest of what of the spec the pipeline's pods are made from, as SPEC of theirs holds it."""
    spec = frozen_part(experiment)
    data = spec["data"]
    pipeline = {key: value for key, value in data["pipeline"].items() if key != "parallelism"}
    parts = {key: spec[key] for key in ("inputs", "output", "scheduling", "lifecycle")}
    return digest({"uri": data["uri"], "pipeline": pipeline, **parts})


def metadata(experiment: ScanExperiment, name: str) -> Manifest:
    """Return the metadata of an object, owned by the experiment once that has an identity in the cluster."""
    uid = experiment.metadata.uid
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": experiment.metadata.name,
        "uid": uid,
        "controller": True,
    }
    return {
        "name": name,
        "namespace": experiment.metadata.namespace,
        "labels": labels(experiment),
        **({"ownerReferences": [owner]} if uid else {}),
    }
