"""The operator interface, and the context that a node passes to its operator."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from asysi.pipeline.operators.functions import adapt_by_trial, takes_one_row, with_context

Row = dict[str, Any]
"""A JSON object with its id in `_i`."""

_GIVEN = "_asysi_given"
"""Attribute with an operator's constructor arguments."""

Made = Row | list[Row] | None
"""Result for a row: a row, several rows (each gets its own id), or None to drop it."""


class CanceledError(Exception):
    """Raised by an operator that stops on `ctx.is_cancelled()`: its row is computed again on resume."""


@runtime_checkable
class INodeContext(Protocol):
    """The context passed to an operator."""

    node_id: str
    pipeline_id: str
    folder: Path

    def report_usage(self, usage: Mapping[str, Any]) -> None:
        """Report tokens, cost or any other usage."""

    def is_cancelled(self) -> bool:
        """Return whether the run is ending; a long-running operator should then return."""


class NodeContext:
    """The context of one block of rows, shared by its threads.

    Attributes:
        node_id: name of the node.
        pipeline_id: name of the pipeline.
        folder: directory for operator state that survives a restart.
        processes: processes that share the node's limits.
        round: name of the redrive, empty in a normal run.
        usage: reported usage, summed by name.
    """

    def __init__(  # noqa: PLR0917 - what a node knows
        self,
        node_id: str,
        pipeline_id: str = "",
        folder: Path = Path(),
        cancelled: Callable[[], bool] = lambda: False,
        processes: int = 1,
        round: str = "",  # noqa: A002 - what it is
    ) -> None:
        self.node_id, self.pipeline_id, self.folder, self.processes = node_id, pipeline_id, folder, processes
        self.round = round
        self.usage: dict[str, float] = {}
        self.reports: list[dict[str, Any]] = []
        self._cancelled = cancelled
        self._lock = threading.Lock()

    def report_usage(self, usage: Mapping[str, Any]) -> None:
        """Add numbers to the usage; text values (`provider`, `model`) are passed to the hooks with them.

        Displays use `prompt_tokens`, `completion_tokens` and `cost`; budgets may use any name.
        """
        with self._lock:
            self.reports.append(dict(usage))
            for name, value in usage.items():
                if isinstance(value, int | float):
                    self.usage[name] = self.usage.get(name, 0) + value

    def is_cancelled(self) -> bool:
        """Return whether the run is ending."""
        return self._cancelled()

    def of_row(self) -> "NodeContext":
        """Return a context for a single row, whose usage `take` adds to this one."""
        return NodeContext(
            self.node_id, self.pipeline_id, self.folder, self._cancelled, self.processes, self.round
        )

    def take(self, other: "NodeContext") -> None:
        """Add the usage reported to another context."""
        for report in other.reports:
            self.report_usage(report)


@runtime_checkable
class IOperator(Protocol):
    """Anything with `process_item` or `process_batch`."""

    def process_item(self, item: Row, ctx: Any = None) -> Made:
        """Return the result for one row."""

    def process_batch(self, items: list[Row], ctx: Any = None) -> list[Made]:
        """Return the result for each row of a batch, in order."""


