"""Runs a block of rows through an operator: bytes in, bytes out, no side effects."""

import base64
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

import orjson

from asysi.contract.errors import ConfigError
from asysi.pipeline.nodes import event_loop
from asysi.pipeline.nodes.libc import searcher
from asysi.pipeline.operators.functions import with_context
from asysi.pipeline.operators.operator import CanceledError, NodeContext, is_coroutine, takes_batches
from asysi.pipeline.rows import values
from asysi.pipeline.rows.blocks import (
    BAD_LINE,
    BadLineError,
    BadRowError,
    DeadLetter,
    Result,
    RowBlock,
    RowError,
    lines_of,
)
from asysi.pipeline.rows.ids import FIELD, child

_NULL = b"null"
_has_null = searcher(_NULL)
_WATCHED = 4096
"""Output rows without a null after which NaN checks are done per block instead of per row."""
_PROBED = 3
"""Rows timed before a batch's rows are processed on threads."""
_WAIT = 0.0005
"""Wait per row in seconds from which threads are worth their overhead (about 50 µs per row)."""


class NodeWorker:
    """Runs blocks through one operator. Thread-safe unless the operator is ordered.

    Args:
        operator: the operator.
        batch_size: source rows per batch.
        dead_letters: whether a failed row becomes a dead letter; otherwise it fails the block.
        threads: threads for the rows of a batch, if the operator is I/O-bound.
    """

    def __init__(
        self, operator: Any, batch_size: int, *, dead_letters: bool, threads: ThreadPoolExecutor | None = None
    ) -> None:
        self.batches = takes_batches(operator, batch_size)
        self._size, self._dead_letters = batch_size, dead_letters
        self._always_watch = self._watch = True
        self._unwatched = 0
        """Output rows without a null so far."""
        self._one = None if self.batches else with_context(operator.process_item)
        self._many = with_context(operator.process_batch) if self.batches else None
        self.waits: bool | None = getattr(operator, "waits", None) if threads else False
        self._submit: Callable[..., Future[Any]] | None = threads.submit if threads else None
        if is_coroutine(operator, "process_batch" if self.batches else "process_item"):
            many, self.waits, self._submit = self._many, True, event_loop.submit
            self._many = (
                (lambda rows, context: event_loop.submit(many, rows, context).result()) if many else None
            )
        # Calling an I/O-bound operator twice may be billed twice, and a stateful one would return something
        # else: their rows are always checked one by one.
        self._always_watch = self.waits is True or bool(getattr(operator, "ordered", False))

    def run(self, block: RowBlock, context: NodeContext) -> Result:
        """Compute a block. Row errors are returned in the result, not raised."""
        began = time.perf_counter()
        result = Result(block.first, block.last, block.end, size=len(block.data))
        job = _Job(block, context, result)
        if self._many is not None:
            self._run_batches(self._many, job)
        elif self._one is not None:
            self._run_items(self._one, job)
            if not self._watch and _has_null(job.data()):
                job, result = self._run_watched(self._one, block, context, job)
        if result.last < block.last:
            _shorten(result, job.lines)
        result.data = job.data()
        result.usage, result.reports = context.usage, context.reports
        result.seconds = time.perf_counter() - began
        return result

    def _run_watched(
        self, one: Callable[..., Any], block: RowBlock, context: NodeContext, job: "_Job"
    ) -> tuple["_Job", Result]:
        """Run a block again with a NaN check per row, because the first null appeared in it.

        Operators may be called twice for a row after a kill too; usage reported here is discarded.
        """
        self._watch = self._always_watch = True
        again = _Job(
            block, context.of_row(), Result(block.first, block.last, block.end, size=len(block.data))
        )
        self._each(one, again)
        return again, again.result

    def _watch_less(self, job: "_Job") -> None:
        """Stop checking row by row after `_WATCHED` rows without a null."""
        if self._always_watch or not self._watch:
            return
        if any(_NULL in text for text in job.out):
            self._always_watch = True
        self._unwatched += len(job.out)
        self._watch = self._unwatched < _WATCHED

    def _run_items(self, one: Callable[..., Any], job: "_Job") -> None:
        if self.waits is None:
            probe = _FlightProbe(one)
            self._each(probe, job)
            self.waits = probe.verdict()
        elif self.waits and self._submit is not None:
            self._run_together(one, self._submit, job)
        else:
            self._each(one, job)
            self._watch_less(job)

    def _run_together(self, one: Callable[..., Any], submit: Callable[..., Any], job: "_Job") -> None:
        """Start all rows, then collect the results in order. Rows after a failure are completed too, but
        their usage is reported when they are computed again.
        """
        started = []
        for row in _readable(job.lines, job.block):
            context = job.context.of_row()
            started.append((submit(one, row, context), context))
        following = iter(started)

        def result(_row: Any, context: NodeContext) -> Any:
            future, its = next(following)
            try:
                made = future.result()
            except Exception as error:
                if self._sets_aside(error):
                    context.take(its)
                raise
            context.take(its)
            return made

        self._each(result, job)
        wait([future for future, _ in started])

    def _each(self, one: Callable[..., Any], job: "_Job") -> None:
        """The hot loop: everything not needed for every row is done in `except` and in `_several`."""
        loads, dumps, out, context = values.loads, orjson.dumps, job.out, job.context
        add, stored, plain, watch = out.append, job.block.stored, values.plain, self._watch
        dropped = 0
        identity: Any
        for number, line in enumerate(job.lines, job.block.first):
            identity = number
            try:
                row = loads(line)
                if stored:
                    identity = row[FIELD]
                else:
                    row[FIELD] = number
                new = one(row, context)
                if type(new) is dict:
                    new[FIELD] = identity
                    try:
                        text = dumps(new, plain)
                    except TypeError:
                        text = values.exact(new)
                    if watch and _NULL in text:
                        values.refuse_non_finite(new)
                    add(text)
                elif new is None:
                    dropped += 1
                else:
                    several = _several(new, identity)
                    out.extend(several)
                    dropped += not several
            except Exception as error:  # noqa: BLE001 - an operator may raise anything
                if not line.strip():
                    job.result.blank += 1
                elif not self._set_aside(error, line, number, job):
                    break
        job.result.made, job.result.dropped = len(out), dropped

    def _run_batches(self, many: Callable[..., Any], job: "_Job") -> None:
        stream, result = iter(enumerate(job.lines, job.block.first)), job.result
        while batch := list(islice(stream, self._size)):
            blank = result.blank
            rows, places = self._readable_batch(batch, job)
            if rows and result.failure is None:
                try:
                    made = _checked(many(rows, job.context), rows)
                    lists = [_lines_of(new, place[2]) for new, place in zip(made, places, strict=True)]
                except Exception as error:  # noqa: BLE001 - an operator may raise anything
                    if self._sets_aside(error):
                        lists = self._one_by_one(many, places, job)
                    else:
                        self._end_at(error, places[0][2], batch[0][0], job)
                if result.last > batch[0][0]:
                    job.add(lists)
            if result.last < job.block.last and result.last <= batch[-1][0]:
                result.last, result.blank = batch[0][0], blank
                result.dead = [letter for letter in result.dead if letter.row < result.last]
                return

    def _one_by_one(
        self, many: Callable[..., Any], places: list[tuple[int, bytes, Any]], job: "_Job"
    ) -> list[list[bytes]]:
        """Process a failed batch row by row, so that only the failing rows become dead letters."""
        lists = []
        for number, line, identity in places:
            try:
                row = _parsed(line, number, job.block.stored)
                lists.append(_lines_of(_checked(many([row], job.context), [row])[0], identity))
            except Exception as error:  # noqa: BLE001 - an operator may raise anything
                if not self._set_aside(error, line, number, job):
                    job.result.last = places[0][0]
                    break
        return lists

    def _readable_batch(
        self, batch: list[tuple[int, bytes]], job: "_Job"
    ) -> tuple[list[dict[str, Any]], list[tuple[int, bytes, Any]]]:
        rows, places = [], []
        for number, line in batch:
            try:
                row = _parsed(line, number, job.block.stored)
            except Exception as error:  # noqa: BLE001 - reported for the row
                if not line.strip():
                    job.result.blank += 1
                elif not self._set_aside(error, line, number, job):
                    return [], []
                continue
            rows.append(row)
            places.append((number, line, row[FIELD]))
        return rows, places

    def _set_aside(self, error: Exception, line: bytes, number: int, job: "_Job") -> bool:
        """Make a row a dead letter and return True, or end the block before it and return False."""
        identity = _identity(line, number, job.block.stored)
        error, line = _explained(error, line, job.block.stored)
        if not self._sets_aside(error):
            self._end_at(error, identity, number, job)
            return False
        failure = _failure(error, identity, job.context)
        job.result.dead.append(DeadLetter(failure.identity, number, failure.reason, failure.message, line))
        return True

    def _sets_aside(self, error: Exception) -> bool:
        """Return whether an error makes its row a dead letter; otherwise it ends the block."""
        return self._dead_letters and not isinstance(error, ConfigError | CanceledError)

    def _end_at(self, error: Exception, identity: Any, number: int, job: "_Job") -> None:
        """End the block before a row, because it failed or the run is ending."""
        job.result.last = number
        if not isinstance(error, CanceledError):
            job.result.failure = _failure(error, identity, job.context)


