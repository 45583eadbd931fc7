"""The logs of an experiment's containers."""

import subprocess
import sys
import time
from collections.abc import Sequence

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Container
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import EXPERIMENT
from asysi_operator.observation import containers, is_terminating, state_of
from asysi_operator.plugin.experiment_view import ExperimentView
from asysi_operator.plugin.kubectl import Kubectl
from asysi_operator.plugin.observe import find_experiment

PAUSE = 1.0
"""Seconds between two checks for containers that have started."""


def show(
    kubectl: Kubectl, name: str, container: str | None, *, follow: bool, previous: bool, tail: int | None
) -> int:
    """Print logs and return kubectl's exit code.

    Raises:
        ConfigError: there is no such experiment, pod or container.
    """
    experiment = find_experiment(kubectl, name)
    pod = newest(kubectl, experiment)
    if pod is None:
        raise ConfigError(f"{name} has no pod and therefore no logs: `asysi cluster why {name}` says why")
    known = [one["name"] for one in _containers_of(pod)]
    if container is not None and container not in known:
        raise ConfigError(f"the pod of {name} has no container {container}: it has {', '.join(known)}")
    options = [*(["--previous"] if previous else []), *([f"--tail={tail}"] if tail is not None else [])]
    if follow:
        return _follow(kubectl, pod, [container] if container else known, options)
    chosen = [container] if container else [one for one in known if _has_begun(pod, one)]
    if not chosen:
        raise ConfigError(f"no container of {pod['metadata']['name']} has begun: `asysi cluster why {name}`")
    code = 0
    for one in chosen:
        prefix = [] if container else ["--prefix"]
        code = _call(kubectl, pod, one, [*options, *prefix]) or code
    return code


def newest(kubectl: Kubectl, experiment: Manifest) -> Manifest | None:
    """Return the current pod, or None."""
    name = experiment["metadata"]["name"]
    return ExperimentView(experiment, pods=kubectl.items("pods", f"--selector={EXPERIMENT}={name}")).pod


def _containers_of(pod: Manifest) -> list[Manifest]:
    order = {str(one): place for place, one in enumerate(Container)}
    found = [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]
    return sorted(found, key=lambda one: order.get(one["name"], len(order)))


def _has_begun(pod: Manifest, container: str) -> bool:
    return state_of(pod, container)[0] in {"running", "terminated"} or bool(
        containers(pod).get(container, {}).get("restartCount")
    )


def _call(kubectl: Kubectl, pod: Manifest, container: str, options: Sequence[str]) -> int:
    command = kubectl.command("logs", pod["metadata"]["name"], f"--container={container}", *options)
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode  # noqa: S603 - kubectl, as the user has it


def _follow(kubectl: Kubectl, pod: Manifest, chosen: Sequence[str], options: Sequence[str]) -> int:
    """Follow each container from its start until the pod has ended."""
    name = pod["metadata"]["name"]
    prefix = ["--prefix"] if len(chosen) > 1 else []
    followed: dict[str, subprocess.Popen[bytes]] = {}
    sys.stdout.flush()
    try:
        while True:
            found = kubectl.find("pod", name)
            ended = found is None or is_terminating(found) or _phase(found) in {"Succeeded", "Failed"}
            for one in chosen:
                if found is not None and one not in followed and _has_begun(found, one):
                    command = kubectl.command(
                        "logs", name, f"--container={one}", "--follow", *prefix, *options
                    )
                    followed[one] = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - kubectl, as the user has it
            if ended:
                return max((process.wait() for process in followed.values()), default=0)
            if len(followed) == len(chosen) and all(one.poll() is not None for one in followed.values()):
                return max(one.returncode for one in followed.values())
            time.sleep(PAUSE)
    finally:
        for process in followed.values():
            if process.poll() is None:
                process.terminate()


def _phase(pod: Manifest) -> str:
    return str((pod.get("status") or {}).get("phase", ""))
