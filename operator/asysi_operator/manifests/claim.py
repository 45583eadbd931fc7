"""The PersistentVolumeClaim of the results, when the user has brought none."""

from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import metadata
from asysi_operator.manifests.names import claim_name


def claim(experiment: ScanExperiment) -> Manifest:
    """Return the claim: one node at a time, because one pod writes."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(experiment, claim_name(experiment)),
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": experiment.spec.output.size}},
        },
    }