class _Job:
    """A block being computed: its lines, the output rows, and the result."""

    def __init__(self, block: RowBlock, context: NodeContext, result: Result) -> None:
        self.block, self.context, self.result = block, context, result
        self.lines = lines_of(block.data) if block.lines is None else block.lines
        self.out: list[bytes] = []
        self._data: bytes | None = None

    def data(self) -> bytes:
        """Return the output rows, one per line; no rows may be added afterwards."""
        if self._data is None:
            if self.out:
                self.out.append(b"")
            self._data = b"\n".join(self.out)
        return self._data

    def add(self, lists: list[list[bytes]]) -> None:
        """Add the output rows of several source rows."""
        for lines in lists:
            self.out.extend(lines)
            self.result.made += len(lines)
            self.result.dropped += not lines


class _FlightProbe:
    """Times the first rows to decide whether an operator is I/O-bound or CPU-bound."""

    def __init__(self, one: Callable[..., Any]) -> None:
        self._one = one
        self._waited: list[float] = []

    def __call__(self, row: Any, context: NodeContext) -> Any:
        if len(self._waited) >= _PROBED:
            return self._one(row, context)
        wall, busy = time.perf_counter(), time.thread_time()
        try:
            return self._one(row, context)
        finally:
            self._waited.append(time.perf_counter() - wall - (time.thread_time() - busy))

    def verdict(self) -> bool | None:
        """Return whether even the fastest of the first rows waited; None before any row."""
        return min(self._waited) > _WAIT if self._waited else None


