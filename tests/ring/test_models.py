"""The models of the ring's protocol, and that they are models of this code.

The bounds are small enough for every change; `ASYSI_MODELS=full` takes the wide ones of docs/ring-proof.md.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "native" / "models"
sys.path.insert(0, str(MODELS))

import accesses  # noqa: E402
import run  # noqa: E402

# Whichever test is first runs them all: a minute on two cores, more on a busy machine.
pytestmark = pytest.mark.timeout(7200 if os.environ.get("ASYSI_MODELS") == "full" else 1200)
SETTING = os.environ.get("ASYSI_MODELS", "quick")


@pytest.fixture(scope="module")
def results(program) -> list[run.Result]:
    """Every model and every mutant, run once."""
    for tool in ("spin", "g++", "/usr/include/relacy/relacy.hpp"):
        program(tool)
    return run.run(SETTING, workers=os.cpu_count() or 1)


@pytest.mark.long
@pytest.mark.parametrize("case", run.CASES, ids=lambda case: f"{case.model}: {case.concern}")
def test_the_model_holds_and_its_mutants_fail(results, case):
    """What is claimed holds in every state and schedule explored; a model that is wrong is found out."""
    mine = [result for result in results if result.case == case]
    assert len(mine) == 1 + len(case.mutants)
    assert mine[0].size > 1000
    assert all(result.as_expected for result in mine), run.table(mine)


def test_the_models_know_every_access_of_the_code():
    """No access to shared memory has come, gone, moved or changed its order since the last look."""
    assert accesses.RECORD.read_text() == accesses.record(), (
        "the ring's accesses changed: read the difference, bring native/models in line, "
        "then run python native/models/run.py --accept"
    )


def test_an_order_that_is_not_there_is_no_order():
    """A model cannot be built on an access that the code does not have, nor on two that differ."""
    found = accesses.accesses()
    assert accesses.order(found, "unpin", "state", "compare_exchange_weak") == "release"
    with pytest.raises(accesses.ChangedError, match="0 accesses like state"):
        accesses.order(found, "unpin", "state", "store")
    with pytest.raises(accesses.ChangedError, match="relaxed"):
        accesses.order(found, "load", "^version", "load")


def test_a_missing_tool_is_named_with_its_package(monkeypatch):
    """Where spin is not installed the run says which package to install, and does not pass."""
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "spin" else f"/usr/bin/{name}")
    with pytest.raises(run.ToolError, match="apt-get install spin"):
        run.expect_tools()


def test_a_search_that_was_cut_short_proves_nothing(monkeypatch, tmp_path):
    """A depth or a time that was reached is a failure, not a model that holds."""
    answers = iter(
        ["error: max search depth too small\n  5000 states, stored\nerrors: 0", "not finished after 1 s"]
    )
    monkeypatch.setattr(run, "succeed", lambda *_: None)
    monkeypatch.setattr(run, "limited", lambda *_: next(answers))
    assert "depth" in run.spin("pins.pml", "", "", "quick", tmp_path)[1]
    assert "not finished" in run.spin("pins.pml", "", "", "quick", tmp_path)[1]
