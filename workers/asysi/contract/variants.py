"""The trainable SAE variants, by their name in `spec.sae.train[].variant`."""

from typing import Final

VARIANTS: Final[dict[str, str]] = {
    "topk": "asysi.sae.variants.topk:TopK",
}
"""`module:class` by name. Names in the schema that are missing here are rejected as not available yet."""
