"""Volumes of the pod and their mounts in each container."""

import hashlib

from asysi.contract.quantity import format_bytes
from asysi.contract.runtime import CAPTURE_RING, INPUTS, MOUNTS, Container, Env
from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.names import claim_name, config_name
from asysi_operator.manifests.resources import rings_bytes

RINGS = "rings"
"""Name of the volume that holds the rings."""
_LABEL = 63
"""Maximum length of a DNS label."""
_CAPTURE = CAPTURE_RING.parts[0]
_SHARING = {Container.PIPELINE, Container.PREPARE, Container.HOST, Container.FINISH}
"""Containers that write to the workspace; the others mount it read-only."""


def volumes(experiment: ScanExperiment) -> list[Manifest]:
    """Return the pod's volumes."""
    spec = experiment.spec
    inputs = [
        {
            "name": _input(one.claim),
            "persistentVolumeClaim": {"claimName": one.claim, "readOnly": True},
        }
        for one in spec.inputs
    ]
    return [
        {"name": RINGS, "emptyDir": {"medium": "Memory", "sizeLimit": format_bytes(rings_bytes(spec))}},
        {"name": "host-shm", "emptyDir": {"medium": "Memory", "sizeLimit": spec.resources.host.shm}},
        {"name": "workspace", "emptyDir": {"sizeLimit": spec.resources.workspace}},
        {"name": "output", "persistentVolumeClaim": {"claimName": claim_name(experiment)}},
        {"name": "config", "configMap": {"name": config_name(experiment)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        *inputs,
    ]


def pipeline_volumes(experiment: ScanExperiment) -> list[Manifest]:
    """Return the volumes of the pipeline's pods: there are no rings."""
    return [volume for volume in volumes(experiment) if volume["name"] not in {RINGS, "host-shm"}]


def mounts(experiment: ScanExperiment, container: Container) -> list[Manifest]:
    """Return the mounts of a container. Only containers that read the model or the data mount the inputs."""
    inputs = experiment.spec.inputs if container in _SHARING else []
    return [
        *_rings(container),
        _mount("workspace", MOUNTS[Env.WORKSPACE], readOnly=container not in _SHARING),
        _mount("output", MOUNTS[Env.OUTPUT]),
        _mount("config", MOUNTS[Env.CONFIG].parent, readOnly=True),
        _mount("tmp", "/tmp", subPath=str(container)),  # noqa: S108 - the container's own
        *(_mount(_input(one.claim), INPUTS / one.claim, readOnly=True) for one in inputs),
    ]


def _input(claim: str) -> str:
    """Return the name of a claim's volume: a DNS label, unlike a claim's name."""
    name = f"input-{claim}"
    if len(name) <= _LABEL and "." not in name:
        return name
    mark = hashlib.sha256(claim.encode()).hexdigest()[:10]
    return f"{name.replace('.', '-')[: _LABEL - 11].rstrip('-')}-{mark}"


def _rings(container: Container) -> list[Manifest]:
    """Return the ring mounts; the host gets only the capture ring, in its own /dev/shm."""
    if container is Container.PIPELINE:
        return []
    if container is not Container.HOST:
        return [_mount(RINGS, MOUNTS[Env.SHM])]
    return [
        _mount("host-shm", MOUNTS[Env.SHM].parent),
        _mount(RINGS, MOUNTS[Env.SHM] / _CAPTURE, subPath=_CAPTURE),
    ]


def _mount(name: str, path: object, **more: object) -> Manifest:
    return {"name": name, "mountPath": str(path), **{key: value for key, value in more.items() if value}}
