"""CPU and memory of the containers: requests equal limits, for QoS class Guaranteed and pinned whole CPUs."""

import math

from asysi.contract.errors import ConfigError
from asysi.contract.quantity import format_bytes, parse_bytes
from asysi.contract.rules import HEAP
from asysi.contract.runtime import Container
from asysi.contract.spec import Resources, Spec
from asysi_operator.manifests.kinds import Manifest

_MIB = 2**20
_DISK = "ephemeral-storage"
_SCRATCH_REQUEST, _SCRATCH_LIMIT = 64 * _MIB, 2048 * _MIB
"""Ephemeral storage in bytes for a container's logs and /tmp."""


def of_container(spec: Spec, container: Container) -> Resources:  # noqa: PLR0911 - a case each
    """Return the resources of a container from the spec.

    Raises ValueError if the experiment has no such container.
    """
    match container:
        case Container.PREPARE:
            return spec.resources.prepare
        case Container.HOOK:
            return spec.resources.hook
        case Container.HOST:
            return spec.resources.host
        case Container.FINISH:
            return spec.resources.finish
        case Container.PIPELINE if spec.data is not None and spec.data.pipeline is not None:
            return Resources(cpus=spec.data.pipeline.cpus, memory=spec.data.pipeline.memory)
        case Container.SAE if spec.sae is not None:
            return Resources(cpus=spec.sae.cpus, memory=spec.sae.memory)
        case Container.ARCHIVER if spec.archive.enabled:
            return Resources(cpus=spec.archive.cpus, memory=spec.archive.memory)
    raise ValueError(f"the experiment has no container {container}")


def containers_of(spec: Spec) -> list[Container]:
    """Return the containers of the experiment's pod in start order."""
    absent = {Container.PIPELINE} | ({Container.SAE} if spec.sae is None else set())
    absent |= set() if spec.archive.enabled else {Container.ARCHIVER}
    absent |= set() if spec.mode == "HPC" else {Container.HOOK}  # its work is a thread of the host's
    return [container for container in Container if container not in absent]


def requirements(spec: Spec, container: Container) -> Manifest:
    """Return `resources` of a container."""
    given = of_container(spec, container)
    amounts = {"cpu": cpu_quantity(given.cpus), "memory": given.memory}
    if container is Container.HOST and spec.resources.host.gpus:
        amounts["nvidia.com/gpu"] = str(spec.resources.host.gpus)
    if container is Container.SAE and spec.sae is not None and spec.sae.gpus:
        amounts[spec.sae.gpu_resource] = str(spec.sae.gpus)
    return {
        "requests": {**amounts, _DISK: format_bytes(_SCRATCH_REQUEST)},
        "limits": {**amounts, _DISK: format_bytes(_disk_limit(spec, container))},
    }


def _disk_limit(spec: Spec, container: Container) -> int:
    """Return a container's ephemeral-storage limit: logs and /tmp, plus the workspace for one container.

    The kubelet checks the pod's volumes against the sum over the running containers.
    """
    holds_workspace = container in {Container.HOST, Container.PREPARE, Container.PIPELINE}
    return _SCRATCH_LIMIT + (parse_bytes(spec.resources.workspace) if holds_workspace else 0)


def cpu_quantity(cpus: float) -> str:
    """Format CPUs as a Kubernetes quantity, `2` or `250m`; the minimum is `1m`."""
    thousandths = max(1, round(cpus * 1000))
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


def threads(spec: Spec, container: Container) -> int:
    """Return the thread count for a container's libraries: its CPUs rounded down, at least one."""
    return max(1, math.floor(of_container(spec, container).cpus))


def rings_bytes(spec: Spec) -> int:
    """Return the size of both rings in bytes, including control files and descriptors; queues take none."""
    if spec.mode != "HPC":
        return 8 * _MIB
    payload = parse_bytes(spec.capture.size) + parse_bytes(spec.bus.size)
    return math.ceil((payload + payload // 64 + 8 * _MIB) / _MIB) * _MIB


def refuse_impossible_memory(spec: Spec) -> None:
    """Reject memory limits that would lead to an OOM kill.

    Ring pages are charged to prepare while it runs, then to the pod. The contract checks the ring sizes in
    the spec; this checks the memory they actually take.

    Raises:
        ConfigError: the limits are too low; the message shows the calculation.
    """
    rings = rings_bytes(spec)
    running = [container for container in containers_of(spec) if container is not Container.PREPARE]
    limits = sum(parse_bytes(of_container(spec, container).memory) for container in running)
    if limits < rings + HEAP * len(running):
        raise ConfigError(
            f"the memory limits of {', '.join(running)} add up to {format_bytes(limits)}, but together they "
            f"hold {_sum(rings, len(running))}. Raise one, or lower spec.capture.size or spec.bus.size."
        )


def _sum(rings: int, processes: int) -> str:
    heaps = f"{processes} × {format_bytes(HEAP)}" if processes > 1 else format_bytes(HEAP)
    return f"{format_bytes(rings)} of rings + {heaps} of processes = {format_bytes(rings + HEAP * processes)}"
