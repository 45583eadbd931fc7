"""A sidecar that refuses its configuration: no rule of a Job sees it, so the operator ends the experiment."""

from typing import Any

import pytest

from asysi_operator.reconcile import OperatorSettings, Remove, plan

REFUSED = {
    "exitCode": 2,
    "reason": "Error",
    "message": "the output folder is another's",
    "finishedAt": "2026-01-02T03:02:00Z",
}
BACKING_OFF = {
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
    "lastState": {"terminated": REFUSED},
}
RUNNING = {"running": {"startedAt": "2026-01-02T03:01:00Z"}}


def refused(cluster: Any, states: Any, name: str = "archiver", *, host: Any = None) -> Any:
    """Return a cluster whose pod has a sidecar in a state."""
    lab = cluster()
    lab.settle()
    lab.run_pod(host=host, initContainerStatuses=[{"name": name, **states}])
    return lab


@pytest.mark.parametrize("host", [None, RUNNING], ids=["before the host", "beside the host"])
@pytest.mark.parametrize(
    "states", [{"state": {"terminated": REFUSED}}, BACKING_OFF], ids=["ended", "backing off"]
)
@pytest.mark.parametrize("name", ["archiver", "sae", "hook"])
def test_it_fails_the_experiment_and_its_job_goes(cluster: Any, name: str, states: Any, host: Any) -> None:
    """Failed with the reason BadConfiguration and the sidecar's words, then the Job is removed, for good."""
    lab = refused(cluster, states, name, host=host)
    job = lab.objects["Job", "minilm"]["metadata"]["uid"]
    lab.step()
    lab.settle()
    assert lab.removed == [("Job", "minilm", job)]
    conditions = {one["type"]: one for one in lab.experiment["status"]["conditions"]}
    assert conditions["Failed"]["status"] == "True"
    assert conditions["Failed"]["reason"] == "BadConfiguration"
    assert conditions["Failed"]["message"] == f"{name}: the output folder is another's"
    assert conditions["Capturing"]["status"] == "False"
    failure = lab.experiment["status"]["lastFailure"]
    assert (failure["container"], failure["reason"], failure["exitCode"]) == (name, "BadConfiguration", 2)
    assert lab.experiment["status"]["completionTime"]
    assert ("Job", "minilm") not in lab.objects
    assert not plan(lab.observe(), OperatorSettings()).actions


def test_a_crash_is_no_refusal(cluster: Any) -> None:
    """A sidecar that crashes is started again, and the Job stays."""
    crashed = {"lastState": {"terminated": REFUSED | {"exitCode": 1}}, "state": RUNNING}
    lab = refused(cluster, crashed)
    lab.step()
    lab.settle()
    assert lab.removed == []


def test_an_operator_killed_before_the_removal_goes_on_with_it(cluster: Any) -> None:
    """The end is recorded first; whoever finds it recorded removes the Job."""
    lab = refused(cluster, BACKING_OFF)
    lab.step()
    assert ("Job", "minilm") in lab.objects
    assert plan(lab.observe(), OperatorSettings()).actions == [
        Remove("Job", "minilm", lab.objects["Job", "minilm"]["metadata"]["uid"])
    ]


def test_main_containers_are_the_jobs_own_affair(cluster: Any) -> None:
    """Exit code 2 of prepare, host and finish fails the Job by its own rules."""
    lab = refused(cluster, {"state": {"terminated": REFUSED}}, "prepare")
    lab.step()
    lab.settle()
    assert lab.removed == []
