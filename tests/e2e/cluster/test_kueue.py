"""Kueue's sequence on a real API server: a stand-in suspends, admits with a place, and evicts.

The real Kueue is an image that these tests do not have. What it does to a Job is documented: a webhook
suspends a Job that names a queue; admission writes node selector and labels into the pod's template and
resumes the Job, in one update; eviction suspends it, and once no pod is left resets its start time and puts
the template back. Here a mutating admission policy is the webhook, and the test is the controller, as field
manager `kueue`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from asysi_operator.manifests.labels import QUEUE

from .conftest import SMALL, laid_over

Tree = dict[str, Any]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
MERGE = "application/merge-patch+json"
POLICIES = "/apis/admissionregistration.k8s.io/v1"


QUEUED = f"'{QUEUE}' in object.metadata.?labels.orValue({{}})"
SUSPENDED = "Object{spec: Object.spec{suspend: true}}"
DEFAULTED = (
    f"Object{{metadata: Object.metadata{{labels: {{'{QUEUE}': 'default'}}}}, "
    "spec: Object.spec{suspend: true}}"
)


@contextmanager
def _webhook(lab: Any, name: str, when: str, patch: str) -> Iterator[None]:
    """Have the API server change Jobs of the lab when they are created."""
    name = f"{lab.namespace}-{name}"
    rule: Tree = {"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"]}
    where = {"matchLabels": {"kubernetes.io/metadata.name": lab.namespace}}
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": where,
                "resourceRules": [rule | {"operations": ["CREATE"]}],
            },
            "matchConditions": [{"name": "queued", "expression": when}],
            "reinvocationPolicy": "Never",
            "failurePolicy": "Fail",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": patch}}],
        },
    }
    binding = policy | {"kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": name}}
    made = {"mutatingadmissionpolicies": policy, "mutatingadmissionpolicybindings": binding}
    for plural, item in made.items():
        code, answer = lab.ask("POST", f"{POLICIES}/{plural}", item)
        assert code == 201, answer
    time.sleep(2)  # until the API server minds it
    yield
    for plural in made:
        lab.ask("DELETE", f"{POLICIES}/{plural}/{name}")


@pytest.fixture(scope="module")
def webhook(lab: Any) -> Iterator[None]:
    """Every Job that names a queue is created suspended, whatever it says."""
    with _webhook(lab, "kueue", QUEUED, SUSPENDED):
        yield


def _update(lab: Any, name: str, change: Tree, part: str = "") -> None:
    path = f"{lab.path('Job', name)}{part}?fieldManager=kueue"
    code, answer = lab.ask("PATCH", path, change, MERGE)
    assert code == 200, answer


def _admit(lab: Any, name: str) -> None:
    place = {
        "metadata": {"labels": {"kueue.x-k8s.io/podset": "main"}},
        "spec": {"nodeSelector": {"kubernetes.io/hostname": "node-1"}},
    }
    _update(lab, name, {"spec": {"suspend": False, "template": place}})


def _evict(lab: Any, name: str, until: Any) -> None:
    _update(lab, name, {"spec": {"suspend": True}})
    until(lambda: not (lab.get("Job", name)["status"].get("active")), "its pod goes")
    until(lambda: not [one for one in lab.all("Pod", of=name) if _active(one)], "its pod has ended")
    _update(lab, name, {"status": {"startTime": None}}, "/status")
    back = {"metadata": {"labels": {"kueue.x-k8s.io/podset": None}}, "spec": {"nodeSelector": None}}
    _update(lab, name, {"spec": {"template": back}})


def _active(pod: Tree) -> bool:
    return pod["status"].get("phase") not in {"Succeeded", "Failed"}


def _queued(lab: Any, name: str) -> bool:
    said = lab.condition(name, "Ready")
    return lab.status(name).get("phase") == "Suspended" and said.get("reason") == "Queued"


def _patches(operator: Any, name: str, since: int) -> list[bytes]:
    return [
        one.body
        for one in operator.proxy.requests[since:]
        if one.method == "PATCH" and one.path.endswith(f"/jobs/{name}")
    ]


@pytest.mark.parametrize("named", ["label", "spec"])
def test_kueue_owns_suspend(lab: Any, operator: Any, webhook: None, until: Any, named: str) -> None:
    """Queued, admitted, changed while it runs, evicted, admitted again: nothing of Kueue's is put back."""
    name = f"queued-{named}"
    by_spec = {"scheduling": {"queueName": "team"}}
    lab.create(
        {
            "apiVersion": "asysi.dev/v1alpha1",
            "kind": "ScanExperiment",
            "metadata": {"name": name, "labels": {QUEUE: "team"} if named == "label" else {}},
            "spec": laid_over(SMALL, by_spec if named == "spec" else {}),
        }
    )
    until(lambda: lab.get("Job", name), "its Job")
    assert lab.get("Job", name)["metadata"]["labels"][QUEUE] == "team"
    until(lambda: _queued(lab, name), lambda: str(lab.status(name)), 20)
    since = len(operator.proxy.requests)
    time.sleep(5)
    assert _patches(operator, name, since) == []
    assert lab.get("Job", name)["spec"]["suspend"] is True
    assert lab.all("Pod", of=name) == []

    _admit(lab, name)
    status = lab.until_phase(name, "Running")
    [pod] = [one for one in lab.all("Pod", of=name) if one["metadata"]["name"] == status["pod"]]
    assert pod["spec"]["nodeSelector"] == {"kubernetes.io/hostname": "node-1"}
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/podset"] == "main"
    since = len(operator.proxy.requests)
    assert (
        lab.edit("ScanExperiment", name, {"spec": {"lifecycle": {"ttlSecondsAfterFinished": 900}}})[0] == 200
    )
    until(lambda: _patches(operator, name, since), "the Job is told of its time to live")
    time.sleep(2)
    assert lab.get("Job", name)["spec"]["suspend"] is False
    assert lab.status(name)["phase"] == "Running"
    assert "lastFailure" not in lab.status(name)

    _evict(lab, name, until)
    until(lambda: _queued(lab, name), lambda: str(lab.status(name)), 30)
    since = len(operator.proxy.requests)
    time.sleep(5)
    assert _patches(operator, name, since) == []
    assert lab.get("Job", name)["spec"]["suspend"] is True
    assert "nodeSelector" not in lab.get("Job", name)["spec"]["template"]["spec"]
    _admit(lab, name)
    lab.until_phase(name, "Running")
    until(lambda: lab.status(name).get("attempt") == 1, "the next attempt")
    assert lab.get("Job", name)["status"].get("failed", 0) == 0
    assert lab.condition(name, "Contended") == {}
    lab.delete("ScanExperiment", name)


