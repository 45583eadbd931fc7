"""Analysis of a checkpoint's parameters: statistics, ranks and spectra, without building the model.

The names of the original design are here: `download_model`, `iterate_parameters`, `tensor_stats`,
`classify_param`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asysi.weights.comparing.compare import compare
    from asysi.weights.reading.checkpoint import Checkpoint, open_checkpoint
    from asysi.weights.run.download import download_model
    from asysi.weights.statistics.analysis import (
        CheckpointAnalysis,
        CheckpointOrigin,
        Settings,
        analyze,
        iterate_parameters,
        tensor_stats,
    )
    from asysi.weights.statistics.parameter_families import classify_param

_HOMES = {
    "CheckpointAnalysis": "statistics.analysis",
    "Checkpoint": "reading.checkpoint",
    "CheckpointOrigin": "statistics.analysis",
    "Settings": "statistics.analysis",
    "analyze": "statistics.analysis",
    "classify_param": "statistics.parameter_families",
    "compare": "comparing.compare",
    "download_model": "run.download",
    "iterate_parameters": "statistics.analysis",
    "open_checkpoint": "reading.checkpoint",
    "tensor_stats": "statistics.analysis",
}

__all__ = [
    "Checkpoint",
    "CheckpointAnalysis",
    "CheckpointOrigin",
    "Settings",
    "analyze",
    "classify_param",
    "compare",
    "download_model",
    "iterate_parameters",
    "open_checkpoint",
    "tensor_stats",
]


def __getattr__(name: str) -> Any:
    """Import names lazily, so that classifying a parameter does not load linear algebra."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"asysi.weights.{_HOMES[name]}"), name)
