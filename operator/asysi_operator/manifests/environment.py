"""Environment of the containers."""

from pathlib import PurePosixPath

from asysi.contract.runtime import MOUNTS, PORTS, Container, Env
from asysi.contract.spec import SecretRef, Spec
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.resources import threads

_JOB = "batch.kubernetes.io/controller-uid"
"""Pod label with the UID of its Job, set by the API server."""
TERMINATION = "/dev/termination-log"
_UPLOADING = {Container.PREPARE, Container.ARCHIVER, Container.FINISH}


def environment(spec: Spec, container: Container, output: str) -> list[Manifest]:
    """Return `env` of a container.

    Args:
        spec: the experiment's spec.
        container: the container.
        output: results directory on the volume. The workers create it: if the node did, as the mount of a
            subPath, it would be owned by root.
    """
    count = str(threads(spec, container))
    places = MOUNTS | {Env.OUTPUT: MOUNTS[Env.OUTPUT] / output}
    return [
        *({"name": str(name), "value": str(path)} for name, path in places.items()),
        {"name": str(Env.JOB), "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{_JOB}']"}}},
        {"name": str(Env.PORT), "value": str(PORTS.get(container, 0))},
        {"name": str(Env.TERMINATION), "value": TERMINATION},
        {"name": str(Env.MEMORY), "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
        {"name": "OMP_NUM_THREADS", "value": count},
        {"name": "OPENBLAS_NUM_THREADS", "value": count},
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the root file system is read-only
        {"name": "HF_HOME", "value": str(MOUNTS[Env.WORKSPACE] / "huggingface")},
        *(_keys(ref) for ref in secrets(spec, container) if ref.key),
    ]


def output_of(job: Manifest) -> str:
    """Return the directory on the volume that a Job's pods write their results to."""
    pod = job["spec"]["template"]["spec"]
    for one in pod["containers"][0].get("env") or ():
        if one["name"] == Env.OUTPUT:
            path = PurePosixPath(one.get("value", ""))
            return (
                str(path.relative_to(MOUNTS[Env.OUTPUT])) if path.is_relative_to(MOUNTS[Env.OUTPUT]) else "."
            )
    return "."


def environment_from(spec: Spec, container: Container) -> list[Manifest]:
    """Return `envFrom` of a container: Secrets whose keys all become variables."""
    return [{"secretRef": {"name": ref.name}} for ref in secrets(spec, container) if not ref.key]


def secrets(spec: Spec, container: Container) -> list[SecretRef]:
    """Return the Secrets that a container needs.

    The pipeline's operators call endpoints and stores; prepare downloads the model and claims the address of
    the results, which archiver and finish upload. The others, which also run the model's code, get none.
    """
    if container is Container.PIPELINE:
        return list(spec.data.pipeline.secret_refs) if spec.data and spec.data.pipeline else []
    refs = [spec.model.secret_ref] if container is Container.PREPARE else []
    refs += [spec.output.secret_ref] if container in _UPLOADING else []
    return list(dict.fromkeys(ref for ref in refs if ref))


def _keys(ref: SecretRef) -> Manifest:
    return {"name": ref.key, "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}}}
