"""Types for manifests."""

from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
"""A Kubernetes object, or part of one, as in YAML."""


@dataclass(frozen=True)
class PodSettings:
    """Settings of an experiment's pods that are not in its spec."""

    image: str
    pull_policy: str
    output: str = "."
    """Results directory, relative to the volume."""
