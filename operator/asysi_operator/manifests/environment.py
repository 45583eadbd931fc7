"""Environment of the containers."""

from asysi.contract.runtime import MOUNTS, PORTS, Container, Env
from asysi.contract.spec import SecretRef, Spec
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import FIRST_ATTEMPT
from asysi_operator.manifests.resources import threads

TERMINATION = "/dev/termination-log"
FAILURES = "batch.kubernetes.io/job-index-failure-count"
"""Annotation in which an Indexed Job with a limit per index tells a pod how many failed before it."""


def environment(spec: Spec, container: Container) -> list[Manifest]:
    """Return `env` of a container."""
    count = str(threads(spec, container))
    return [
        *({"name": str(name), "value": str(path)} for name, path in MOUNTS.items()),
        {
            "name": str(Env.ATTEMPT),
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{FAILURES}']"}},
        },
        {
            "name": str(Env.FIRST_ATTEMPT),
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{FIRST_ATTEMPT}']"}},
        },
        {"name": str(Env.PORT), "value": str(PORTS.get(container, 0))},
        {"name": str(Env.TERMINATION), "value": TERMINATION},
        {"name": str(Env.MEMORY), "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
        {"name": "OMP_NUM_THREADS", "value": count},
        {"name": "OPENBLAS_NUM_THREADS", "value": count},
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the root file system is read-only
        {"name": "HF_HOME", "value": str(MOUNTS[Env.WORKSPACE] / "huggingface")},
        *(_keys(ref) for ref in secrets(spec, container) if ref.key),
    ]


def environment_from(spec: Spec, container: Container) -> list[Manifest]:
    """Return `envFrom` of a container: Secrets of which every key is a variable."""
    return [{"secretRef": {"name": ref.name}} for ref in secrets(spec, container) if not ref.key]


def secrets(spec: Spec, container: Container) -> list[SecretRef]:
    """Return the Secrets that a container needs.

    The pipeline's operators call endpoints and stores, prepare fetches the model, the others write results.
    """
    if container is Container.PIPELINE:
        return list(spec.data.pipeline.secret_refs) if spec.data and spec.data.pipeline else []
    ref = spec.model.secret_ref if container is Container.PREPARE else spec.output.secret_ref
    return [ref] if ref else []


def _keys(ref: SecretRef) -> Manifest:
    return {"name": ref.key, "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}}}
