"""What a manifest is to Python."""

from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
"""A Kubernetes object, or a part of one, as it stands in YAML."""


@dataclass(frozen=True)
class Image:
    """Image of the containers."""

    name: str
    pull_policy: str
