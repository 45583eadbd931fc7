"""Labels and metadata common to all objects of an experiment."""

import re

from asysi.contract.canonical import digest
from asysi.contract.frozen import frozen_part
from asysi.contract.spec import API_VERSION, KIND, ScanExperiment
from asysi_operator.manifests.kinds import Manifest

EXPERIMENT = "asysi.dev/experiment"
MANAGER = "asysi-operator"
"""Field manager of all applies, source of events, and value of the managed-by label."""
MANAGED_BY = "app.kubernetes.io/managed-by"
COMPONENT = "app.kubernetes.io/component"
QUEUE = "kueue.x-k8s.io/queue-name"
SPEC = "asysi.dev/spec"
"""Pod annotation: digest of the part of the spec that is frozen once the host has started."""
_POD_PREFIX = "label.asysi.dev/"
_PART = 63
"""Maximum length of a label's name after its prefix."""
_RESERVED = re.compile(r"(.*\.)?(kubernetes\.io|k8s\.io|asysi\.dev)/|(job-name|controller-uid)$")
"""Labels reserved for Kubernetes and the operator; user labels with these keys are not passed on."""


def queue_of(experiment: ScanExperiment) -> str | None:
    """Return the name of Kueue's LocalQueue, from the spec or from Kueue's label on the experiment."""
    return experiment.spec.scheduling.queue_name or experiment.metadata.labels.get(QUEUE) or None


def selector(experiment: ScanExperiment) -> dict[str, str]:
    """Return the label shared by all objects of one experiment and by no other object."""
    return {EXPERIMENT: experiment.metadata.name}


def labels(experiment: ScanExperiment) -> dict[str, str]:
    """Return the user's labels and the operator's; the user cannot set reserved labels."""
    return {**_users(experiment), **_ours(experiment)}


def pod_labels(experiment: ScanExperiment) -> dict[str, str]:
    """Return a pod's labels; the user's get a prefix, so that no unrelated Service selects the pod.

    `team` becomes `label.asysi.dev/team`, and `example.com/team` becomes `label.asysi.dev/example.com.team`.
    """
    users = {f"{_POD_PREFIX}{_short(key)}": value for key, value in _users(experiment).items()}
    return {**users, **_ours(experiment)}


def _short(key: str) -> str:
    """Return a label key as a name after a prefix: at most 63 characters, without a slash."""
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
    """Return the digest of the frozen part of the spec, the value of SPEC."""
    return digest(frozen_part(experiment))


def rows_digest(experiment: ScanExperiment) -> str:
    """Return the digest of the part of the spec that defines the pipeline's pods, the value of their SPEC."""
    spec = frozen_part(experiment)
    data = spec["data"]
    pipeline = {key: value for key, value in data["pipeline"].items() if key != "parallelism"}
    parts = {key: spec[key] for key in ("inputs", "output", "scheduling", "lifecycle")}
    return digest({"uri": data["uri"], "pipeline": pipeline, **parts})


def metadata(experiment: ScanExperiment, name: str) -> Manifest:
    """Return the metadata of an object, owned by the experiment if that has a UID."""
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
