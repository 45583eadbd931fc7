"""The ConfigMap with the complete experiment as one JSON file, which the workers read."""

import json
from typing import Any

from asysi.contract.canonical import canonical
from asysi.contract.frozen import frozen
from asysi.contract.runtime import MOUNTS, Env
from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import metadata
from asysi_operator.manifests.names import config_name


def config_map(experiment: ScanExperiment) -> Manifest:
    """Return the ConfigMap. Its file is canonical, so workers of a Job from an older operator can read it.

    Nulls are kept: `sae: null` is meaningful.
    """
    document = canonical(experiment)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(experiment, config_name(experiment)),
        "data": {MOUNTS[Env.CONFIG].name: json.dumps(document, indent=2, ensure_ascii=False) + "\n"},
    }


def applied_spec(there: Manifest) -> dict[str, Any]:
    """Return the frozen part of the spec that a ConfigMap was created from, {} if unknown."""
    try:
        document = json.loads(there["data"][MOUNTS[Env.CONFIG].name])
        return frozen(document["spec"])
    except (KeyError, TypeError, ValueError):
        return {}
