"""docs/operator.md names what the code can say: phases, conditions, reasons, events, metrics, objects."""

import ast
import inspect
import re
from pathlib import Path
from typing import get_args

import pytest

from asysi.contract.frozen import MUTABLE
from asysi.contract.status import Status
from asysi.finish import verdict
from asysi_operator import failures, pinning, reconcile, status
from asysi_operator.cluster import CHILDREN
from asysi_operator.metrics import REGISTRY

PAGE = (Path(__file__).parents[2] / "docs" / "operator.md").read_text()
WORD = re.compile(r"[A-Z][A-Za-z]+")
SAYS = {
    "Accepted": [status._accepted],
    "PipelineComplete": [status._pipeline],
    "Scheduled": [status._scheduled],
    "CPUPinned": [pinning.judge],
    "Capturing": [status._capturing],
    "Complete": [status._complete],
    "LedgerBalanced": [status._verdict],
    "DataSound": [status._verdict],
    "Failed": [status._failed],
    "Suspended": [status._suspended],
    "Contended": [status._contended],
}
"""Who says each condition."""
FINISH_SAYS = {
    "LedgerBalanced": {
        ("True", verdict.BALANCED),
        ("False", verdict.NOT_BALANCED),
        ("Unknown", verdict.NOT_ENDED),
        ("Unknown", verdict.NO_BOOKS),
    },
    "DataSound": {
        ("True", verdict.SOUND),
        *(
            ("Unknown" if one.level is verdict.Level.UNKNOWN else "False", one.reason)
            for one in verdict.CHECKS
        ),
    },
}
"""What the operator passes on."""
OTHERS_WORDS = {"Running", "Ready"}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of every table below a heading."""
    part = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def words(cell: str) -> set[str]:
    """Return what a cell shows as code."""
    return set(re.findall(r"`([^`]+)`", cell))


def said_by(function: object) -> set[tuple[str, str]]:
    """Return status and reason of what a function returns, where both are constants."""
    tree = ast.parse(inspect.getsource(function))  # type: ignore[arg-type]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple) and len(node.elts) == 3:
            kind, reason = node.elts[:2]
            known = reason.id if isinstance(reason, ast.Name) else None
            value = getattr(status, known) if known and known.isupper() else None
            value = reason.value if isinstance(reason, ast.Constant) else value
            if isinstance(kind, ast.Constant) and isinstance(value, str):
                found.add((str(kind.value), value))
    return found


@pytest.mark.parametrize("condition", SAYS)
def test_every_reason_of_a_condition_is_on_the_page(condition):
    """What a condition can say is in the table, and the table says no other fixed reason."""
    told = {
        (row[1], reason)
        for row in rows("Conditions")
        if f"`{condition}`" == row[0]
        for reason in words(row[2])
    }
    said = {pair for function in SAYS[condition] for pair in said_by(function)}
    if condition == "Accepted":
        refusals = re.findall(r'Refusal\("(\w+)"', inspect.getsource(reconcile))
        said |= {("False", reason) for reason in refusals}
    said |= FINISH_SAYS.get(condition, set())
    extra = {("False", "Unschedulable")} if condition == "Scheduled" else set()
    assert told | extra == said | extra


def test_the_conditions_are_those_of_the_code():
    """Each condition is in the table."""
    assert {word for row in rows("Conditions") for word in words(row[0])} == set(status.CONDITIONS)


def test_the_phases_are_those_of_the_schema():
    """Each phase is in the table."""
    (phases,) = [get_args(one) for one in get_args(Status.model_fields["phase"].annotation) if get_args(one)]
    told = [word for row in rows("The life of an experiment") for word in words(row[0])]
    assert told == list(phases)


def test_every_failure_that_the_code_names_is_on_the_page():
    """Each reason that is in the code of failures is explained, with something to do about it."""
    table = [row for row in rows("Failures") if len(row) == 3]
    told = {word for row in table for word in words(row[0])}
    code = ast.parse(inspect.getsource(failures))
    constants = {node.value for node in ast.walk(code) if isinstance(node, ast.Constant)}
    named = {value for value in constants if isinstance(value, str) and WORD.fullmatch(value)}
    kubernetes = {
        *("ErrImagePull", "ErrImageNeverPull", "ContainerCreating", "PodInitializing"),
        *("PodScheduled", "False", "SchedulingGated", "Failed", "Complete", "Killing", "DisruptionTarget"),
    }
    assert named - kubernetes <= told
    assert all(len(row[2]) > 5 for row in table)
    assert "NameTaken" in told


def test_the_events_are_those_of_the_code():
    """Each reason of an event is in the table, and no other."""
    table = [row for row in rows("Failures") if len(row) == 2]
    assert {word for row in table for word in words(row[0])} == set(status.EVENT_REASONS)


def test_the_metrics_are_those_of_the_operator():
    """Each metric is in the table under the name that is scraped, with its type."""
    ours = {
        f"{family.name}{'_total' if family.type == 'counter' else ''}": family.type
        for family in REGISTRY.collect()
        if family.name.startswith("asysi_operator_")
    }
    table = {min(words(row[0])): row[1] for row in rows("Its own health")}
    assert table == ours


def test_the_objects_are_those_of_the_planner():
    """Each kind that an experiment owns is in the table."""
    part = PAGE.split("\n## What is made\n")[1].split("\n## ")[0]
    told = [line.split("|")[1].strip() for line in part.splitlines() if line.startswith("| ")][1:]
    assert set(told) == {kind.kind for kind in CHILDREN}


def test_what_may_change_is_named():
    """The fields that may change after the host's start are named."""
    part = PAGE.split("**After it**")[1].split("- **")[0]
    assert set(MUTABLE) == {word for word in words(part) if "." in word}
