"""What the conditions come to: as kstatus and a table show it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi_operator.observation import parse_time, rfc3339
from asysi_operator.reconcile import OperatorSettings, plan
from asysi_operator.status import announcements, derive
from asysi_operator.summary import HISTORY, duration, failures

RUNNING = {"running": {"startedAt": "2026-01-02T03:01:00Z"}}


@pytest.fixture
def lab(cluster):
    """Return a cluster whose experiment has its Job."""
    made = cluster()
    made.settle()
    return made


def said(lab, **more):
    observed = lab.observe(**more)
    return derive(observed, plan(observed, OperatorSettings())).status


def kstatus(status):
    """Return what kstatus makes of conditions: stalled is failed, not ready is on its way."""
    conditions = {one["type"]: one["status"] for one in status["conditions"]}
    if conditions["Stalled"] == "True":
        return "Failed"
    return "Current" if conditions["Ready"] == "True" else "InProgress"


def end(lab, kind, **more):
    condition = {"type": kind, "status": "True", "lastTransitionTime": "2026-01-02T03:03:39Z", **more}
    lab.objects["Job", "minilm"]["status"] = {"conditions": [condition]}


def test_kstatus_sees_the_truth(cluster, lab):
    """On its way, running, ended well and ended badly are told apart by Ready and Stalled alone."""
    assert kstatus(said(lab)) == "InProgress"
    pod = lab.run_pod(host=RUNNING)
    assert kstatus(said(lab)) == "Current"
    pod["metadata"]["deletionTimestamp"] = "2026-01-02T03:03:00Z"
    assert kstatus(said(lab)) == "InProgress"
    end(lab, "Complete")
    assert kstatus(said(lab)) == "Current"
    end(lab, "Failed", reason="BackoffLimitExceeded", message="too often")
    assert kstatus(said(lab)) == "Failed"
    assert kstatus(said(cluster({"mode": "CONSUMER"}))) == "Failed"
    held = cluster({"lifecycle": {"suspend": True}})
    held.settle()
    assert kstatus(said(held)) == "Current"


def test_a_queue_is_waited_for(cluster):
    """What a queue has not admitted is on its way, and says for what it waits."""
    lab = cluster({"scheduling": {"queueName": "team"}})
    lab.settle()
    lab.objects["Job", "minilm"]["spec"]["suspend"] = True
    status = said(lab)
    assert (status["phase"], kstatus(status)) == ("Suspended", "InProgress")


def test_the_columns(cluster, lab):
    """Node and duration are those of the run; the reason is empty while all is well."""
    lab.run_pod(host=RUNNING)
    status = said(lab)
    assert (status["node"], status["duration"]) == ("node", "3m5s")
    assert "reason" not in status
    lab.write_status(status)
    end(lab, "Complete")
    assert said(lab)["duration"] == "2m39s"
    assert said(cluster({"mode": "CONSUMER"}))["reason"] == "Invalid"


def test_a_node_that_is_not_heard_of(lab):
    """The node controller's mark is said: what the kubelet once said of the containers is old."""
    pod = lab.run_pod(host=RUNNING)
    pod["status"]["conditions"] += [
        {"type": "Ready", "status": "False"},
        {"type": "ContainersReady", "status": "True"},
    ]
    status = said(lab)
    assert (status["phase"], status["lastFailure"]["reason"]) == ("Unknown", "NodeUnreachable")
    assert "the node node" in status["lastFailure"]["message"]
    pod["status"]["conditions"][-1]["status"] = "False"  # a container that has ended is not ready either
    assert said(lab)["phase"] == "Running"


def test_a_pod_that_goes_does_not_run(lab):
    """From the moment that a pod is deleted the phase says so."""
    pod = lab.run_pod(host=RUNNING)
    pod["metadata"]["deletionTimestamp"] = "2026-01-02T03:03:00Z"
    status = said(lab)
    assert status["phase"] == "Terminating"
    assert "lastFailure" not in status


