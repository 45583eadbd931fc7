"""The SAE variants that can be trained, by the name that `spec.sae.train[].variant` gives them."""

from typing import Final

VARIANTS: Final[dict[str, str]] = {
    "topk": "asysi.sae.variants.topk:TopK",
}
"""`module:class` by name. A name that the schema has and this table does not have is refused as not available
yet.
"""
