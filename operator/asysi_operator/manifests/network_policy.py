"""NetworkPolicy of an experiment's pods: ingress to metrics, and egress only if a source is remote."""

import re
from collections.abc import Sequence

from asysi.contract.runtime import PORTS, Container
from asysi.contract.spec import ScanExperiment, Spec
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import COMPONENT, metadata, selector
from asysi_operator.manifests.names import policy_name, rows_name

_LOCAL = {"file", "python", "jsonl", "csv", "parquet", "memory"}
"""Schemes that need no network; a scheme nested in a format's scheme is checked too."""


def network_policy(experiment: ScanExperiment, readers: Sequence[Manifest] | None = None) -> Manifest:
    """Return the NetworkPolicy. If all sources are local, all egress is denied, including DNS.

    Args:
        experiment: the experiment.
        readers: peers that may read metrics and status; None allows all. The kubelet's probes always pass.
    """
    ports = [{"port": port, "protocol": "TCP"} for port in sorted(PORTS.values())]
    ingress = [] if readers == [] else [{"ports": ports, **({"from": list(readers)} if readers else {})}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(experiment, policy_name(experiment)),
        "spec": {
            "podSelector": {"matchLabels": selector(experiment)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            # A store may use any host and port, so a remote source allows all egress.
            "egress": [{}] if needs_network(experiment.spec) else [],
        },
    }


def pipeline_policy(experiment: ScanExperiment) -> Manifest:
    """Return the NetworkPolicy that allows all egress of the pipeline's pods: operators may call anything."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(experiment, rows_name(experiment)),
        "spec": {
            "podSelector": {"matchLabels": {**selector(experiment), COMPONENT: str(Container.PIPELINE)}},
            "policyTypes": ["Egress"],
            "egress": [{}],
        },
    }


def needs_network(spec: Spec) -> bool:
    """Whether a source or the output is remote; a custom program may make any connection."""
    data = spec.data.uri if spec.data and spec.data.pipeline is None else None
    uris = [spec.model.uri, spec.model.tokenizer, data, spec.output.uri]
    return spec.workload.custom is not None or any(_is_remote(uri) for uri in uris if uri)


def _is_remote(uri: str) -> bool:
    return any(scheme not in _LOCAL for scheme in re.findall(r"([a-z][a-z0-9+.-]*)://", uri))