def note_given(operator: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Record an operator's constructor arguments, unless already recorded."""
    attributes = getattr(operator, "__dict__", None)
    if attributes is not None:
        attributes.setdefault(_GIVEN, (arguments, dict(named)))


def given_to(operator: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return an operator's positional and keyword constructor arguments, or None if not recorded."""
    found: tuple[tuple[Any, ...], dict[str, Any]] | None = getattr(operator, "__dict__", {}).get(_GIVEN)
    return found


def _noting(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def noting(self: Any, *arguments: Any, **named: Any) -> None:
        note_given(self, arguments, named)
        init(self, *arguments, **named)

    return noting


class BaseOperator:
    """Base class of operators. Override `process_item`, `process_batch`, or both (batches then use the
    latter). Either may be a coroutine function (`async def`): many calls then run on one thread.

    Attributes:
        name: display name, by default the class name.
        ordered: whether it must see rows in order, one block at a time, because it is stateful. `restore`
            rebuilds its state after a restart.
        waits: whether `process_item` is I/O-bound. A batch's rows are then processed on threads. None
            measures it on the first rows.
    """

    name: str = ""
    ordered: bool = False
    waits: bool | None = None

    def __init_subclass__(cls, **named: Any) -> None:
        """Make the constructor record its arguments, which are part of the fingerprint."""
        super().__init_subclass__(**named)
        if "__init__" in vars(cls):
            cls.__init__ = _noting(cls.__init__)  # type: ignore[method-assign]

    harmless: ClassVar[bool] = False
    """Whether `process_item` has no side effects, so that a dry run may call it on a few rows."""

    def process_item(self, item: Row, ctx: Any = None) -> Made:
        """Return the result for a row: a row, a list of rows, or None to drop it.

        Raises:
            Exception: any exception fails the run or makes the row a dead letter. A `ConfigError` means that
                no row can succeed and always fails the run. A `CanceledError` means that the run is ending.
        """
        raise NotImplementedError(f"{type(self).__name__} overrides neither process_item nor process_batch")

    def process_batch(self, items: list[Row], ctx: Any = None) -> list[Made]:
        """Return the result for each row of a batch, in order."""
        return [self.process_item(item, ctx) for item in items]

    def open(self, ctx: Any) -> Any:
        """Prepare for processing: called once in each process that runs the operator. May be `async def`."""

    def restore(self, rows: Iterable[Row]) -> None:
        """Rebuild the state from the rows that it returned before the restart."""

    def close(self) -> Any:
        """Release the resources of `open`. May be `async def`."""

    free: ClassVar[frozenset[str]] = frozenset()
    """Parameters that may differ on resume, because rows do not depend on them."""

    def params(self) -> dict[str, Any]:
        """Return the parameters that rows depend on; a resume is rejected if they differ. By default, the
        public attributes.

        Constructor arguments are compared as well, so private attributes need not be listed.
        """
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class FunctionOperator(BaseOperator):
    """An operator from a function of a batch or of a row.

    Args:
        function: `f(items)` or `f(items, ctx)`, which returns one result per row, or `f(item)` or
            `f(item, ctx)`, which returns the result for a row.
        single: whether it takes one row. None: decided by the annotation of its first argument, its name
            (`item`, `row`, … or `items`, `rows`, `batch`, …), or by trying the first row.
    """

    def __init__(self, function: Callable[..., Any], *, single: bool | None = None) -> None:
        self._function = function
        self._call = with_context(function)
        self.name = getattr(function, "__name__", type(function).__name__)
        single = takes_one_row(function) if single is None else single
        if single is None:
            self.process_batch = adapt_by_trial(function)  # type: ignore[method-assign]
        elif single:
            self.process_item = self._call  # type: ignore[method-assign]
        else:
            self.process_batch = self._call  # type: ignore[method-assign]

    @property
    def function(self) -> Callable[..., Any]:
        """The function."""
        return self._function


def as_operator(value: Any, *, single: bool | None = None) -> Any:
    """Return an operator, given an operator or a function (see `FunctionOperator`).

    Raises:
        TypeError: it is neither.
    """
    if hasattr(value, "process_item") or hasattr(value, "process_batch"):
        return value
    if callable(value):
        return FunctionOperator(value, single=single)
    raise TypeError(
        f"{value!r} is not an operator: it has no process_item or process_batch and cannot be called"
    )


def takes_batches(operator: Any, batch_size: int) -> bool:
    """Return whether to call `process_batch` rather than `process_item`."""
    single, batch = _own(operator, "process_item"), _own(operator, "process_batch")
    return batch and (not single or batch_size > 1)


def is_coroutine(operator: Any, method: str) -> bool:
    """Return whether an operator's method (or its wrapped function) is `async def`."""
    function = getattr(operator, "function", None) or getattr(operator, method, None)
    return inspect.iscoroutinefunction(function)


def is_async(operator: Any) -> bool:
    """Return whether an operator's methods are coroutines, which all run on one thread."""
    return is_coroutine(operator, "process_item") or is_coroutine(operator, "process_batch")


def name_of(operator: Any) -> str:
    """Return the display name of an operator."""
    return str(getattr(operator, "name", "") or type(operator).__name__)


def _own(operator: Any, method: str) -> bool:
    if method in vars(operator):
        return True
    found = getattr(type(operator), method, None)
    return found is not None and found is not getattr(BaseOperator, method)
