"""The short-lived pod that has a claim's files, where no pod of the experiment has them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asysi.contract.runtime import Container
from asysi_operator.manifests import container_security, pod_security
from asysi_operator.manifests.kinds import Manifest

CONTAINER = "files"
FOLDER = "/claim"
"""Where the claim is mounted."""
COMPONENT = "files"
_KEPT = (
    *("nodeSelector", "tolerations", "imagePullSecrets", "serviceAccountName", "runtimeClassName"),
    "securityContext",
)
"""Of an experiment's pod: where it may run, as whom, and by what its image is fetched."""


@dataclass(frozen=True)
class Origin:
    """What the pod takes over from the experiment's own."""

    image: str
    pull_policy: str = "IfNotPresent"
    security: Manifest | None = None
    """Security context of the container; None takes the one that every container of ours has."""
    pod: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the pod's spec: _KEPT, and the affinity to nodes."""


def origin_of(job: Manifest) -> Origin:
    """Return what a pod takes over from a Job of an experiment."""
    spec = job["spec"]["template"]["spec"]
    containers = {one["name"]: one for one in spec["containers"]}
    near = (spec.get("affinity") or {}).get("nodeAffinity")  # not what binds pods to other pods
    ours = containers.get(Container.FINISH) or spec["containers"][0]  # the host's image may be the user's
    return Origin(
        str(ours["image"]),
        str(ours.get("imagePullPolicy") or "IfNotPresent"),
        ours.get("securityContext"),
        {key: spec[key] for key in _KEPT if spec.get(key)}
        | ({"affinity": {"nodeAffinity": near}} if near else {}),
    )


def files_pod(
    name: str, claim: str, origin: Origin, *, seconds: int, read_only: bool, node: str | None = None
) -> Manifest:
    """Return the pod.

    It carries no label of an experiment: the operator must not take it for an attempt. It ends by itself, so
    that nothing is left where the one who made it was killed.

    Args:
        name: its name, known before it is made, so that it can be deleted whatever happens.
        claim: name of the claim that it mounts.
        origin: image, place and security of the experiment's pods.
        seconds: its deadline.
        read_only: whether it may only read the claim.
        node: the node that it must be on: where another pod has the claim, and it can be on one node only.
    """
    pod = dict(origin.pod)
    if node is not None:
        pod["affinity"] = _on(node)
    container = {
        "name": CONTAINER,
        "image": origin.image,
        "imagePullPolicy": origin.pull_policy,
        "args": ["sleep", str(seconds)],
        "resources": {
            "requests": {"cpu": "50m", "memory": "128Mi"},
            "limits": {"cpu": "1", "memory": "256Mi"},
        },
        "securityContext": origin.security or container_security(),
        "volumeMounts": [{"name": "claim", "mountPath": FOLDER, **({"readOnly": True} if read_only else {})}],
    }
    labels = {"app.kubernetes.io/part-of": "asysi", "app.kubernetes.io/component": COMPONENT}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "securityContext": pod_security(),
            **pod,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": seconds,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [container],
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }


def _on(node: str) -> Manifest:
    """Return the affinity to one node, which the scheduler checks as it does all else; nodeName would not."""
    field_of = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = [{"matchFields": [field_of]}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
