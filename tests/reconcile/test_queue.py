"""Experiments in Kueue's queues: who owns `suspend`, and what Kueue writes into a Job."""

from typing import Any

import pytest

from asysi_operator.manifests.labels import QUEUE
from asysi_operator.reconcile import OperatorSettings, plan

JOB = ("Job", "minilm")
BY_LABEL: dict[str, Any] = {"labels": {QUEUE: "team"}}


def _kueue(lab: Any, *, suspend: bool) -> None:
    job = lab.objects[JOB]
    job["spec"]["suspend"] = suspend
    job["spec"]["template"]["spec"]["nodeSelector"] = {} if suspend else {"pool": "gpus"}
    job["spec"]["template"]["metadata"]["labels"]["kueue.x-k8s.io/podset"] = "main"


@pytest.mark.parametrize("where", ["spec", "label", "both"])
def test_a_queue_is_named_by_the_spec_or_by_kueues_label(cluster, where):
    """Either puts the label on the Job; its suspend is then not ours."""
    spec = {} if where == "label" else {"scheduling": {"queueName": "team"}}
    lab = cluster(spec, **({} if where == "spec" else BY_LABEL))
    lab.settle()
    assert lab.objects[JOB]["metadata"]["labels"][QUEUE] == "team"
    assert "suspend" not in lab.objects[JOB]["spec"]


def test_two_queues_are_refused(cluster):
    """A label and a spec that name different queues: nobody can tell which is meant."""
    lab = cluster({"scheduling": {"queueName": "team"}}, labels={QUEUE: "other"})
    decided = plan(lab.observe(), OperatorSettings())
    assert decided.refusal.reason == "Invalid"
    assert "spec.scheduling.queueName is team" in decided.refusal.message


def test_what_kueue_writes_is_left_alone(cluster):
    """Suspended, admitted with a place, evicted: nothing of it is put back."""
    lab = cluster(**BY_LABEL)
    lab.settle()
    for suspend in (True, False, True):
        _kueue(lab, suspend=suspend)
        assert not plan(lab.observe(), OperatorSettings()).actions


def test_a_write_to_an_admitted_job_keeps_its_place(cluster):
    """What may change is applied, with the template as it is: Kueue's node selector stays in it."""
    lab = cluster({"scheduling": {"queueName": "team", "nodeSelector": {"zone": "a"}}})
    lab.settle()
    _kueue(lab, suspend=False)
    lab.edit({"lifecycle": {"ttlSecondsAfterFinished": 7}})
    (action,) = [
        one for one in plan(lab.observe(), OperatorSettings()).actions if one.manifest["kind"] == "Job"
    ]
    assert action.manifest["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "gpus"}
    assert "suspend" not in action.manifest["spec"]
    lab.do(action)
    assert not [
        one for one in plan(lab.observe(), OperatorSettings()).actions if one.manifest["kind"] == "Job"
    ]


def test_a_job_in_a_default_queue_is_kueues_too(cluster):
    """Where Kueue itself puts Jobs into a queue, the label on the Job says whose suspend is."""
    lab = cluster()
    lab.settle()
    job = lab.objects[JOB]
    assert job["spec"]["suspend"] is False
    job["metadata"]["labels"][QUEUE] = "default"
    job["spec"]["suspend"] = True
    assert not plan(lab.observe(), OperatorSettings()).actions
    lab.edit({"lifecycle": {"ttlSecondsAfterFinished": 7}})
    (action,) = [
        one for one in plan(lab.observe(), OperatorSettings()).actions if one.manifest["kind"] == "Job"
    ]
    assert action.manifest["spec"]["suspend"] is True


def test_suspended_by_its_spec_it_has_no_job(cluster):
    """Kueue would resume a Job that it has admitted; without one the experiment waits, and queues anew."""
    lab = cluster({"scheduling": {"queueName": "team"}})
    lab.settle()
    first = lab.objects[JOB]["metadata"]["uid"]
    lab.edit({"lifecycle": {"suspend": True}})
    lab.settle()
    assert JOB not in lab.objects
    status = lab.experiment["status"]
    assert status["phase"] == "Suspended"
    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    assert ready["status"] == "True"
    lab.edit({"lifecycle": {"suspend": False}})
    lab.settle()
    assert lab.objects[JOB]["metadata"]["uid"] != first
