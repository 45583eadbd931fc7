"""Checkpoints: one file that is written atomically, and the weights as safetensors."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from asysi.contract.errors import ConfigError
from asysi.files import write_atomically

CHECKPOINT = "checkpoint.pt"
BEST = "best.safetensors"
LAST = "last.safetensors"
VERSION = 1


def save(file: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint."""
    write_atomically(file, lambda temporary: torch.save({"version": VERSION, **state}, temporary))


def load(file: Path) -> dict[str, Any]:
    """Return a checkpoint; nothing in it is executed.

    Raises:
        ConfigError: it is damaged, or of another version.
    """
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise ConfigError(
            f"{file} is damaged ({type(error).__name__}): delete the run's folder to begin again"
        ) from error
    if state.get("version") != VERSION:
        raise ConfigError(f"{file} has version {state.get('version')}, not {VERSION}: another asysi wrote it")
    return state


def kept_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's state without the frozen parameters of a pretrained part, which never change."""
    frozen: set[str] = set()
    for place, module in model.named_modules():
        if getattr(module, "pretrained", False):
            prefix = f"{place}." if place else ""
            frozen |= {f"{prefix}{name}" for name, one in module.named_parameters() if not one.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def put_kept_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load a state returned by `kept_state` into a model.

    Raises:
        RuntimeError: the state belongs to another model.
    """
    missing = kept_state(model).keys() ^ state.keys()
    if missing:
        raise RuntimeError(f"names differ: {', '.join(sorted(missing)[:3])}")
    model.load_state_dict(state, strict=False)


def save_weights(file: Path, model: torch.nn.Module) -> None:
    """Write the part of a model that training can change as safetensors."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in kept_state(model).items()}
    write_atomically(file, lambda temporary: save_file(tensors, temporary))


def load_weights(file: Path, model: torch.nn.Module) -> None:
    """Load weights from a file into a model.

    Raises:
        ConfigError: the file is missing or damaged, or it belongs to another model.
    """
    try:
        put_kept_state(model, load_file(file))
    except FileNotFoundError as error:
        raise ConfigError(f"{file} does not exist: train the project first, `sh train.sh cpu`") from error
    except Exception as error:  # safetensors raises its own exceptions
        raise ConfigError(f"{file} does not hold this project's model: {error}") from error
