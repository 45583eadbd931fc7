"""Hook points that the trial did not reach: whether they can be called, and the width of their rows."""

from collections.abc import Iterable
from math import prod
from typing import Any

import torch


def is_callable(module: torch.nn.Module) -> bool:
    """Return whether a module has a forward; a container such as ModuleList has none."""
    return type(module).forward is not torch.nn.Module.forward or "forward" in vars(module)


def planned_width(module: torch.nn.Module, seen: Iterable[int], config: Any = None) -> int:
    """Return the planned row width of a module's output.

    If the module declares its output width, that is used. Otherwise the maximum known width of the model is
    assumed, so that the rings are rather too large than too small.

    Args:
        module: a module that was not called in the trial.
        seen: row widths of other modules.
        config: the model's configuration, or None.
    """
    declared = _declared(module)
    if declared is not None:
        return declared
    hidden = getattr(config, "hidden_size", None)
    inside = [width for child in module.modules() if (width := _declared(child)) is not None]
    return max((*seen, *inside, hidden if isinstance(hidden, int) else 0), default=0)


def planned_dtype(module: torch.nn.Module, model: torch.nn.Module) -> torch.dtype:
    """Return the planned dtype of a module's output: that of its parameters, otherwise the model's."""
    for parameter in (*module.parameters(), *model.parameters()):
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.float32


def _declared(module: torch.nn.Module) -> int | None:
    """Return the output width that a module declares; None if it declares none."""
    if isinstance(module, torch.nn.Sequential) and len(module):
        return _declared(module[-1])
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple) and shape:
        return prod(shape)
    names = ("out_features", "embedding_dim", "nf")  # nf: Conv1D of transformers
    found = (getattr(module, name, None) for name in names)
    return next((width for width in found if isinstance(width, int) and width > 0), None)
