"""The page that maps the original design's names to ours says what is so."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import pytest
from typer.main import get_command

from asysi.cli.commands import app
from asysi.contract.fields import schema_fields
from asysi.contract.spec import ScanExperiment
from asysi.monitor.metrics import METRICS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/names.md").read_text()
ROWS = [
    (cells[1].strip(), cells[2].strip())
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| in the", "| ---"))
    for cells in [line.split("|")]
]
MAKEFILE = (ROOT / "Makefile").read_text()
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
FIELDS = {re.sub(r"\[\]|\{\}", "", field.pattern) for field in schema_fields(ScanExperiment)}


def exists(name: str) -> bool:
    """Whether `name` is a module, an attribute, a field, a metric, a command or a file of this repository."""
    kinds: list[tuple[str, Callable[[str], bool]]] = [
        (r"asysi(_operator)?\.", importable),
        (r"spec\.", lambda field: any(f"{known}.".startswith(f"{field}.") for known in FIELDS)),
        (r"asysi_", lambda metric: metric in {known.name for known in METRICS}),
        (r"asysi ", lambda command: command.split()[1] in getattr(get_command(app), "commands", {})),
        (r"make ", lambda target: re.search(rf"^{target[5:]}:", MAKEFILE, re.M) is not None),
        (r"asys-i-", lambda script: script in SCRIPTS),
        (r"", lambda file: (ROOT / file).exists()),
    ]
    return next(known(name) for pattern, known in kinds if re.match(pattern, name))


def importable(name: str) -> bool:
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize(("theirs", "ours"), [row for row in ROWS if row[1] != "*not built*"])
def test_a_name_of_ours_exists(theirs: str, ours: str) -> None:
    """What the page puts beside a name of the original design is there."""
    assert exists(ours.strip("`")), f"{theirs}: {ours} is nowhere"


@pytest.mark.parametrize("theirs", [row[0] for row in ROWS if row[1] == "*not built*"])
def test_a_name_said_to_be_missing_is_missing(theirs: str) -> None:
    """A name that the page calls not built is defined nowhere, so the row cannot outlive the gap."""
    name = theirs.strip("`").split("/")[-1]
    if "." in name:
        assert not (ROOT / theirs.strip("`")).exists()
        return
    sources = [*ROOT.glob("workers/**/*.py"), *ROOT.glob("operator/**/*.py")]
    assert [file for file in sources if re.search(rf"^class {name}\b", file.read_text(), re.M)] == []


def test_every_metric_with_a_counterpart_is_on_the_page() -> None:
    """The metrics table's column of original names and this page agree."""
    assert {metric.name for metric in METRICS if metric.source} <= {ours.strip("`") for _, ours in ROWS}


def test_a_name_that_is_not_there_is_found_out() -> None:
    """The check itself can fail, for each kind of name."""
    for name in (
        "asysi.bus.bus.NoSuchBus",
        "asysi.nowhere",
        "spec.nothing",
        "asysi_no_total",
        "asysi fly",
        "make tea",
        "no/file",
    ):
        assert not exists(name)
