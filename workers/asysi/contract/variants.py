"""The trainable SAE variants, by their name in `spec.sae.train[].variant`."""

from typing import Final

VARIANTS: Final[dict[str, str]] = {
    "topk": "asysi.sae.variants.topk:TopK",
    "batchtopk": "asysi.sae.variants.batchtopk:BatchTopK",
    "jumprelu": "asysi.sae.variants.jumprelu:JumpReLU",
    "gated": "asysi.sae.variants.gated:Gated",
    "standard": "asysi.sae.variants.standard:Standard",
    "matryoshka": "asysi.sae.variants.matryoshka:Matryoshka",
}
"""`module:class` by name. Names in the schema that are missing here are rejected as not available yet."""

WITH_K: Final = ("topk", "batchtopk", "matryoshka")
"""Variants that `spec.sae.train[].k` limits."""
