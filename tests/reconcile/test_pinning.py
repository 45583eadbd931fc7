"""Pinning: what whole CPUs may expect, and what the containers say they got."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.cpus import parse_cpu_list
from asysi.contract.spec import Spec
from asysi_operator.pinning import fractional, judge, whole

BASE = {
    "model": {"uri": "file:///m"},
    "data": {"uri": "jsonl:///d"},
    "workload": {"scan": {}},
    "capture": {"hookPoints": ["*"]},
}
ALONE = {"host": "1", "hook": "2", "sae": "3", "archiver": "4", "finish": "0"}


def spec(**changes):
    return Spec.model_validate({**BASE, **changes})


def test_whole_cpus_by_default():
    """Host, hook, sae and archiver ask for whole CPUs unless told otherwise."""
    assert whole(spec()) == {"host": 1, "hook": 1, "sae": 1, "archiver": 1}
    assert fractional(spec()) == []


@pytest.mark.parametrize(
    ("changes", "sets", "status", "reason"),
    [
        ({}, {}, "Unknown", "NotKnownYet"),
        ({}, ALONE, "True", "Exclusive"),
        ({}, dict.fromkeys(ALONE, "0-7"), "False", "NotExclusive"),
        ({}, {**ALONE, "sae": "0"}, "False", "NotExclusive"),
        ({"archive": {"cpus": 0.5}}, {}, "False", "FractionalCPU"),
        ({"archive": {"cpus": 1.5}}, ALONE, "False", "FractionalCPU"),
        ({"sae": None, "archive": {"cpus": 2}}, {**ALONE, "archiver": "4-5"}, "True", "Exclusive"),
        ({"sae": None, "archive": {"cpus": 2}}, {**ALONE, "archiver": "4"}, "False", "NotExclusive"),
    ],
)
def test_the_verdict(changes, sets, status, reason):
    """Pinned means: as many processors as asked for, and nobody else of the pod on them."""
    assert judge(spec(**changes), sets)[:2] == (status, reason)


def test_a_part_that_is_pinned_is_named():
    """Where some share, the message still names those that are pinned, and to what."""
    _status, _reason, message = judge(spec(archive={"cpus": 0.5}), ALONE)
    assert "sae to 3" in message
    assert "archiver share" in message


@given(st.from_regex(r"\A\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?){0,3}\Z"))
def test_any_list_is_read_within_bounds(text):
    """A list of processors, true or not, costs no more than a few thousand numbers."""
    assert len(parse_cpu_list(text)) <= 4 * 4097
