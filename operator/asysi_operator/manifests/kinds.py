"""What a manifest is to Python."""

from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
"""A Kubernetes object, or a part of one, as it stands in YAML."""


@dataclass(frozen=True)
class PodSettings:
    """What the pods of an experiment have in common that its spec does not say."""

    image: str
    pull_policy: str
    output: str = "."
    """Folder of the results on the volume, relative."""
