"""Variants of the sparse autoencoder, one per file; registered in `asysi.contract.variants`."""

from importlib import import_module
from typing import TYPE_CHECKING

from asysi.contract.errors import ConfigError
from asysi.contract.variants import VARIANTS

if TYPE_CHECKING:
    from asysi.sae.variants.base import SparseAutoencoder


def variant(name: str) -> "type[SparseAutoencoder]":
    """Return the class of a variant.

    Raises:
        ConfigError: there is no trainable variant with that name.
    """
    if name not in VARIANTS:
        raise ConfigError(f"the SAE variant {name} is not available: use {', '.join(VARIANTS)}")
    module, _, attribute = VARIANTS[name].partition(":")
    found: type[SparseAutoencoder] = getattr(import_module(module), attribute)
    return found


def loadable() -> "dict[str, type[SparseAutoencoder]]":
    """Return the variants whose exports can be loaded, by their architecture in `cfg.json`."""
    classes = (variant(name) for name in VARIANTS)
    return {one.architecture: one for one in classes if one.architecture is not None}
