"""What a node does to its rows, and what an operator sees of its node."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from asysi.pipeline.operators.functions import takes_one_row, trying, with_context

Row = dict[str, Any]
"""A JSON object with its id in `_i`."""

_GIVEN = "_asysi_given"
"""Attribute that holds what an operator was made with."""

Made = Row | list[Row] | None
"""What becomes of a row: another, several (each gets an id of its own), or none."""


class CanceledError(Exception):
    """An operator raises this when `ctx.is_cancelled()` and its row is not done: it is computed on resume."""


@runtime_checkable
class INodeContext(Protocol):
    """What an operator sees of its node."""

    node_id: str
    pipeline_id: str
    folder: Path

    def report_usage(self, usage: Mapping[str, Any]) -> None:
        """Report tokens, cost or any other number spent."""

    def is_cancelled(self) -> bool:
        """Return whether the run is ending: an operator that takes long should return."""


class NodeContext:
    """The context of one block of rows; its threads share it.

    Attributes:
        node_id: name of the node.
        pipeline_id: name of the pipeline.
        folder: where an operator may keep what it knows across a restart.
        processes: processes that share the node's limits.
        round: the redrive that this is part of, empty in a run of its own.
        usage: what was reported so far, added up by name.
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
        """Add numbers to what was spent; text (`provider`, `model`) goes to the hooks beside them.

        `prompt_tokens`, `completion_tokens`, `cost` are what budgets and displays look for; any name works.
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
        """Add what was reported to another context."""
        for report in other.reports:
            self.report_usage(report)


@runtime_checkable
class IOperator(Protocol):
    """Anything with `process_item` or `process_batch`."""

    def process_item(self, item: Row, ctx: Any = None) -> Made:
        """Return what becomes of one row."""

    def process_batch(self, items: list[Row], ctx: Any = None) -> list[Made]:
        """Return what becomes of each row of a batch, in their order."""


def note_given(operator: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Note what an operator was made with, if that is not noted yet."""
    attributes = getattr(operator, "__dict__", None)
    if attributes is not None:
        attributes.setdefault(_GIVEN, (arguments, dict(named)))


def given_to(operator: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return the arguments, and those by name, that an operator was made with; None where nobody noted."""
    found: tuple[tuple[Any, ...], dict[str, Any]] | None = getattr(operator, "__dict__", {}).get(_GIVEN)
    return found


def _noting(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def noting(self: Any, *arguments: Any, **named: Any) -> None:
        note_given(self, arguments, named)
        init(self, *arguments, **named)

    return noting


class BaseOperator:
    """Base of operators: override `process_item`, or `process_batch`, or both (batches then go to the
    latter). Either may be a coroutine function (`async def`): many calls then wait on one thread.

    Attributes:
        name: how displays call it, by default the class.
        ordered: it must see rows in their order and one block at a time, as it remembers what it saw.
            `restore` then gives it back its memory after a restart.
        waits: whether `process_item` mostly waits (a server) rather than computes. A batch's rows then go to
        threads
            together. None measures it on the first rows.
    """

    name: str = ""
    ordered: bool = False
    waits: bool | None = None

    def __init_subclass__(cls, **named: Any) -> None:
        """Let the constructor note its arguments: they are part of what the operator is."""
        super().__init_subclass__(**named)
        if "__init__" in vars(cls):
            cls.__init__ = _noting(cls.__init__)  # type: ignore[method-assign]

    harmless: ClassVar[bool] = False
    """Whether `process_item` only computes, so that a dry run may try it on a few rows."""

    def process_item(self, item: Row, ctx: Any = None) -> Made:
        """Return what becomes of a row: a row, a list of rows, or None to drop it.

        Raises:
            Exception: whatever it raises fails the run, or makes the row a dead letter. A `ConfigError` says
                that no row can succeed: it always fails the run. A `CanceledError` says that the run is
                ending.
        """
        raise NotImplementedError(f"{type(self).__name__} overrides neither process_item nor process_batch")

    def process_batch(self, items: list[Row], ctx: Any = None) -> list[Made]:
        """Return what becomes of each row of a batch, in their order."""
        return [self.process_item(item, ctx) for item in items]

    def open(self, ctx: Any) -> Any:
        """Prepare for rows: called once in each process that will call it. May be `async def`."""

    def restore(self, rows: Iterable[Row]) -> None:
        """Take back what it remembered, from the rows that it had made before the restart."""

    def close(self) -> Any:
        """Let go of what `open` took. May be `async def`."""

    free: ClassVar[frozenset[str]] = frozenset()
    """Parameters that may differ on resume, as rows do not depend on them."""

    def params(self) -> dict[str, Any]:
        """Return what rows depend on: a resume refuses when it differs. By default its public attributes.

        The arguments of the constructor are compared beside it, so nothing is lost by a private name.
        """
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class FunctionOperator(BaseOperator):
    """An operator from a function of a batch or of a row.

    Args:
        function: `f(items)` or `f(items, ctx)`, a batch to as many results, or `f(item)` or `f(item, ctx)`,
            a row to what becomes of it.
        single: whether it takes one row. None: the annotation of its first argument tells, or its name
            (`item`, `row`, … or `items`, `rows`, `batch`, …), or else what it does with the first row.
    """

    def __init__(self, function: Callable[..., Any], *, single: bool | None = None) -> None:
        self._function = function
        self._call = with_context(function)
        self.name = getattr(function, "__name__", type(function).__name__)
        single = takes_one_row(function) if single is None else single
        if single is None:
            self.process_batch = trying(function)  # type: ignore[method-assign]
        elif single:
            self.process_item = self._call  # type: ignore[method-assign]
        else:
            self.process_batch = self._call  # type: ignore[method-assign]

    @property
    def function(self) -> Callable[..., Any]:
        """The function."""
        return self._function


def as_operator(value: Any, *, single: bool | None = None) -> Any:
    """Return an operator from an operator, or a function of a batch or a row (see `FunctionOperator`).

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
    """Return whether rows go to `process_batch` rather than to `process_item`."""
    single, batch = _own(operator, "process_item"), _own(operator, "process_batch")
    return batch and (not single or batch_size > 1)


def is_coroutine(operator: Any, method: str) -> bool:
    """Return whether a method of an operator (or the function that it was made from) is `async def`."""
    function = getattr(operator, "function", None) or getattr(operator, method, None)
    return inspect.iscoroutinefunction(function)


def is_async(operator: Any) -> bool:
    """Return whether an operator's calls are coroutines: they all wait on one thread."""
    return is_coroutine(operator, "process_item") or is_coroutine(operator, "process_batch")


def name_of(operator: Any) -> str:
    """Return how displays call an operator."""
    return str(getattr(operator, "name", "") or type(operator).__name__)


def _own(operator: Any, method: str) -> bool:
    if method in vars(operator):
        return True
    found = getattr(type(operator), method, None)
    return found is not None and found is not getattr(BaseOperator, method)
