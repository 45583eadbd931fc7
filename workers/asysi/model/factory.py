"""Models of `python://` factories: built where they run, and elsewhere as far as a structure goes."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from asysi.contract.errors import ConfigError
from asysi.model.faults import said
from asysi.model.hollow import Structure

_DEVICE = "device"


class Made(NamedTuple):
    """What a factory returned."""

    module: torch.nn.Module
    tokenizer: Any
    """None where it returned none."""


def takes_device(factory: Callable[..., Any]) -> bool:
    """Return whether a factory has a parameter named `device`."""
    try:
        return _DEVICE in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False


def make(factory: Callable[..., Any], uri: str, device: str = "cpu") -> Made:
    """Call a factory; the model has weights, on `device` where the factory takes that argument.

    Args:
        factory: what the spec names.
        uri: the spec's, for messages.
        device: where the model will run.

    Raises:
        ConfigError: the factory fails, returns no module, or one without weights.
    """
    arguments = {_DEVICE: device} if takes_device(factory) else {}
    try:
        made = _unpacked(factory(**arguments), uri)
    except ConfigError:
        raise
    except Exception as error:  # a factory may do anything
        raise ConfigError(f"spec.model.uri: {uri} fails: {said(error)}") from error
    empty = next((name for name, one in made.module.named_parameters() if one.is_meta), None)
    if empty is not None:
        raise ConfigError(
            f"spec.model.uri: {uri} returns a model without weights: its parameter {empty} is on the meta "
            "device"
        )
    return made


def make_structure(factory: Callable[..., Any], uri: str) -> tuple[Made, str | None]:
    """Call a factory for the structure alone: parameters on the meta device take no memory and no time.

    Returns:
        What it made, and why that has weights although it need not, None where it has none.

    Raises:
        ConfigError: the factory fails with weights too, or returns no module.
    """
    arguments = {_DEVICE: "meta"} if takes_device(factory) else {}
    try:
        with Structure(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of each value that a parameter does not take
            return _unpacked(factory(**arguments), uri), None
    except Exception as error:  # noqa: BLE001 - whatever a factory cannot do without values, it may do with them
        why = said(error)
    return make(factory, uri), why


def _unpacked(made: Any, uri: str) -> Made:
    module, tokenizer = made if isinstance(made, tuple) else (made, None)
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"spec.model.uri: {uri} returns {type(module).__name__}, no torch.nn.Module")
    return Made(module, tokenizer)
