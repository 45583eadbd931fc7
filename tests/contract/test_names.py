"""The page that maps the original design's names to ours says what is so."""

import inspect
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

import pytest
import typer
from typer.main import get_command

from asysi.cli.commands import app
from asysi.contract.available import BY_PATTERN
from asysi.contract.fields import schema_fields
from asysi.contract.spec import ScanExperiment
from asysi.monitor.metrics import METRICS
from asysi.weights.tables.columns import COLUMNS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/names.md").read_text()
ORIGINAL = [
    name
    for name in (Path(__file__).parent / "original_names.txt").read_text().splitlines()
    if name and not name.startswith("#")
]
MAKEFILE = (ROOT / "Makefile").read_text()
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
FIELDS = {re.sub(r"\[\]|\{\}", "", field.pattern) for field in schema_fields(ScanExperiment)}


class Row(NamedTuple):
    """A row of the page."""

    theirs: tuple[str, ...]
    ours: str
    checked: str


ROWS = [
    Row(tuple(re.findall(r"`([^`]+)`", cells[1])), cells[2].strip().strip("`"), cells[3].strip())
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for cells in [line.split("|")]
]


def found(name: str) -> object | None:
    """Return what an import path leads to, None when it leads nowhere."""
    try:
        return resolve_name(name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError):
        return None


def imports(row: Row) -> bool:
    there = found(row.ours)
    without = re.findall(r"without `(\w+)`", row.checked)
    return there is not None and not any(hasattr(there, name) for name in without)


def parameter(row: Row) -> bool:
    call, _, name = row.ours.rstrip(")").partition("(")
    there = found(call)
    return callable(there) and name in inspect.signature(there).parameters


def field(row: Row) -> bool:
    return any(f"{known}.".startswith(f"{row.ours}.") for known in FIELDS)


def refused(row: Row) -> bool:
    path, _, value = row.ours.partition(": ")
    refusal = BY_PATTERN.get(path)
    return refusal is not None and (not refusal.passes(value) if value else refusal.available is None)


def metric(row: Row) -> bool:
    return row.ours in {known.name for known in METRICS}


def column(row: Row) -> bool:
    return row.ours.removeprefix("params.") in {known.name for known in COLUMNS}


def command(row: Row) -> bool:
    if target := re.fullmatch(r"make (.+)", row.ours):
        return re.search(rf"^{target[1]}:", MAKEFILE, re.M) is not None
    program, *words = row.ours.split()
    there = get_command(app)
    for word in words:
        context = typer.Context(there)
        there = there.get_command(context, word) if hasattr(there, "get_command") else None
    return program in SCRIPTS and there is not None


def exists(row: Row) -> bool:
    return (ROOT / row.ours).exists()


def absent(row: Row) -> bool:
    """Whether no class, module or file of this repository has one of the names."""
    sources = [*ROOT.glob("workers/**/*.py"), *ROOT.glob("operator/**/*.py")]
    for name in row.theirs:
        last = name.split("/")[-1]
        if (ROOT / name).exists() or last in {file.name for file in sources}:
            return False
        if name.isidentifier() and any(
            re.search(rf"^class {name}\b", file.read_text(), re.M) for file in sources
        ):
            return False
    return row.ours == "*not built*"


CHECKS: dict[str, Callable[[Row], bool]] = {
    "imports": imports,
    "a parameter": parameter,
    "a field": field,
    "refused": refused,
    "a metric": metric,
    "a command": command,
    "a column": column,
    "exists": exists,
    "absent": absent,
}


def holds(row: Row) -> bool:
    """Whether a row says what is so."""
    return CHECKS[row.checked.partition(",")[0]](row)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.theirs[0])
def test_a_row_says_what_is_so(row: Row) -> None:
    """What stands beside a name of the original design is there, refused, or missing, as the row says."""
    assert holds(row), f"{', '.join(row.theirs)}: {row.ours} ({row.checked})"


def test_every_original_name_has_a_row() -> None:
    """No name of the documents is left out, and no row has a name that they do not have."""
    there = [name for row in ROWS for name in row.theirs]
    assert set(ORIGINAL) - set(there) == set()
    assert set(there) - set(ORIGINAL) == set()
    assert len(ORIGINAL) > 250


def test_every_metric_with_a_counterpart_is_on_the_page() -> None:
    """The metrics table's column of original names and this page agree."""
    assert {metric.name for metric in METRICS if metric.source} <= {row.ours for row in ROWS}


@pytest.mark.parametrize(
    ("ours", "checked"),
    [
        ("asysi.bus.packet.NoSuchPacket", "imports"),
        ("asysi.nowhere", "imports"),
        ("asysi.contract.spec.ScanExperiment", "imports, without `model_validate`"),
        ("asysi.weights.tensor_stats(nothing)", "a parameter"),
        ("spec.nothing", "a field"),
        ("spec.mode: HPC", "refused"),
        ("spec.capture.hookPoints", "refused"),
        ("asysi_no_total", "a metric"),
        ("asysi fly", "a command"),
        ("asysi weights fly", "a command"),
        ("make tea", "a command"),
        ("params.nothing", "a column"),
        ("no/file", "exists"),
        ("*not built*", "absent"),
    ],
)
def test_a_row_that_is_wrong_is_found_out(ours: str, checked: str) -> None:
    """Each kind of check can fail."""
    assert not holds(Row(("ScanExperiment",), ours, checked))
