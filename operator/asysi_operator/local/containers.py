"""The parts of a rendered pod that can be emulated with processes."""

from dataclasses import dataclass

from asysi.contract.quantity import parse_bytes
from asysi_operator.manifests.kinds import Manifest


@dataclass(frozen=True)
class Probe:
    """An HTTP probe; times in seconds."""

    path: str
    period: float
    timeout: float
    threshold: int
    """Consecutive failures after which the container has failed."""
    grace: float | None = None
    """Seconds between SIGTERM and SIGKILL after a failure; None uses the pod's grace period."""


@dataclass(frozen=True)
class LocalContainer:
    """One container of the pod."""

    name: str
    command: tuple[str, ...]
    env: tuple[Manifest, ...]
    memory: int
    """Limit in bytes."""
    serves: bool = False
    """Whether it has a port."""
    sidecar: bool = False
    startup: Probe | None = None
    liveness: Probe | None = None


@dataclass(frozen=True)
class PodSpec:
    """The pod: init containers and sidecars in order, main containers, grace period in seconds."""

    inits: tuple[LocalContainer, ...]
    mains: tuple[LocalContainer, ...]
    grace: float

    @property
    def containers(self) -> tuple[LocalContainer, ...]:
        """All containers in start order."""
        return self.inits + self.mains


def read_pod(template: Manifest) -> PodSpec:
    """Read a rendered pod template."""
    spec = template["spec"]
    return PodSpec(
        inits=tuple(_container(item) for item in spec.get("initContainers", ())),
        mains=tuple(_container(item) for item in spec["containers"]),
        grace=float(spec["terminationGracePeriodSeconds"]),
    )


def _container(item: Manifest) -> LocalContainer:
    return LocalContainer(
        name=item["name"],
        command=tuple(item.get("command") or item["args"]),
        env=tuple(item["env"]),
        memory=parse_bytes(item["resources"]["limits"]["memory"]),
        serves=bool(item.get("ports")),
        sidecar=item.get("restartPolicy") == "Always",
        startup=_probe(item.get("startupProbe")),
        liveness=_probe(item.get("livenessProbe")),
    )


def _probe(item: Manifest | None) -> Probe | None:
    if item is None:
        return None
    return Probe(
        path=item["httpGet"]["path"],
        period=float(item["periodSeconds"]),
        timeout=float(item["timeoutSeconds"]),
        threshold=item["failureThreshold"],
        grace=item.get("terminationGracePeriodSeconds"),
    )
