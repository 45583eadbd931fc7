"""A-Sys-I: a microscope for PyTorch models in motion."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["ScannerEngine", "__version__"]

_HOMES = {"ScannerEngine": "asysi.capture.scanner"}


def __getattr__(name: str) -> Any:
    """Import a class on first use: `import asysi` alone loads neither torch nor numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
