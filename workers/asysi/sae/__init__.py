"""Sparse autoencoders, trained on the live stream of activations, on an archive, or on any rows.

In a notebook:

    import asysi.sae

    trained = asysi.sae.train(activations, {"latents": 4096, "k": 32})
    latents = trained.sae.encode(activations[:100])
"""

from importlib import import_module
from typing import Any

_HOMES = {"TrainedSae": "offline", "load": "export", "train": "offline"}

__all__ = ["TrainedSae", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import names lazily, so that a worker handles signals before torch is imported."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"asysi.sae.{_HOMES[name]}"), name)
