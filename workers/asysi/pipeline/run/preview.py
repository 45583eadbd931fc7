"""Estimates what a run would read, call and cost, for `asysi pipeline run --dry-run`.

Nothing is written and no server is called. The first rows go through operators without side effects
(`harmless`) or with a `preview`; any other operator is assumed to return one row per row, with a remark.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from asysi.locations import filesystem
from asysi.pipeline.operators.operator import name_of
from asysi.pipeline.rows.ids import FIELD
from asysi.pipeline.streams.data_streams import FileStream

if TYPE_CHECKING:
    from asysi.pipeline.run.unified_pipeline import UnifiedPipeline

SAMPLED = 200
"""Number of sampled rows."""
_FILES = 5


@dataclass(slots=True)
class Preview:
    """Estimate for a run.

    Attributes:
        files: input files with their sizes in bytes.
        rows: approximate number of rows; None if unknown.
        columns: fields of the first rows, with the types of their values.
        nodes: estimate per operator.
        spent: total usage, by name.
    """

    files: list[tuple[str, int]]
    rows: int | None
    columns: dict[str, set[str]]
    nodes: list["NodePreview"] = field(default_factory=list)

    @property
    def spent(self) -> dict[str, float]:
        """Total usage of all nodes, by name."""
        total: dict[str, float] = {}
        for node in self.nodes:
            for name, value in node.spent.items():
                total[name] = total.get(name, 0) + value
        return total


@dataclass(slots=True)
class NodePreview:
    """Estimate for a node: rows, usage, and remarks."""

    name: str
    rows: float | None
    spent: dict[str, float]
    remarks: list[str]


def preview(pipeline: "UnifiedPipeline") -> Preview:
    """Estimate what a pipeline would read, call and cost; `pipeline` has its nodes and has not run.

    Raises:
        ConfigError: its input cannot be read.
    """
    bus = pipeline.nodes[0].input_bus
    assert bus is not None
    rows = [row for row in islice(bus.get_reader(), SAMPLED) if isinstance(row, dict)]
    for number, row in enumerate(rows):
        row.setdefault(FIELD, number)
    files = _files(bus)
    known: float | None = _estimated(bus, files, rows)
    found = Preview(files, None if known is None else round(known), _columns(rows))
    sure = True
    for node in pipeline.nodes:
        tried = getattr(node.operator, "harmless", False) or hasattr(node.operator, "preview")
        sure = sure and tried
        if tried:
            made, rows, known = _tried(node.operator, rows, known, sure=sure)
        else:
            remark = "not tried: taken to make one row of each, with the fields that came in"
            made = NodePreview(name_of(node.operator), known, {}, [remark])
        found.nodes.append(made)
    return found


def lines(found: Preview, budget: dict[str, float]) -> Iterator[str]:
    """Yield a preview as lines of text."""
    size = sum(length for _, length in found.files)
    yield f"input: {len(found.files)} file{'s' if len(found.files) != 1 else ''}, {size:,} bytes, " + _rows(
        found.rows
    )
    for name, length in found.files[:_FILES]:
        yield f"  {name}: {length:,} bytes"
    if len(found.files) > _FILES:
        yield f"  and {len(found.files) - _FILES:,} more"
    yield "columns: " + ", ".join(
        f"{name} ({'|'.join(sorted(kinds))})" for name, kinds in found.columns.items()
    )
    for node in found.nodes:
        costs = "".join(f", {name} {_number(value)}" for name, value in node.spent.items())
        yield f"{node.name}: {_rows(node.rows)}{costs}"
        yield from (f"  {remark}" for remark in node.remarks)
    spent = found.spent
    if not spent:
        yield "no operator says that it costs anything"
        return
    yield "expected in all: " + ", ".join(f"{name} {_number(value)}" for name, value in spent.items())
    if "cost" not in spent:
        yield "  no cost, as no prices are given (params.prices)"
    for name, limit in budget.items():
        if spent.get(name, 0) > limit:
            yield f"  the budget of {name} {limit:g} will end the run before it is done"


def _tried(
    operator: Any, rows: list[dict[str, Any]], known: float | None, *, sure: bool
) -> tuple[NodePreview, list[dict[str, Any]], float | None]:
    """Return the estimate for a node, its output for the sampled rows, and its estimated total output.

    Args:
        operator: the node's operator.
        rows: sampled input rows.
        known: estimated number of all input rows.
        sure: whether all previous operators were tried, so that rows have all their fields.
    """
    spent: dict[str, float] = {}
    made: list[dict[str, Any]] = []
    failed: list[str] = []
    for row in rows:
        try:
            outcome, costs = _of_row(operator, dict(row))
        except Exception as error:  # noqa: BLE001 - failing rows are part of the estimate
            failed.append(f"row {row.get(FIELD)}: {type(error).__name__}: {error}")
            continue
        made += outcome
        for name, value in costs.items():
            spent[name] = spent.get(name, 0) + value
    remarks = []
    if failed and sure:
        remarks.append(f"{len(failed)} of {len(rows)} sampled rows would fail, the first: {failed[0]}")
    elif failed:
        remarks.append(
            f"not known for {len(failed)} of {len(rows)} sampled rows, as they lack what comes before"
        )
    remarks += getattr(operator, "preview_remarks", list)()
    factor = known / len(rows) if known is not None and rows else 1.0
    costs = {name: value * factor for name, value in spent.items()}
    after = None if known is None else known * len(made) / max(1, len(rows))
    return NodePreview(name_of(operator), known, costs, remarks), made[:SAMPLED], after


def _of_row(operator: Any, row: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the output rows for a row, and their usage."""
    if hasattr(operator, "preview"):
        found: tuple[list[dict[str, Any]], dict[str, float]] = operator.preview(row)
        return found
    made = operator.process_item(row)
    return ([made] if isinstance(made, dict) else list(made or [])), {}


def _files(bus: Any) -> list[tuple[str, int]]:
    if not isinstance(bus, FileStream):
        return []
    found = []
    for url in bus.urls():
        files, path = filesystem(url)
        found.append((url.removeprefix("file://"), int(files.size(path) or 0)))
    return found


def _estimated(bus: Any, files: list[tuple[str, int]], rows: list[dict[str, Any]]) -> float | None:
    """Estimate the number of rows: exact if few, otherwise from the size of the first ones."""
    if len(rows) < SAMPLED:
        return len(rows)
    source = bus.source()
    source.open(source.first_row, source.begin)
    try:
        read = 0
        while read < SAMPLED and (block := source.take(SAMPLED)) is not None:
            read += block.rows
        size = source.feed.size
        return None if size is None or not source.offset else size * read / source.offset
    finally:
        source.close()


def _columns(rows: list[dict[str, Any]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, set()).add(_kind(value))
    return found


def _kind(value: Any) -> str:
    names = {str: "text", bool: "boolean", int: "integer", float: "number", list: "list", dict: "object"}
    return names.get(type(value), "null")


def _rows(count: float | None) -> str:
    return "rows not known before they are read" if count is None else f"about {count:,.0f} rows"


def _number(value: float) -> str:
    return f"{value:,.6g}" if not math.isclose(value, round(value)) else f"{round(value):,}"
