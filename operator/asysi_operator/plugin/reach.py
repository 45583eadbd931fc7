"""Finds a container that mounts a claim: the experiment's own while it runs, else a short-lived pod."""

import json
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import MOUNTS, Container, Env
from asysi_operator.failures import QUIET_WAITS
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import EXPERIMENT
from asysi_operator.manifests.names import OUTPUT, ROWS
from asysi_operator.observation import condition, containers, is_terminating, state_of
from asysi_operator.plugin.access import ClusterError
from asysi_operator.plugin.diagnosis import watches
from asysi_operator.plugin.files_pod import CONTAINER, FOLDER, Origin, files_pod, origin_of
from asysi_operator.plugin.kubectl import Kubectl
from asysi_operator.plugin.observe import KIND, OPERATOR, attempt, unknown
from asysi_operator.plugin.transfer import ClaimFolder

READY_SECONDS = 180.0
"""Timeout for the pod to start; its image is usually on the node, because the experiment ran there."""
PATIENCE_SECONDS = 15.0
"""Seconds that a startup problem must persist: a volume being provisioned looks like one at first."""
_QUANTITY = re.compile(r"[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?")
_ENDED = {"Succeeded", "Failed"}
_OUTPUT = MOUNTS[Env.OUTPUT]


def results_of(experiment: Manifest) -> tuple[str, str]:
    """Return the claim with an experiment's results and the folder on it.

    Raises:
        ConfigError: nothing has been written yet.
    """
    name = experiment["metadata"]["name"]
    recorded = (experiment.get("status") or {}).get("output")
    if not recorded:
        phase = (experiment.get("status") or {}).get("phase", "not processed yet")
        raise ConfigError(f"{name} is {phase} and has written nothing: see `asysi cluster why {name}`")
    claim, _, folder = str(recorded).partition("/")
    path = PurePosixPath(folder or ".")
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"status.output of {name} is {recorded}, which leads out of the claim")
    return claim, str(path)


@contextmanager
def results(kubectl: Kubectl, name: str, *, image: str | None, seconds: int) -> Iterator[ClaimFolder]:
    """Yield the location of an experiment's results.

    For a deleted experiment, that is its own claim, if it was retained.

    Args:
        kubectl: the cluster.
        name: name of the experiment.
        image: image of the short-lived pod, if one is needed; None uses the experiment's.
        seconds: deadline of that pod.
    """
    experiment = kubectl.find(KIND, name)
    kept = f"{name}{OUTPUT}"
    if experiment is None and kubectl.find("persistentvolumeclaim", kept) is not None:
        with mounted(kubectl, kept, None, image=image, seconds=seconds, read_only=True) as pod_name:
            yield ClaimFolder(pod_name, CONTAINER, FOLDER)
        return
    if experiment is None:
        raise unknown(kubectl, name)
    claim, folder = results_of(experiment)
    pods = attempt(lambda: kubectl.items("pods", f"--selector={EXPERIMENT}={name}"))
    for pod in pods:
        if state_of(pod, Container.FINISH)[0] == "running" and not is_terminating(pod):
            yield ClaimFolder(pod["metadata"]["name"], Container.FINISH, str(_OUTPUT / folder))
            return
    with mounted(kubectl, claim, experiment, image=image, seconds=seconds, read_only=True) as pod_name:
        yield ClaimFolder(pod_name, CONTAINER, str(PurePosixPath(FOLDER) / folder))


@contextmanager
def mounted(
    kubectl: Kubectl,
    claim: str,
    experiment: Manifest | None,
    *,
    image: str | None,
    seconds: int,
    read_only: bool,
) -> Iterator[str]:
    """Yield the name of a pod that mounts a claim at `FOLDER`; the pod is always deleted afterwards.

    Raises:
        ConfigError: its image is unknown.
        ClusterError: it cannot be created, or does not start.
    """
    origin = find_origin(kubectl, experiment, image)
    node = _node_of(kubectl, claim)
    name = f"asysi-files-{secrets.token_hex(4)}"
    pod = files_pod(name, claim, origin, seconds=seconds, read_only=read_only, node=node)
    try:
        kubectl.run("create", "--filename=-", content=json.dumps(pod))
        _await_ready(kubectl, name)
        yield name
    finally:
        if not kubectl.remove("pod", name):
            sys.stderr.write(f"the pod {name} could not be deleted: it ends by itself within {seconds} s\n")


def find_origin(kubectl: Kubectl, experiment: Manifest | None, image: str | None) -> Origin:
    """Return image, placement and security of the pod, from the experiment's Job, another, or the operator.

    Raises:
        ConfigError: none of them exists or can be read.
    """
    job = _job_of(kubectl, experiment) if experiment else None
    if job is not None:
        found = origin_of(job)
        return Origin(image, found.pull_policy, found.security, found.pod) if image else found
    place = _place_of(experiment) if experiment else {}
    if image:
        return Origin(image, pod=place)
    for other in attempt(lambda: kubectl.items("jobs", f"--selector={EXPERIMENT}")):
        found = origin_of(other)
        kept = {key: found.pod[key] for key in ("imagePullSecrets",) if key in found.pod}
        return Origin(found.image, found.pull_policy, pod=place | kept)
    namespace = kubectl.current_namespace()
    operators = attempt(
        lambda: kubectl.items("deployments", "--all-namespaces", f"--selector={OPERATOR}")
    ) or attempt(lambda: kubectl.items("deployments", f"--selector={OPERATOR}"))
    for deployment in sorted(operators, key=lambda one: not watches(one, namespace)):
        arguments = deployment["spec"]["template"]["spec"]["containers"][0].get("args") or ()
        given = dict(one.partition("=")[::2] for one in arguments)
        if "--image" in given:
            return Origin(given["--image"], given.get("--image-pull-policy", "IfNotPresent"), pod=place)
    raise ConfigError(
        "there is no Job of an experiment, and no Deployment of the operator can be read, so the image of "
        "the short-lived pod is unknown: name the workers' image with --image"
    )


