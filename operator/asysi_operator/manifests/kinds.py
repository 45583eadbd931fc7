"""What a manifest is to Python."""

from typing import Any

Manifest = dict[str, Any]
"""A Kubernetes object, or a part of one, as it stands in YAML."""