def _readable(lines: list[bytes], block: RowBlock) -> list[dict[str, Any]]:
    """Return the rows that the hot loop will process, in order: the valid ones."""
    rows = []
    for number, line in enumerate(lines, block.first):
        try:
            rows.append(_parsed(line, number, block.stored))
        except (ValueError, TypeError, KeyError, BadRowError):
            continue
    return rows


def _parsed(line: bytes, number: int, stored: bool) -> dict[str, Any]:
    row = values.loads(line)
    if type(row) is not dict:
        raise BadRowError("no JSON object")
    if stored:
        _ = row[FIELD]
    else:
        row[FIELD] = number
    return row


def _checked(made: Any, rows: list[dict[str, Any]]) -> list[Any]:
    if isinstance(made, tuple | Iterator):
        made = list(made)
    if not isinstance(made, list) or len(made) != len(rows):
        what = f"{len(made)} results" if isinstance(made, list) else type(made).__name__
        raise BadRowError(
            f"process_batch returned {what} for {len(rows)} rows: return a list with a row, a list of rows or"
            " None for each"
        )
    return made


def _lines_of(new: Any, identity: Any) -> list[bytes]:
    if type(new) is dict:
        new[FIELD] = identity
        return [values.dumps(new)]
    return [] if new is None else _several(new, identity)


def _several(new: Any, identity: Any) -> list[bytes]:
    """Return the output rows of one source row, with their ids, as lines."""
    if not isinstance(new, list | tuple | Iterator):
        if isinstance(new, dict):
            return _lines_of(dict(new), identity)
        raise BadRowError(
            f"the operator returned {type(new).__name__}: return a row (a dict), a list or generator of rows,"
            " or None"
        )
    lines = []
    for place, row in enumerate(new):
        if not isinstance(row, dict):
            raise BadRowError(
                f"the operator returned a list with {type(row).__name__} at {place}: rows are dicts"
            )
        lines.append(values.dumps({**row, FIELD: child(identity, place)}))
    return lines


def _identity(line: bytes, number: int, stored: bool) -> Any:
    try:
        return values.loads(line)[FIELD] if stored else number
    except (ValueError, TypeError, KeyError):
        return number


def _explained(error: Exception, line: bytes, stored: bool) -> tuple[Exception, bytes]:
    """Return a clearer error for an invalid row where Python's is unclear, and the line as it is in its
    file.
    """
    try:
        row = values.loads(line)
    except ValueError as broken:
        return BadRowError(f"no JSON ({_complaint(line) or broken})"), line
    if isinstance(row, list) and len(row) == 3 and row[0] == BAD_LINE:
        return BadLineError(str(row[1])), base64.b64decode(row[2])
    if not isinstance(row, dict):
        return BadRowError("no JSON object"), line
    if stored and FIELD not in row:
        return BadRowError(f"{FIELD} is missing, but the first row of this source has it"), line
    return error, line


def _complaint(line: bytes) -> str:
    """Return orjson's error message, which gives the position."""
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as broken:
        return str(broken)
    return ""


def _failure(error: Exception, identity: Any, context: NodeContext) -> RowError:
    failure = RowError(context.node_id, str(identity), type(error).__name__, str(error))
    failure.__cause__ = error
    return failure


def _shorten(result: Result, lines: list[bytes]) -> None:
    """Truncate the result to the rows before the failure."""
    kept = lines[: result.last - result.first]
    size = sum(map(len, kept)) + len(kept)
    result.end += size - result.size
    result.size = size
