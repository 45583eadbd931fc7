"""Functions as operators: detects whether they take a batch or a row, with or without context."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_origin, get_type_hints

_ONE = frozenset({"item", "row", "record", "doc", "document", "sample", "example", "entry", "line", "datum"})
_MANY = frozenset(
    {
        "items",
        "rows",
        "records",
        "docs",
        "documents",
        "samples",
        "examples",
        "entries",
        "lines",
        "batch",
        "data",
    }
)


def with_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as a function of (rows, ctx); one that takes only the rows is called without
    the context.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions tell nothing
        return lambda rows, ctx=None: function(rows)
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    if len(positional) > 1 or any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return function
    return lambda rows, ctx=None: function(rows)


def takes_one_row(function: Callable[..., Any]) -> bool | None:
    """Return whether a function takes one row or a batch, by annotation or name; None if undecided."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-in functions tell nothing
        return None
    if not parameters:
        return None
    first = parameters[0]
    kind = _annotation(function, first)
    if isinstance(kind, type):
        if issubclass(kind, Mapping):
            return True
        if issubclass(kind, Sequence) and not issubclass(kind, str | bytes):
            return False
    name = first.name.lower()
    return True if name in _ONE else False if name in _MANY else None


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    if parameter.annotation is inspect.Parameter.empty:
        return None
    try:
        hint = get_type_hints(function).get(parameter.name, parameter.annotation)
    except Exception:  # noqa: BLE001 - an annotation may be anything
        hint = parameter.annotation
    return get_origin(hint) or hint


def adapt_by_trial(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function over batches from one of a batch or a row, decided by trying the first row."""
    call = with_context(function)
    single: bool | None = None

    def sort_out(made: Any) -> bool:
        return not (isinstance(made, list) and len(made) == 1 and isinstance(made[0], dict | list | None))

    async def waiting(items: list[Any], ctx: Any = None) -> Any:
        nonlocal single
        if single is None:
            single = sort_out(await _answer_of(call, items[0], ctx))
        return [await call(item, ctx) for item in items] if single else await call(items, ctx)

    def computing(items: list[Any], ctx: Any = None) -> Any:
        nonlocal single
        if single is None:
            try:
                single = sort_out(call([copy.deepcopy(items[0])], ctx))
            except Exception:  # noqa: BLE001 - the actual call raises it again
                single = True
        return [call(item, ctx) for item in items] if single else call(items, ctx)

    return waiting if inspect.iscoroutinefunction(function) else computing


async def _answer_of(call: Callable[..., Any], item: Any, ctx: Any) -> Any:
    """Return the result of a function for a batch of one row, None if it raises."""
    try:
        return await call([copy.deepcopy(item)], ctx)
    except Exception:  # noqa: BLE001 - it raises again where it matters
        return None
