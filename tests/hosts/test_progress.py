"""What an attempt learns from the one before it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.runtime import HOST_FOLDER
from asysi.hosts.frame import HostPlan, _tokens_before
from asysi.hosts.progress import PROGRESS_FILE, HostProgress, read_progress

WHOLE = {
    "attempt": 1,
    "step": 41,
    "attempts": {"0": 9, "1": 41},
    "tokens": 700,
    "sequences": 84,
    "opened": 80,
}


def written(folder: Path, content: str) -> HostProgress:
    (folder / HOST_FOLDER).mkdir(exist_ok=True)
    (folder / PROGRESS_FILE).write_text(content)
    return read_progress(folder)


def test_the_next_attempt_begins_behind_the_last_step(tmp_path: Path) -> None:
    """Step, attempts and counts are those that were written down."""
    assert written(tmp_path, json.dumps(WHOLE)) == HostProgress(42, {"0": 9, "1": 41}, 700, 84, 80)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"step": "soon"}', '{"step": null}', "7", '{"tokens": 5}']
)
def test_a_damaged_record_counts_as_nothing_done(tmp_path: Path, content: str) -> None:
    """Without a step that can be read the run begins anew."""
    assert written(tmp_path, content) == HostProgress()
    assert read_progress(tmp_path / "nowhere") == HostProgress()


def test_a_record_of_an_older_version_is_read(tmp_path: Path) -> None:
    """A record that names one attempt and counts nothing gives its step; tokens are then estimated."""
    found = written(tmp_path, '{"attempt": 0, "step": 9}')
    assert found == HostProgress(10, {"0": 9}, None, 0, 0)
    assert written(tmp_path, '{"step": 9}').attempts == {}
    assert _tokens_before(found, HostPlan(context_length=8, steps=40, tokens=1000)) == 250
    assert _tokens_before(found, HostPlan(context_length=8)) == 0
    assert _tokens_before(HostProgress(10, tokens=7), HostPlan(context_length=8, steps=40, tokens=1000)) == 7


def test_sequences_count_together(tmp_path: Path) -> None:
    """How many sequences began with BOS means nothing without how many there were: both or none."""
    half = {key: value for key, value in WHOLE.items() if key != "opened"}
    assert written(tmp_path, json.dumps(half)) == HostProgress(42, {"0": 9, "1": 41}, 700, 0, 0)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*WHOLE, "x"]), inner),
    max_leaves=8,
)


@given(JSON)
def test_whatever_the_record_holds_it_is_read(tmp_path_factory: pytest.TempPathFactory, record: Any) -> None:
    """No content of the file stops an attempt."""
    found = written(tmp_path_factory.mktemp("run"), json.dumps(record))
    assert isinstance(found.next_step, int)
    assert all(isinstance(step, int) for step in found.attempts.values())
