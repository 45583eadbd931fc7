"""What an experiment's pod may talk to: its metrics are read, and only prepare's sources are called."""

import re
from collections.abc import Sequence

from asysi.contract.runtime import PORTS, Container
from asysi.contract.spec import ScanExperiment, Spec
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import COMPONENT, metadata, selector
from asysi_operator.manifests.names import policy_name, rows_name

_LOCAL = {"file", "python", "jsonl", "csv", "parquet", "memory"}
"""Schemes that need no network; what stands behind a format's scheme is looked at too."""


def network_policy(experiment: ScanExperiment, readers: Sequence[Manifest] | None = None) -> Manifest:
    """Return the NetworkPolicy. Where everything is on the node, nothing leaves it, not even a DNS query.

    Args:
        experiment: the experiment.
        readers: peers that may read metrics and status; None lets everybody. A node's own probes pass anyway.
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
            # A store may listen on any port of any host, so a remote source opens all of them.
            "egress": [{}] if needs_network(experiment.spec) else [],
        },
    }


def pipeline_policy(experiment: ScanExperiment) -> Manifest:
    """Return what opens the network for the pipeline's pods alone: an operator may call any endpoint."""
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
    """Whether a source or the output lies beyond the node; a custom program may call whom it likes."""
    data = spec.data.uri if spec.data and spec.data.pipeline is None else None
    uris = [spec.model.uri, spec.model.tokenizer, data, spec.output.uri]
    return spec.workload.custom is not None or any(_is_remote(uri) for uri in uris if uri)


def _is_remote(uri: str) -> bool:
    return any(scheme not in _LOCAL for scheme in re.findall(r"([a-z][a-z0-9+.-]*)://", uri))
