"""What finish says is what operator and runner read, in this release and in those before it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.cpus import format_cpu_list, parse_cpu_list
from asysi.contract.telemetry import (
    BODY_LIMIT,
    CaptureCounts,
    Captured,
    ModelProgress,
    PointStatus,
    ReaderStatus,
    RunStatus,
    Summary,
    Verdict,
    read_attempt,
)

STATUS = {
    "phase": "running",
    "progress": {
        "steps": 5, "stepsTotal": 10, "tokens": 50, "tokensTotal": 100, "pass": 1, "tokensPerSecond": 12.5,
    },
    "rate": 0.5,
    "capture": {
        "seen": 100, "published": 60, "sampledOut": 30, "dropped": {"ring_full": 10}, "stepsDropped": 1,
        "errors": 0,
    },
    "consumers": {
        "archiver": {"lag": 0.25, "durable": 40, "lapped": 0, "rolledBack": 5, "state": "attached"},
    },
    "points": [
        {"path": "a", "fvu": 0.25, "l0": 32.0, "dead": 0.5, "trained": 9},
        {"path": "b", "fvu": None, "l0": None, "dead": None, "trained": 0},
    ],
    "ledger": {"balanced": True, "points": 2},
    "conditions": {"DataSound": {"status": "True", "reason": "Sound", "message": "All well."}},
}  # fmt: skip
"""As the release before this contract wrote it."""
SUMMARY = {
    "attempt": 1,
    "complete": True,
    "interrupted": False,
    "ledger": {"balanced": False, "unbalanced": ["a hook"]},
    "tokens": 50,
    "capture": {"seen": 100, "published": 60, "sampledOut": 30, "dropped": {"ring_full": 10}},
    "durable": {"archiver": 40, "sae": 60},
    "trained": 9,
    "sae": {"fvu": 0.25, "l0": 32.0, "dead": 0.5},
    "problems": ["a row is missing"],
    "conditions": {"LedgerBalanced": {"status": "False", "reason": "Unbalanced", "message": "1 of 2."}},
}
"""Likewise."""
COUNTERS = {"seen": 100, "captured": 60, "sampledOut": 30, "dropped": 10, "archived": 40, "trained": 9}


def test_a_status_is_written_as_it_was_read():
    """Keys, their order and every value of `/status` are those of earlier releases, both ways."""
    status = RunStatus.read(json.dumps({"cpus": "0,2-3", **STATUS}).encode())
    assert json.dumps(status.as_json()) == json.dumps(STATUS)
    assert status.cpus == "0,2-3"
    assert status.counters == COUNTERS
    assert status.sae == {"fvu": 0.25, "l0": 32.0, "dead": 0.5}
    assert (status.balanced, status.share_done) == (True, 0.5)


def test_a_summary_is_written_as_it_was_read():
    """The termination message keeps its keys, their order and its values, both ways."""
    summary = Summary.read(json.dumps(SUMMARY))
    assert json.dumps(summary.as_json()) == json.dumps(SUMMARY)
    assert summary.counters == COUNTERS
    assert summary.sae == SUMMARY["sae"]
    assert (summary.balanced, summary.unbalanced) == (False, ["a hook"])
    assert summary.conditions["LedgerBalanced"].reason == "Unbalanced"


def test_a_later_release_may_say_more():
    """Keys that are not known here are passed over, in every part."""
    later = {**STATUS, "new": 1, "progress": {**STATUS["progress"], "new": [1]}}
    assert RunStatus.read(json.dumps(later).encode()).as_json() == STATUS


@pytest.mark.parametrize(
    ("part", "value", "unknown"),
    [
        ("progress", [1], ModelProgress()),
        ("capture", "many", CaptureCounts()),
        ("consumers", {"sae": 3}, {"sae": ReaderStatus()}),
        ("points", {"a": 1}, []),
        ("points", [1, {"path": "a", "fvu": "low", "trained": -1}], [PointStatus(path="a")]),
        ("rate", True, None),
        ("rate", float("inf"), None),
        ("phase", 7, None),
        ("conditions", {"DataSound": {"status": "Maybe", "reason": "X"}, "Other": {}}, {}),
        ("cpus", "0; rm", None),
    ],
)
def test_a_part_of_another_kind_is_unknown(part, value, unknown):
    """A part that cannot be what it should is as good as none, and the others stand."""
    status = RunStatus.read(json.dumps({**STATUS, part: value}).encode())
    assert getattr(status, part) == unknown
    others = {key for key in STATUS if key != part}
    assert all(status.as_json()[key] == STATUS[key] for key in others)


@pytest.mark.parametrize("number", [-1, 2**63, 10**400, float("nan"), "5", None, True, [5]])
def test_a_count_is_a_whole_number_from_0(number):
    """Whatever is not a count of rows that fits 63 bits is unknown."""
    assert Captured(seen=number).seen is None
    assert read_attempt(json.dumps({"attempt": number})) is None


def test_texts_and_lists_have_bounds():
    """No answer makes its reader keep more than a few thousand items, or long texts."""
    many = {**STATUS, "phase": "x" * 1000, "points": [{}] * 10_000}
    status = RunStatus.read(json.dumps(many).encode())
    assert (len(status.phase), len(status.points)) == (253, 4096)
    summary = Summary.read(
        json.dumps({"capture": {}, "problems": ["x"] * 100, "ledger": {"unbalanced": ["y" * 999]}})
    )
    assert (len(summary.problems), len(summary.unbalanced[0])) == (64, 253)
    assert BODY_LIMIT == 256 * 1024


def test_what_is_not_the_totals_is_no_summary():
    """A sentence, another worker's words or broken JSON are not finish's totals."""
    for message in ("", "the host died", "[]", json.dumps({"attempt": 3}), "{" * 5000):
        assert Summary.read(message) is None
    assert read_attempt(json.dumps({"attempt": 3})) == 3
    assert Verdict().unbalanced == []


@given(st.frozensets(st.integers(0, 5000), min_size=1, max_size=40))
def test_a_list_of_processors_is_read_as_it_is_written(cpus):
    """As in `taskset -c`: neighbours become a range, and reading gives back the same processors."""
    assert parse_cpu_list(format_cpu_list(cpus)) == cpus


def test_lists_of_processors_are_those_of_taskset():
    """One number, a range, both; a range that no machine has is nothing."""
    assert format_cpu_list({3, 0, 2, 5}) == "0,2-3,5"
    assert parse_cpu_list("0,2-3") == {0, 2, 3}
    assert parse_cpu_list("0-99999") == frozenset()
