"""The PersistentVolumeClaim for the results, if the user has not provided one."""

from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import metadata
from asysi_operator.manifests.names import claim_name

RETAINED = "asysi.dev/retained-by"
"""Annotation of a claim that outlives its experiment: UID of the first experiment that retained it."""


def claim(experiment: ScanExperiment) -> Manifest:
    """Return the claim; a retained claim has no owner, so it is not garbage-collected."""
    output, described = experiment.spec.output, metadata(experiment, claim_name(experiment))
    if output.when_deleted == "Retain":
        described = _without_owner(described) | {"annotations": {RETAINED: experiment.metadata.uid or ""}}
    named = output.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": described,
        "spec": {
            "accessModes": list(output.access_modes),
            **({"storageClassName": named} if named else {}),
            "resources": {"requests": {"storage": output.size}},
        },
    }


def retained_by(there: Manifest) -> str | None:
    """Return the UID of the experiment that first retained a claim, or None."""
    found = (there["metadata"].get("annotations") or {}).get(RETAINED)
    return None if found is None else str(found)


def as_retained(wanted: Manifest, there: Manifest, uid: str) -> Manifest:
    """Return the desired claim; one that another experiment has retained never gets an owner."""
    first = retained_by(there)
    if first is None or first == uid:
        return wanted
    described = _without_owner(wanted["metadata"])
    return wanted | {"metadata": described | {"annotations": {RETAINED: first}}}


def _without_owner(described: Manifest) -> Manifest:
    return {key: value for key, value in described.items() if key != "ownerReferences"}
