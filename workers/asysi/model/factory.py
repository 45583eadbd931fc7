"""Models from `python://` factories: built with weights where they run, otherwise only as a structure."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from asysi.contract.errors import ConfigError
from asysi.model.faults import format_error
from asysi.model.hollow import MetaInitMode

_DEVICE = "device"


class FactoryResult(NamedTuple):
    """Result of a factory."""

    module: torch.nn.Module
    tokenizer: Any
    """None if the factory returned none."""


def takes_device(factory: Callable[..., Any]) -> bool:
    """Return whether a factory has a parameter named `device`."""
    try:
        return _DEVICE in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False


def make(factory: Callable[..., Any], uri: str, device: str = "cpu") -> FactoryResult:
    """Call a factory; the model has weights, on `device` if the factory has that parameter.

    Args:
        factory: the factory.
        uri: URI in the spec, for error messages.
        device: device on which the model will run.

    Raises:
        ConfigError: the factory fails, or returns no module or one without weights.
    """
    arguments = {_DEVICE: device} if takes_device(factory) else {}
    try:
        made = _unpacked(factory(**arguments), uri)
    except ConfigError:
        raise
    except Exception as error:  # a factory may raise anything
        raise ConfigError(f"spec.model.uri: {uri} fails: {format_error(error)}") from error
    empty = next((name for name, one in made.module.named_parameters() if one.is_meta), None)
    if empty is not None:
        raise ConfigError(
            f"spec.model.uri: {uri} returns a model without weights: its parameter {empty} is on the meta "
            "device"
        )
    return made


def make_structure(factory: Callable[..., Any], uri: str) -> tuple[FactoryResult, str | None]:
    """Call a factory for the model's structure: parameters on the meta device need no memory and no time.

    Returns:
        The result, and the reason if it has weights nevertheless, otherwise None.

    Raises:
        ConfigError: the factory fails with weights too, or returns no module.
    """
    arguments = {_DEVICE: "meta"} if takes_device(factory) else {}
    try:
        with MetaInitMode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about every value not assigned to a meta parameter
            return _unpacked(factory(**arguments), uri), None
    except Exception as error:  # noqa: BLE001 - a factory that fails without values may work with them
        why = format_error(error)
    return make(factory, uri), why


def _unpacked(made: Any, uri: str) -> FactoryResult:
    module, tokenizer = made if isinstance(made, tuple) else (made, None)
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"spec.model.uri: {uri} returns {type(module).__name__}, not a torch.nn.Module")
    return FactoryResult(module, tokenizer)