def _job_of(kubectl: Kubectl, experiment: Manifest) -> Manifest | None:
    name = experiment["metadata"]["name"]
    for candidate in (name, f"{name}{ROWS}"):
        if (found := kubectl.find("job", candidate)) is not None:
            return found
    return None


def _place_of(experiment: Manifest) -> Manifest:
    """Return the placement of an experiment's pods from its spec."""
    scheduling = (experiment.get("spec") or {}).get("scheduling") or {}
    wanted = {key: scheduling.get(key) for key in ("nodeSelector", "tolerations", "runtimeClassName")}
    return {key: value for key, value in wanted.items() if value}


def _node_of(kubectl: Kubectl, claim: str) -> str | None:
    """Return the node of a pod that mounts the claim, if pods on other nodes could not mount it too."""
    found = kubectl.find("persistentvolumeclaim", claim)
    if found is None:
        raise ConfigError(
            f"there is no claim {claim} in namespace {kubectl.current_namespace()}: deleted, or never made"
        )
    if any(mode.endswith("Many") for mode in found["spec"].get("accessModes") or ()):
        return None
    for pod in attempt(lambda: kubectl.items("pods")):
        claims = [
            one.get("persistentVolumeClaim", {}).get("claimName") for one in pod["spec"].get("volumes", ())
        ]
        ended = (pod.get("status") or {}).get("phase") in _ENDED
        if claim in claims and not ended and pod["spec"].get("nodeName"):
            return str(pod["spec"]["nodeName"])
    return None


def _await_ready(kubectl: Kubectl, name: str) -> None:
    begun = time.monotonic()
    since: float | None = None
    while True:
        pod = kubectl.get("pod", name)
        if state_of(pod, CONTAINER)[0] == "running":
            return
        now, trouble = time.monotonic(), trouble_of(pod)
        since = (since or now) if trouble else None
        gone = (pod.get("status") or {}).get("phase") in _ENDED
        if trouble and since is not None and (gone or now - since > PATIENCE_SECONDS):
            raise ClusterError(f"the short-lived pod cannot start: {trouble}")
        if now - begun > READY_SECONDS:
            events = attempt(
                lambda: kubectl.items("events", f"--field-selector=involvedObject.name={name},type=Warning")
            )
            last = f": {events[-1].get('message', '')}" if events else ""
            raise ClusterError(f"the short-lived pod has not started within {READY_SECONDS:.0f} s{last}")
        time.sleep(0.3)


def trouble_of(pod: Manifest) -> str | None:
    """Return why a pod cannot start, or None if nothing prevents it. Pure."""
    phase = (pod.get("status") or {}).get("phase")
    if phase in _ENDED:
        return str(pod["status"].get("message") or f"it is {phase}")
    scheduled = condition(pod, "PodScheduled")
    if scheduled and scheduled["status"] == "False":
        return f"{scheduled.get('reason')}: {scheduled.get('message', '')}"
    for container in containers(pod):
        kind, detail = state_of(pod, container)
        if kind == "waiting" and detail.get("reason", "") not in {*QUIET_WAITS, ""}:
            return f"{detail['reason']}: {detail.get('message', '')}"
    return None


def input_claim(kubectl: Kubectl, name: str) -> tuple[str, Manifest | None]:
    """Return the claim that `put` fills and the experiment that reads it, given the name of either.

    Raises:
        ConfigError: neither exists, or the experiment reads no claim or several.
    """
    if kubectl.find("persistentvolumeclaim", name) is not None:
        return name, None
    experiment = kubectl.find(KIND, name)
    namespace = kubectl.current_namespace()
    if experiment is None:
        raise ConfigError(
            f"there is no claim and no experiment {name} in namespace {namespace}: --create SIZE makes one"
        )
    claims = [one["claim"] for one in (experiment.get("spec") or {}).get("inputs") or ()]
    if len(claims) == 1:
        return claims[0], experiment
    several = (
        f"reads {', '.join(claims)}: name one of them" if claims else "reads no claim (spec.inputs is empty)"
    )
    raise ConfigError(f"the experiment {name} {several}")


def make_claim(kubectl: Kubectl, name: str, size: str) -> None:
    """Create a claim with the default storage class, unless one of that name exists.

    Raises:
        ConfigError: `size` is not a quantity.
        ClusterError: it cannot be created.
    """
    if not _QUANTITY.fullmatch(size):
        raise ConfigError(f"--create is {size}, which is not a size: write 10Gi or 500Mi")
    if kubectl.find("persistentvolumeclaim", name) is not None:
        return
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}
    kubectl.run("create", "--filename=-", content=json.dumps(claim))
