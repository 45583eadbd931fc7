"""The containers of the pod."""

from asysi.contract.runtime import PORTS, Container
from asysi.contract.spec import ScanExperiment
from asysi.contract.workloads import module_of
from asysi_operator.manifests import probes
from asysi_operator.manifests.environment import TERMINATION, environment, environment_from
from asysi_operator.manifests.kinds import Manifest, PodSettings
from asysi_operator.manifests.resources import containers_of, requirements
from asysi_operator.manifests.volumes import mounts

_SIDECARS = (Container.ARCHIVER, Container.SAE, Container.HOOK)


def init_containers(experiment: ScanExperiment, settings: PodSettings) -> list[Manifest]:
    """Return prepare, then the sidecars; each starts once the one before it has started."""
    present = containers_of(experiment.spec)
    sidecars = (_sidecar(experiment, settings, container) for container in _SIDECARS if container in present)
    return [_container(experiment, settings, Container.PREPARE), *sidecars]


def main_containers(experiment: ScanExperiment, settings: PodSettings) -> list[Manifest]:
    """Return host and finish, which run in parallel."""
    return [_host(experiment, settings), _container(experiment, settings, Container.FINISH)]


def pipeline_container(experiment: ScanExperiment, settings: PodSettings) -> Manifest:
    """Return the single container of the pipeline's pods."""
    return _container(experiment, settings, Container.PIPELINE)


def _container(experiment: ScanExperiment, settings: PodSettings, container: Container) -> Manifest:
    spec, name = experiment.spec, str(container)
    ports = [{"name": name, "containerPort": PORTS[container]}] if container in PORTS else []
    env_from = environment_from(spec, container)
    return {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "args": [
            "python",
            "-m",
            module_of(container, spec),
        ],  # the image's entrypoint is PID 1 and forwards signals
        "env": environment(spec, container, settings.output),
        **({"envFrom": env_from} if env_from else {}),
        **({"ports": ports} if ports else {}),
        "resources": requirements(spec, container),
        "volumeMounts": mounts(experiment, container),
        "securityContext": container_security(),
        "terminationMessagePath": TERMINATION,
        "terminationMessagePolicy": "File",
    }


def _sidecar(experiment: ScanExperiment, settings: PodSettings, container: Container) -> Manifest:
    """Return a native sidecar: restarted in place, and it does not keep the Job from completing."""
    port = str(container)
    return {
        **_container(experiment, settings, container),
        "restartPolicy": "Always",
        "startupProbe": probes.startup(port),
        "livenessProbe": probes.liveness(port),
    }


def _host(experiment: ScanExperiment, settings: PodSettings) -> Manifest:
    host = _container(experiment, settings, Container.HOST)
    if custom := experiment.spec.workload.custom:
        del host["args"]
        return {**host, "image": custom.image, "command": list(custom.command)}
    return host


def container_security() -> Manifest:
    """Return a container securityContext for the `restricted` Pod Security level, with a read-only root."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
