"""The Kubernetes objects of an experiment, rendered deterministically from its spec alone."""

from collections.abc import Sequence

from asysi import __version__
from asysi.contract.errors import ConfigError
from asysi.contract.identity import output_path
from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests.claim import claim
from asysi_operator.manifests.config_map import config_map
from asysi_operator.manifests.containers import container_security
from asysi_operator.manifests.job import job, pipeline_job
from asysi_operator.manifests.kinds import Manifest, PodSettings
from asysi_operator.manifests.modes import refuse_mode
from asysi_operator.manifests.network_policy import network_policy, pipeline_policy
from asysi_operator.manifests.pod import pod_security
from asysi_operator.manifests.resources import refuse_impossible_memory

IMAGE = f"asysi-worker:{__version__}"
PULL_POLICIES = ("IfNotPresent", "Always", "Never")

__all__ = ["IMAGE", "PULL_POLICIES", "Manifest", "build", "container_security", "pod_security"]


def build(
    experiment: ScanExperiment,
    *,
    image: str = IMAGE,
    pull_policy: str = PULL_POLICIES[0],
    output: str | None = None,
    readers: Sequence[Manifest] | None = None,
    local: bool = False,
) -> list[Manifest]:
    """Return all objects of the experiment, in creation order.

    Args:
        experiment: the resolved experiment.
        image: image of every container, except the host of a custom workload.
        pull_policy: image pull policy; one of PULL_POLICIES.
        output: results directory on the volume; None uses the spec's.
        readers: NetworkPolicy peers that may call the pods' ports; None allows all.
        local: whether the local runner is to run them, which runs CONSUMER mode as well.

    Raises:
        ConfigError: the memory limits cannot hold the rings, or a cluster cannot run the mode yet.
    """
    if not local and (problem := refuse_mode(experiment.spec)):
        raise ConfigError(problem)
    refuse_impossible_memory(experiment.spec)
    place = str(output_path(experiment)) if output is None else output
    made, data = PodSettings(image, pull_policy, place), experiment.spec.data
    rows = data is not None and data.pipeline is not None
    return [
        config_map(experiment),
        *([] if experiment.spec.output.claim else [claim(experiment)]),
        network_policy(experiment, readers),
        *([pipeline_policy(experiment), pipeline_job(experiment, made)] if rows else []),
        job(experiment, made),
    ]
