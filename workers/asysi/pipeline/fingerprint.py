"""What an operator is, as JSON: a resume with another one is refused, and the difference named."""

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Mapping
from importlib import import_module
from types import CodeType
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.pipeline.operators import BaseOperator, name_of


def fingerprint(operator: Any) -> dict[str, Any]:
    """Return what identifies an operator.

    `target` is `module:name`, `params` what it was made with (those named in `free` may differ), `code` a
    digest of its source without comments, layout and documentation.
    """
    function = getattr(operator, "function", None)
    if function is not None:
        return {
            "name": name_of(operator),
            "target": _target(function),
            "params": _bound(function),
            "code": _code([function]),
        }
    kind = type(operator)
    params = operator.params() if hasattr(operator, "params") else _public(operator)
    return {
        "name": name_of(operator),
        "target": _target(kind),
        "params": {name: _plain(value) for name, value in params.items()},
        "free": sorted(getattr(operator, "free", ())),
        "code": _code([part for part in kind.__mro__ if part not in {object, BaseOperator}]),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in what an operator differs from what it was, in words."""
    found = []
    if before["target"] != now["target"]:
        found.append(f"it was {before['target']}, it is {now['target']}")
    free = now.get("free", ())
    old, new = (
        {name: value for name, value in tree["params"].items() if name not in free} for tree in (before, now)
    )
    found += [
        f"its {name} was {_shown(old, name)}, it is {_shown(new, name)}"
        for name in sorted({*old, *new})
        if old.get(name, _MISSING) != new.get(name, _MISSING)
    ]
    if not found and before["code"] != now["code"]:
        found.append("its code was changed")
    return found


def rebuild(image: Mapping[str, Any]) -> Any:
    """Return the operator that a fingerprint tells of, made anew.

    Raises:
        ConfigError: it cannot be imported, or not made from its parameters.
    """
    module, _, name = str(image["target"]).partition(":")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found(**image["params"]) if inspect.isclass(found) else found
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the operator {image['target']} cannot be made anew from its image ({error}): give the "
            "operators to the"
            " pipeline and call resume() there"
        ) from error


_MISSING = object()


def _target(value: Any) -> str:
    return f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"


def _public(operator: Any) -> dict[str, Any]:
    return {
        name: value for name, value in getattr(operator, "__dict__", {}).items() if not name.startswith("_")
    }


def _bound(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the values that a function took with it."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    names = code.co_freevars if code else ()
    bound = {}
    for name, cell in zip(names, cells, strict=True):
        try:
            bound[name] = _plain(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return bound


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it; what it cannot hold, by its type alone."""
    if callable(value) and hasattr(value, "__qualname__"):
        return {"function": _target(value), "code": _code([value])}
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return {"type": _target(type(value))}


def _code(parts: list[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_text(part).encode())
    return digest.hexdigest()[:16]


def _text(part: Any) -> str:
    """Return source without comments, layout and documentation; bytecode where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
    except (OSError, TypeError, SyntaxError):
        return _bytecode(part)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            del body[0]
    return ast.dump(tree)


def _bytecode(part: Any) -> str:
    code = getattr(part, "__code__", None)
    if isinstance(code, CodeType):
        return f"{code.co_code!r}{code.co_names}{[c for c in code.co_consts if not isinstance(c, CodeType)]}"
    return "".join(_bytecode(value) for value in vars(part).values()) if inspect.isclass(part) else ""


def _shown(params: Mapping[str, Any], name: str) -> str:
    return json.dumps(params[name], ensure_ascii=False)[:80] if name in params else "missing"
