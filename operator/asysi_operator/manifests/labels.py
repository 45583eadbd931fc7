"""Labels and metadata that every object of an experiment carries."""

from asysi.contract.spec import API_VERSION, KIND, ScanExperiment
from asysi_operator.manifests.kinds import Manifest

EXPERIMENT = "asysi.dev/experiment"
QUEUE = "kueue.x-k8s.io/queue-name"


def selector(experiment: ScanExperiment) -> dict[str, str]:
    """Return the label that all objects of one experiment share, and no other object has."""
    return {EXPERIMENT: experiment.metadata.name}


def labels(experiment: ScanExperiment) -> dict[str, str]:
    """Return the user's labels and ours; where they meet, ours stand."""
    return {
        **experiment.metadata.labels,
        "app.kubernetes.io/name": "asysi",
        "app.kubernetes.io/instance": experiment.metadata.name,
        "app.kubernetes.io/component": "experiment",
        "app.kubernetes.io/part-of": "asysi",
        "app.kubernetes.io/managed-by": "asysi-operator",
        **selector(experiment),
    }


def metadata(experiment: ScanExperiment, name: str) -> Manifest:
    """Return the metadata of an object, owned by the experiment once that has an identity in the cluster."""
    uid = experiment.metadata.uid
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": experiment.metadata.name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": name,
        "namespace": experiment.metadata.namespace,
        "labels": labels(experiment),
        **({"ownerReferences": [owner]} if uid else {}),
    }