def test_a_claim_that_is_deleted_under_a_run(lab):
    """A claim that goes is said while it still can be helped, and not any more once the run has ended."""
    lab.run_pod(host=RUNNING)
    claim = {"metadata": {"name": "texts", "deletionTimestamp": "2026-01-02T03:03:00Z"}}
    failure = said(lab, claims=[claim])["lastFailure"]
    assert (failure["reason"], failure["time"]) == ("ClaimTerminating", "2026-01-02T03:03:00Z")
    assert "texts" in failure["message"]
    end(lab, "Complete")
    assert "lastFailure" not in said(lab, claims=[claim])


def test_success_leaves_failures_to_history(lab):
    """A run that succeeded has no last failure; what went wrong on the way is in its history, once."""
    pod = lab.run_pod(host=RUNNING)
    dead = {"exitCode": 1, "reason": "Error", "message": "disk", "finishedAt": "2026-01-02T03:02:00Z"}
    hook = {"name": "hook", "state": RUNNING, "lastState": {"terminated": dead}}
    pod["status"]["initContainerStatuses"].append(hook)
    lab.write_status(said(lab))
    assert lab.experiment["status"]["lastFailure"]["container"] == "hook"
    end(lab, "Complete")
    for _ in range(3):
        lab.write_status(said(lab))
        assert "lastFailure" not in lab.experiment["status"]
        assert [one["container"] for one in lab.experiment["status"]["failures"]] == ["hook"]


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=40))
def test_history_is_bounded_and_holds_nothing_twice(seen):
    """However failures follow each other, ten different ones are remembered at most."""
    status = {}
    for number, again in seen:
        for _ in range(1 + again):
            last, past = failures(status, {"reason": "Error", "attempt": number}, "Running")
            status = {"lastFailure": last, "failures": past}
            assert last["attempt"] == number
    history = [one["attempt"] for one in status.get("failures", ())]
    assert len(history) == len(set(history)) <= HISTORY
    last, past = failures(status, None, "Succeeded")
    assert last is None
    assert not seen or past[-1]["attempt"] in {number for number, _ in seen}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (95, "95s"), (159, "2m39s"), (3599, "59m59s"), (11_085, "3h4m"), (190_860, "2d5h")],
)
def test_a_duration_reads_as_kubectl_writes_it(seconds, text):
    """Two units at most, seconds alone up to two minutes."""
    begin = "2026-01-02T03:04:05Z"
    moment = rfc3339(
        parse_time(begin).fromtimestamp(parse_time(begin).timestamp() + seconds, parse_time(begin).tzinfo)
    )
    assert duration(begin, moment, begin) == text
    assert duration(begin, None, moment) == text
    assert duration(None, None, moment) is None


def test_a_pod_that_was_put_out_and_has_gone_is_remembered(lab):
    """A lost node's pod is marked and deleted in one moment; why it went is said all the same, once."""
    pod = lab.run_pod(host=RUNNING)
    lab.write_status(said(lab))
    reason = {
        "reason": "DeletionByPodGC",
        "message": "node is gone",
        "lastTransitionTime": "2026-01-02T03:03:00Z",
    }
    pod["status"]["conditions"].append({"type": "DisruptionTarget", "status": "True", **reason})
    del lab.objects["Pod", pod["metadata"]["name"]]
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node"}
    lab.run_pod(1, conditions=[waits], initContainerStatuses=[])
    before = lab.experiment["status"]
    after = said(lab, put_out=[pod])
    assert [one["reason"] for one in after["failures"]] == ["DeletionByPodGC"]
    assert after["lastFailure"]["reason"] == "Unschedulable"
    told = announcements("minilm", before, after)
    assert [reason for _level, reason, _message in told].count("Disrupted") == 1
    lab.write_status(after)
    assert announcements("minilm", after, said(lab)) == []
    pod["metadata"]["ownerReferences"][0]["uid"] = "a Job of an earlier experiment"
    assert said(lab, put_out=[pod])["failures"] == after["failures"]