def test_suspended_by_its_spec_it_leaves_the_queue(
    lab: Any, operator: Any, webhook: None, until: Any
) -> None:
    """The Job goes with its pod, and comes back suspended: it queues anew, and resumes where it was."""
    lab.apply("left-queue", {"scheduling": {"queueName": "team"}})
    until(lambda: _queued(lab, "left-queue"), lambda: str(lab.status("left-queue")), 20)
    _admit(lab, "left-queue")
    lab.until_phase("left-queue", "Running")
    lab.edit("ScanExperiment", "left-queue", {"spec": {"lifecycle": {"suspend": True}}})
    status = lab.until_phase("left-queue", "Suspended")
    until(lambda: lab.get("Job", "left-queue") is None, "its Job goes", 30)
    assert [one for one in lab.all("Pod", of="left-queue") if _active(one)] == []
    assert lab.condition("left-queue", "Ready")["status"] == "True"
    assert status["output"] == "results/left-queue"
    lab.edit("ScanExperiment", "left-queue", {"spec": {"lifecycle": {"suspend": False}}})
    until(lambda: _queued(lab, "left-queue"), lambda: str(lab.status("left-queue")), 20)
    assert lab.get("Job", "left-queue")["spec"]["suspend"] is True
    _admit(lab, "left-queue")
    lab.until_phase("left-queue", "Running")
    until(lambda: lab.status("left-queue").get("attempt") == 1, "the next attempt")
    lab.delete("ScanExperiment", "left-queue")


def test_a_job_in_a_default_queue_stays_there(lab: Any, operator: Any, until: Any) -> None:
    """Kueue puts Jobs without a queue into the default one: what the operator then writes resumes nothing."""
    with _webhook(lab, "default", "object.metadata.name == 'defaulted'", DEFAULTED):
        lab.apply("defaulted")
        job = until(lambda: lab.get("Job", "defaulted"), "its Job")
        assert (job["metadata"]["labels"][QUEUE], job["spec"]["suspend"]) == ("default", True)
        until(lambda: _queued(lab, "defaulted"), lambda: str(lab.status("defaulted")), 20)
        since = len(operator.proxy.requests)
        time.sleep(4)
        assert _patches(operator, "defaulted", since) == []
        lab.edit("ScanExperiment", "defaulted", {"spec": {"lifecycle": {"ttlSecondsAfterFinished": 900}}})
        until(lambda: _patches(operator, "defaulted", since), "the Job is told of its time to live")
        time.sleep(1)
        assert lab.get("Job", "defaulted")["spec"]["suspend"] is True
        assert lab.condition("defaulted", "Contended") == {}
        lab.delete("ScanExperiment", "defaulted")
