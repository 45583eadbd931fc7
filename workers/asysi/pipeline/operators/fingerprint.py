"""Fingerprints of operators, as JSON: a resume with a changed operator is rejected, naming the difference."""

import ast
import dataclasses
import functools
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib import import_module
from pathlib import PurePath
from types import CodeType
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.pipeline.operators.operator import BaseOperator, given_to, name_of
from asysi.pipeline.operators.project_source import module_digests, undocumented

_TYPE, _FUNCTION = "__type__", "__function__"
"""Markers for values that JSON cannot represent."""
_DEPTH = 4
"""Depth to which attributes of nested objects are compared."""


def fingerprint(operator: Any) -> dict[str, Any]:
    """Return what identifies an operator.

    `target` is `module:name`; `params` its public attributes, or the result of its `params()`; `written` its
    constructor arguments (None if unknown); an opaque object among them, such as a connection, is not
    compared. Parameters named in `free` may differ. `code` is a digest of its source without comments,
    formatting and docstrings; `modules` has such digests of its module (`.`) and of the project modules that
    it imports.
    """
    function = getattr(operator, "function", None)
    if function is not None:
        plain = _unwrapped(function)
        return {
            "name": name_of(operator),
            "target": _target(plain),
            "params": _bound(function),
            "code": _code([plain]),
            "modules": module_digests(plain.__module__, _names(plain)),
        }
    kind = type(operator)
    params = operator.params() if hasattr(operator, "params") else _public(operator)
    parts = [part for part in kind.__mro__ if part not in {object, BaseOperator}]
    modules: dict[str, str] = {}
    for part in reversed(parts):
        found = module_digests(part.__module__, [part.__qualname__.partition(".")[0]])
        own = found.pop(".", None)
        modules |= found | ({part.__module__: own} if own and part.__module__ != kind.__module__ else {})
        modules |= {".": own} if own and part is kind else {}
    return {
        "name": name_of(operator),
        "target": _target(kind),
        "params": {name: _plain(value) for name, value in params.items()},
        "written": _written(operator),
        "free": sorted(getattr(operator, "free", ())),
        "code": _code(parts),
        "modules": modules,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the differences between two fingerprints of an operator."""
    found = []
    if before["target"] != now["target"]:
        found.append(f"it was {before['target']}, it is {now['target']}")
    free = set(now.get("free", ()))
    found += _changed(before["params"], now["params"], free)
    if before.get("written") is not None and now.get("written") is not None:
        handles = {
            name
            for tree in (before["written"], now["written"])
            for name, value in tree.items()
            if _is_opaque(value)
        }
        changed = _changed(before["written"], now["written"], free | handles)
        found += [text for text in changed if text not in found]
    if found:
        return found
    if before["code"] != now["code"]:
        found.append("its code was changed")
    was, is_now = before.get("modules"), now.get("modules", {})
    if was is None:  # written by a version that did not record modules
        return found
    edited = [name for name in sorted({*was, *is_now}) if was.get(name) != is_now.get(name)]
    if "." in edited and not found:
        found.append(f"its module {now['target'].partition(':')[0]} was changed")
    found += [f"the module {name}, which it imports, was changed" for name in edited if name != "."]
    return found


def rebuild(image: Mapping[str, Any]) -> Any:
    """Recreate an operator from its fingerprint.

    Raises:
        ConfigError: it cannot be imported or created from its parameters.
    """
    module, _, name = str(image["target"]).partition(":")
    arguments = image["params"] if image.get("written") is None else image["written"]
    advice = (
        "resume with the pipeline's file, or in Python give the operators to the pipeline and resume() it"
    )
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        if not inspect.isclass(found):
            return found
        lost = [key for key, value in arguments.items() if _is_marked(value)]
        if not lost:
            return found(**arguments)
        why: Any = f"{', '.join(lost)} cannot be written down"
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        why = error
    raise ConfigError(f"the operator {image['target']} cannot be recreated from its image ({why}): {advice}")


_MISSING = object()


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], free: set[str]) -> list[str]:
    return [
        f"its {name} was {_shown(old, name)}, it is {_shown(new, name)}"
        for name in sorted({*old, *new} - free)
        if old.get(name, _MISSING) != new.get(name, _MISSING)
    ]


def _target(value: Any) -> str:
    return f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"


def _public(operator: Any) -> dict[str, Any]:
    return {
        name: value for name, value in getattr(operator, "__dict__", {}).items() if not name.startswith("_")
    }


def _written(operator: Any) -> dict[str, Any] | None:
    """Return an operator's constructor arguments by name, including defaults."""
    if dataclasses.is_dataclass(operator):
        fields = [field.name for field in dataclasses.fields(operator) if field.init]
        return {name: _plain(getattr(operator, name)) for name in fields if hasattr(operator, name)}
    given = given_to(operator)
    if given is None:
        return None
    try:
        signature = inspect.signature(type(operator))
        bound = signature.bind(*given[0], **given[1])
    except (TypeError, ValueError):
        return {"arguments": _plain([list(given[0]), given[1]])}
    bound.apply_defaults()
    found = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found.update(value)
        elif value or signature.parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL:
            found[name] = value
    return {name: _plain(value) for name, value in found.items()}


def _unwrapped(function: Any) -> Any:
    """Return the function behind a partial, a method or a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if hasattr(function, "__qualname__") else type(function)


def _names(function: Any) -> list[str]:
    """Return the names of its module that a function uses."""
    code = getattr(function, "__code__", None)
    return [function.__qualname__.partition(".")[0], *(code.co_names if code else ())]


def _bound(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the values bound to a function: partial arguments, attributes and closure."""
    bound: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        bound |= {f"argument {place}": _plain(value) for place, value in enumerate(function.args)}
        bound |= {name: _plain(value) for name, value in function.keywords.items()}
        function = function.func
    owner = getattr(function, "__self__", None)
    if owner is None and not hasattr(function, "__qualname__"):
        owner = function
    if owner is not None and not inspect.ismodule(owner):
        bound |= {name: _plain(value) for name, value in getattr(owner, "__dict__", {}).items()}
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    names = code.co_freevars if code else ()
    for name, cell in zip(names, cells, strict=True):
        try:
            bound[name] = _plain(cell.cell_contents)
        except ValueError:  # empty cell
            continue
    return bound


def _plain(value: Any, depth: int = _DEPTH) -> Any:
    """Return a JSON-compatible value; other objects are represented by type and state."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, depth) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth) for key, item in value.items()}
    if callable(value) and hasattr(value, "__qualname__"):
        return {_FUNCTION: _target(value), "code": _code([value])}
    return {_TYPE: _target(type(value)), "state": _state(value, depth - 1)}


def _state(value: Any, depth: int) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(item, depth), sort_keys=True) for item in value)
    if isinstance(value, bytes | bytearray):
        return sha256(value).hexdigest()[:16]
    if isinstance(value, PurePath | re.Pattern):
        return str(value)
    if depth <= 0 or not hasattr(value, "__dict__"):
        return None
    found = {name: _plain(item, depth) for name, item in sorted(vars(value).items())}
    return None if any(map(_is_opaque, found.values())) else found


def _is_opaque(value: Any) -> bool:
    """Return whether a plain value represents an object of which only the type is known."""
    if isinstance(value, Mapping):
        if _TYPE in value:
            return value["state"] is None
        return any(map(_is_opaque, value.values()))
    return isinstance(value, list) and any(map(_is_opaque, value))


def _is_marked(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _TYPE in value or _FUNCTION in value or any(map(_is_marked, value.values()))
    return isinstance(value, list) and any(map(_is_marked, value))


def _code(parts: list[Any]) -> str:
    digest = sha256()
    for part in parts:
        digest.update(_text(part).encode())
    return digest.hexdigest()[:16]


def _text(part: Any) -> str:
    """Return the source without comments, formatting and docstrings, or the bytecode if there is none."""
    try:
        return ast.dump(undocumented(ast.parse(textwrap.dedent(inspect.getsource(part)))))
    except (OSError, TypeError, SyntaxError):
        return _bytecode(part)


def _bytecode(part: Any) -> str:
    code = getattr(part, "__code__", None)
    if isinstance(code, CodeType):
        return f"{code.co_code!r}{code.co_names}{[c for c in code.co_consts if not isinstance(c, CodeType)]}"
    return "".join(_bytecode(value) for value in vars(part).values()) if inspect.isclass(part) else ""


def _shown(params: Mapping[str, Any], name: str) -> str:
    return json.dumps(params[name], ensure_ascii=False)[:80] if name in params else "missing"
