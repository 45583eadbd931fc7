"""Lookup of operators by their name in a spec, or by `module:Class`."""

import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.pipeline.operators.operator import as_operator, note_given

_LIBRARY = "asysi.pipeline.library"
NAMES: dict[str, str] = {
    "chat": f"{_LIBRARY}.chat:Chat",
    "deduplicate": f"{_LIBRARY}.duplicates:Deduplicate",
    "extract": f"{_LIBRARY}.extract:Extract",
    "filter": f"{_LIBRARY}.choice:Filter",
    "near-deduplicate": f"{_LIBRARY}.duplicates:NearDeduplicate",
    "sample": f"{_LIBRARY}.choice:Sample",
    "template": f"{_LIBRARY}.template:Template",
}
"""Name in a spec → `module:Class`, imported on demand."""


def make_operator(name: str, params: Mapping[str, Any] | None = None) -> Any:
    """Create an operator from its name in `NAMES`, or from `module:Class` or `module:function`.

    Args:
        name: name in the spec.
        params: constructor arguments, in snake case or as in a spec (`maxTries` for `max_tries`); none for a
            function.

    Raises:
        ConfigError: there is no such operator, or it does not take these parameters.
    """
    found = _found(NAMES.get(name, name), name)
    if not inspect.isclass(found):
        if params:
            raise ConfigError(f"the operator {name} is a function and takes no params: remove them")
        return as_operator(found)
    arguments = {_snake(key): value for key, value in (params or {}).items()}
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"the operator {name} does not take these params: {error}") from error
    except ValueError:  # a class whose signature cannot be read
        pass
    try:
        made = as_operator(found(**arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the operator {name} cannot be created with its params: {error}") from error
    note_given(made, (), arguments)
    return made


def _found(target: str, name: str) -> Any:
    module, colon, attribute = target.partition(":")
    if not colon:
        near = get_close_matches(name, NAMES, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(NAMES)) or 'none yet'}"
        raise ConfigError(f"there is no operator {name}: {hint}; one of your own is module:Class")
    try:
        found: Any = import_module(module)
    except ImportError as error:
        raise ConfigError(f"the operator {name} cannot be imported: {error}") from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise ConfigError(f"the operator {name}: {module} has no {attribute}")
    return found


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: f"_{found[1].lower()}", name)
