"""What is known of the cluster: in whatever order it comes, the newest stands and what has gone is gone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi_operator.cache import ObjectCache, StaleWatchDetector
from asysi_operator.manifests.labels import EXPERIMENT

KEY = ("lab", "minilm")


def item(version, uid="one", name="minilm", labels=True):
    """Return a Job of an experiment at a version."""
    mine = {EXPERIMENT: "minilm"} if labels else {}
    return {
        "kind": "Job",
        "metadata": {
            "namespace": "lab",
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "labels": mine,
        },
    }


def known(world):
    """Return identity and version of every child."""
    return [(one["metadata"]["uid"], one["metadata"]["resourceVersion"]) for one in world.children(KEY)]


@given(st.permutations(range(1, 6)))
def test_the_newest_stands(versions):
    """States that come in any order leave the newest."""
    world = ObjectCache()
    for version in versions:
        world.put("Job", item(version))
    assert known(world) == [("one", "5")]


def test_what_has_gone_is_not_brought_back_by_a_late_answer():
    """The answer to a deletion may come after the event of its end: the object stays gone."""
    world = ObjectCache()
    world.put("Job", item(1))
    assert world.drop("Job", item(3)) == KEY
    assert world.put("Job", item(2)) is None
    assert known(world) == []


def test_a_late_end_does_not_take_the_next_of_its_name():
    """The end of an object that another has followed removes nothing."""
    world = ObjectCache()
    world.put("Job", item(1))
    world.put("Job", item(4, uid="two"))
    assert world.drop("Job", item(3)) == KEY
    assert known(world) == [("two", "4")]


def test_what_lost_its_label_and_got_it_back_is_known_again():
    """A watch with a selector calls an object gone that no longer matches; a newer state of it counts."""
    world = ObjectCache()
    world.put("Job", item(1))
    world.drop("Job", item(2))
    world.put("Job", item(3))
    assert known(world) == [("one", "3")]


def test_a_name_is_enough_to_forget():
    """An audit knows no more than the name of what is not there."""
    world = ObjectCache()
    world.put("Job", item(1))
    assert world.drop("Job", {"metadata": {"namespace": "lab", "name": "minilm"}}) == KEY
    assert known(world) == []


def test_graves_are_bounded(monkeypatch):
    """However many objects have gone, only the last are remembered."""
    monkeypatch.setattr("asysi_operator.cache.TOMBSTONES", 3)
    world = ObjectCache()
    for number in range(10):
        world.drop("Job", item(2, uid=str(number)))
    for number in range(10):
        world.put("Job", item(1, uid=str(number), name=str(number)))
    assert len(known(world)) == 7


@pytest.mark.parametrize(
    ("versions", "unlike"),
    [
        ({KEY: "1"}, {}),
        ({KEY: "2"}, {KEY: "2"}),
        ({}, {KEY: None}),
        ({KEY: "1", ("lab", "other"): "7"}, {("lab", "other"): "7"}),
    ],
)
def test_an_audit_finds_what_no_watch_brought(versions, unlike):
    """A newer version, an object that is not known, and one that is not there any more."""
    world = ObjectCache()
    world.put("Job", item(1))
    assert world.unlike("Job", versions) == unlike


def test_late_is_not_silent():
    """Only a change that two audits miss was not brought; a watch is silent when that goes on."""
    silence = StaleWatchDetector()
    late, later = {"Job": {KEY: "2"}}, {"Job": {KEY: "3"}}
    assert silence.audited(late) == []
    assert silence.audited(later) == []
    assert silence.audited(later) == [("Job", KEY)]
    assert silence.lasting == 1
    assert silence.audited({"Job": {}}) == []
    assert silence.lasting == 0


def test_the_echo_of_what_is_known_concerns_nobody():
    """What comes at a version that is known, as each own write does once more, is no reason to look again."""
    world = ObjectCache()
    assert world.put("Job", item(2)) == KEY
    assert world.put("Job", item(2)) is None
    assert world.put("Job", item(2, uid="another")) == KEY
    assert world.put("Job", item(3, uid="another")) == KEY


def test_claims_are_known_by_the_experiments_that_name_them():
    """A claim of somebody else's concerns those that name it; no more is kept than that it is there."""
    world = ObjectCache()
    spec = {"output": {"claim": "results"}, "inputs": [{"claim": "texts"}]}
    for name in ("minilm", "other"):
        meta = {"namespace": "lab", "name": name, "uid": name, "resourceVersion": "1"}
        world.put(
            "ScanExperiment",
            {"kind": "ScanExperiment", "metadata": meta, "spec": spec if name == "minilm" else {}},
        )
    for name in ("results", "other-output", "unknown"):
        meta = {
            "namespace": "lab",
            "name": name,
            "uid": name,
            "resourceVersion": "2",
            "annotations": {"a": "b"},
        }
        assert (
            world.put(
                "PersistentVolumeClaim", {"kind": "PersistentVolumeClaim", "metadata": meta, "spec": {}}
            )
            is None
        )
    assert [one["metadata"]["name"] for one in world.claims(KEY)] == ["results"]
    assert set(world.claims(KEY)[0]["metadata"]) == {"namespace", "name", "uid", "resourceVersion"}
    assert world.users(("lab", "results")) == [KEY]
    assert world.users(("lab", "texts")) == [KEY]
    assert world.users(("lab", "other-output")) == [("lab", "other")]
    assert world.users(("elsewhere", "results")) == []


def test_a_pod_that_was_put_out_is_remembered_once():
    """What was marked as put out and went is told when it is next asked for, and then forgotten."""
    world = ObjectCache()
    pod = item(1) | {"kind": "Pod", "status": {}}
    marked = item(2) | {
        "kind": "Pod",
        "status": {"conditions": [{"type": "DisruptionTarget", "status": "True"}]},
    }
    for last in (pod, marked):
        world.put("Pod", last)
        world.drop("Pod", last)
    assert [one["metadata"]["resourceVersion"] for one in world.put_out(KEY)] == ["2"]
    assert world.put_out(KEY) == []
