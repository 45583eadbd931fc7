"""Pod templates of an attempt and of the pipeline that precedes it."""

from asysi.contract.runtime import Container
from asysi.contract.spec import Part, ScanExperiment
from asysi_operator.manifests.containers import init_containers, main_containers, pipeline_container
from asysi_operator.manifests.kinds import Manifest, PodSettings
from asysi_operator.manifests.labels import (
    COMPONENT,
    EXPERIMENT,
    SPEC,
    pod_labels,
    rows_digest,
    spec_digest,
)
from asysi_operator.manifests.volumes import pipeline_volumes, volumes

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_USER = 65532
"""Arbitrary non-root UID; the images need no passwd entry for it."""


def pod_template(experiment: ScanExperiment, settings: PodSettings) -> Manifest:
    """Return the pod template of the Job."""
    return _template(
        experiment,
        pod_labels(experiment),
        {SPEC: spec_digest(experiment)},
        initContainers=init_containers(experiment, settings),
        containers=main_containers(experiment, settings),
        volumes=volumes(experiment),
    )


def pipeline_template(experiment: ScanExperiment, settings: PodSettings) -> Manifest:
    """Return the pod template of the pipeline's Job.

    By default, the experiment's own claim can only be mounted on one node at a time, so all shards are placed
    on the same node.
    """
    named = {**pod_labels(experiment), COMPONENT: str(Container.PIPELINE)}
    same = {key: named[key] for key in (EXPERIMENT, COMPONENT)}
    near = {"labelSelector": {"matchLabels": same}, "topologyKey": "kubernetes.io/hostname"}
    output, content = experiment.spec.output, {}
    spread = output.claim or "ReadWriteMany" in output.access_modes
    if not spread:
        content["affinity"] = _near(_affinity(experiment), near)
    return _template(
        experiment,
        named,
        {SPEC: rows_digest(experiment)},
        **content,
        containers=[pipeline_container(experiment, settings)],
        volumes=pipeline_volumes(experiment),
    )


def _template(
    experiment: ScanExperiment, named: Manifest, annotations: Manifest, **content: object
) -> Manifest:
    scheduling, lifecycle = experiment.spec.scheduling, experiment.spec.lifecycle
    optional = {
        "nodeSelector": dict(scheduling.node_selector),
        "tolerations": [_set(toleration) for toleration in scheduling.tolerations],
        "priorityClassName": scheduling.priority_class_name,
        "runtimeClassName": scheduling.runtime_class_name,
        "serviceAccountName": scheduling.service_account_name,
        "imagePullSecrets": [_set(secret) for secret in scheduling.image_pull_secrets],
        "affinity": _affinity(experiment),
        "topologySpreadConstraints": [_set(one) for one in scheduling.topology_spread_constraints],
    }
    return {
        "metadata": {"labels": named, "annotations": annotations},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": lifecycle.grace_period_seconds,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pod_security(),
            **{key: value for key, value in optional.items() if value},
            **content,
        },
    }


def _affinity(experiment: ScanExperiment) -> Manifest:
    affinity = experiment.spec.scheduling.affinity
    return _set(affinity) if affinity else {}


def _near(affinity: Manifest, term: Manifest) -> Manifest:
    """Return an affinity extended by a required pod affinity term."""
    pods = affinity.get("podAffinity", {})
    required = [*pods.get(_REQUIRED, ()), term]
    return affinity | {"podAffinity": pods | {_REQUIRED: required}}


def _set(part: Part) -> Manifest:
    return part.model_dump(mode="json", by_alias=True, exclude_none=True)


def pod_security() -> Manifest:
    """Return a pod securityContext for the `restricted` Pod Security level."""
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
