"""Operators by name, as a spec names them."""

import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from asysi.contract.errors import ConfigError

_LIBRARY = "asysi.pipeline.library"
_targets = {
    "chat": f"{_LIBRARY}.chat:Chat",
    "deduplicate": f"{_LIBRARY}.duplicates:Deduplicate",
    "extract": f"{_LIBRARY}.extract:Extract",
    "filter": f"{_LIBRARY}.choice:Filter",
    "near-deduplicate": f"{_LIBRARY}.duplicates:NearDeduplicate",
    "sample": f"{_LIBRARY}.choice:Sample",
    "template": f"{_LIBRARY}.template:Template",
}
_PREFIX = "python://"


def register(name: str, target: str) -> None:
    """Make an operator known under a name; `target` is `package.module:Class`, imported when it is needed.

    Raises:
        ConfigError: the name is taken, or the target is none.
    """
    if name in _targets and _targets[name] != target:
        raise ConfigError(f"the operator {name} is {_targets[name]} already: register another name")
    if not _is_target(target):
        raise ConfigError(f"{target!r} is no target: give package.module:Class")
    _targets[name] = target


def names() -> list[str]:
    """Return the names that are known."""
    return sorted(_targets)


def make(name: str, params: Mapping[str, Any] | None = None) -> Any:
    """Return an operator.

    Args:
        name: a name that is known, or `python://package.module:Class` (or a function over batches).
        params: what it is made with; `maxTokens` means `max_tokens`.

    Raises:
        ConfigError: there is no such operator, or it cannot be made from these parameters.
    """
    target = _targets.get(name, name.removeprefix(_PREFIX))
    if not _is_target(target):
        near = get_close_matches(name, names(), 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
        raise ConfigError(
            f"nobody knows the operator {name}: {hint} (one of your own: {_PREFIX}package.module:Class)"
        )
    found = _imported(name, target)
    if not inspect.isclass(found):
        if params:
            raise ConfigError(f"the operator {name} is a function: it takes no params")
        return found
    return found(**_arguments(name, found, params or {}))


def _is_target(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text) is not None


def _imported(name: str, target: str) -> Any:
    module, _, path = target.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the operator {name} cannot be imported ({error})") from error
    if not callable(found):
        raise ConfigError(f"the operator {name} is {type(found).__name__}, neither a class nor a function")
    return found


def _arguments(name: str, kind: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(kind)
    given = {key if key in signature.parameters else _snake(key): value for key, value in params.items()}
    try:
        signature.bind(**given)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise ConfigError(f"the operator {name}: {error}; its params are {known}") from error
    return given


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: f"_{found[1].lower()}", name)
