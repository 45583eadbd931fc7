"""The pod of one attempt."""

from asysi.contract.spec import ScanExperiment, Toleration
from asysi_operator.manifests.containers import init_containers, main_containers
from asysi_operator.manifests.kinds import Image, Manifest
from asysi_operator.manifests.labels import FIRST_ATTEMPT, SPEC, labels, spec_digest
from asysi_operator.manifests.volumes import volumes

_USER = 65532
"""Nobody in particular; the images need no name for it."""


def pod_template(experiment: ScanExperiment, image: Image, first_attempt: int) -> Manifest:
    """Return the pod template of the Job."""
    scheduling, lifecycle = experiment.spec.scheduling, experiment.spec.lifecycle
    optional = {
        "nodeSelector": dict(scheduling.node_selector),
        "tolerations": [_set(toleration) for toleration in scheduling.tolerations],
        "priorityClassName": scheduling.priority_class_name,
        "runtimeClassName": scheduling.runtime_class_name,
    }
    return {
        "metadata": {
            "labels": labels(experiment),
            # It, and nothing else here, may change while a Job is suspended: the next pod counts on from it.
            "annotations": {FIRST_ATTEMPT: str(first_attempt), SPEC: spec_digest(experiment)},
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": lifecycle.grace_period_seconds,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": _security(),
            **{key: value for key, value in optional.items() if value},
            "initContainers": init_containers(experiment, image),
            "containers": main_containers(experiment, image),
            "volumes": volumes(experiment),
        },
    }


def _set(toleration: Toleration) -> Manifest:
    return toleration.model_dump(mode="json", by_alias=True, exclude_none=True)


def _security() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
