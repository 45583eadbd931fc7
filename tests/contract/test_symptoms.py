"""The page of symptoms quotes messages that the programs have, and fields that the spec has."""

import re
from pathlib import Path

import pytest

from asysi.bus.states import DropReason
from asysi.contract.fields import schema_fields
from asysi.contract.spec import ScanExperiment

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/symptoms.md").read_text()
SOURCES = "\n".join(
    re.sub(r'"\s*\n\s*f?"', "", file.read_text())  # a sentence may go on in the next line's string
    for pattern in ("workers/**/*.py", "operator/**/*.py", "native/**/*.hpp", "native/**/*.py")
    for file in sorted(ROOT.glob(pattern))
)
MESSAGES = [
    quoted
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for quoted in re.findall(r"`([^`]+)`", line.split("|")[1])
]
FIELDS = {
    re.sub(r"\[\]|\{\}", "", field.pattern).removeprefix("spec.") for field in schema_fields(ScanExperiment)
}


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_page_is_one_of_the_programs(message: str) -> None:
    """Whoever searches the page for what a program printed finds it."""
    reasons = {reason.word for reason in DropReason}
    assert message in reasons or message in SOURCES, f"no program says {message!r}"


def test_a_message_that_nobody_prints_is_found_out() -> None:
    """The check can fail, and the page has messages."""
    assert "the moon is in the wrong phase" not in SOURCES
    assert len(MESSAGES) > 35


def test_the_fields_of_the_page_exist() -> None:
    """A dotted name in the advice is a field of the spec."""
    advice = [cell for line in PAGE.splitlines() if line.startswith("| ") for cell in line.split("|")[2:]]
    named = {
        name
        for cell in advice
        for name in re.findall(r"`([a-z]\w*(?:\.[a-z]\w*)+)`", cell)
        if name.split(".")[0] in {field.split(".")[0] for field in FIELDS}
    }
    unknown = {name for name in named if not any(f"{field}.".startswith(f"{name}.") for field in FIELDS)}
    assert unknown == set()
    assert len(named) > 10
