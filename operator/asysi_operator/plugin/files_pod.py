"""The short-lived pod that mounts a claim when no pod of the experiment does. Pure."""

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
"""Fields copied from an experiment's pod: placement, identity, and image pull secrets."""


@dataclass(frozen=True)
class Origin:
    """Settings copied from the experiment's own pods."""

    image: str
    pull_policy: str = "IfNotPresent"
    security: Manifest | None = None
    """Security context of the container; None uses the default one."""
    pod: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the pod's spec: those in _KEPT, and the node affinity."""


def origin_of(job: Manifest) -> Origin:
    """Return the settings to copy from an experiment's Job."""
    spec = job["spec"]["template"]["spec"]
    containers = {one["name"]: one for one in spec["containers"]}
    near = (spec.get("affinity") or {}).get("nodeAffinity")  # without pod affinity
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

    It has no experiment label, so that the operator does not take it for an attempt. It ends by itself, so
    that nothing is left if its creator is killed.

    Args:
        name: its name, chosen before creation, so that it can always be deleted.
        claim: name of the claim to mount.
        origin: image, placement and security of the experiment's pods.
        seconds: its deadline.
        read_only: whether to mount the claim read-only.
        node: required node: the one where another pod mounts a claim that only one node can mount.
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
    """Return an affinity to one node; unlike nodeName, it does not bypass the scheduler."""
    field_of = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = [{"matchFields": [field_of]}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
