"""The operator on a real cluster: what only a real scheduler, kubelet and API server show.

The tests share one operator, whose proxy notes what it asks for: the last one needs the whole file.
"""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from asysi_operator.manifests.labels import EXPERIMENT
from asysi_operator.status import EVENT_REASONS

Tree = dict[str, Any]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SECONDS = 5.0
"""Seconds within which the status says what the cluster shows."""


# -- Failures


@dataclass(frozen=True)
class Case:
    """An experiment that fails, and what the status must say of it."""

    reason: str
    container: str | None
    code: int | None
    shows: Callable[[list[Tree], Tree, list[Tree]], bool]
    """Whether the cluster shows it: pods, Job, events about either."""
    spec: Tree = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    words: str = ""
    """What the message contains."""


def _states(pods: list[Tree]) -> Iterator[tuple[str, str, Tree]]:
    """Yield container, kind of state and details, former states too."""
    for pod in pods:
        status = pod["status"]
        for one in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
            for state in (one.get("state") or {}, one.get("lastState") or {}):
                yield from ((one["name"], kind, detail) for kind, detail in state.items())


def _state(kind: str, **wanted: Any) -> Callable[[list[Tree], Tree, list[Tree]], bool]:
    def shows(pods: list[Tree], _job: Tree, _events: list[Tree]) -> bool:
        return any(
            found == kind and all(detail.get(key) in value for key, value in wanted.items())
            for _name, found, detail in _states(pods)
        )

    return shows


def _unschedulable(pods: list[Tree], _job: Tree, _events: list[Tree]) -> bool:
    return any(
        one.get("reason") == "Unschedulable" for p in pods for one in p["status"].get("conditions", ())
    )


def _deadline(_pods: list[Tree], job: Tree, _events: list[Tree]) -> bool:
    return any(one["type"] == "Failed" for one in job.get("status", {}).get("conditions", ()))


def _probe(pods: list[Tree], _job: Tree, events: list[Tree]) -> bool:
    killed = any(one["reason"] == "Killing" and "liveness" in one["message"] for one in events)
    return killed and any(n == "archiver" and k == "terminated" for n, k, _ in _states(pods))


def _no_pod(_pods: list[Tree], _job: Tree, events: list[Tree]) -> bool:
    return any(one["reason"] == "FailedCreate" for one in events)


NO_IMAGE = "registry.invalid/none:1"
ONCE: Tree = {"lifecycle": {"maxRestarts": 0}}
CASES = {
    "deaf": Case("LivenessProbeFailed", "archiver", 143, _probe, told={"archiver": "deaf"}, words="liveness"),
    "image": Case(
        "ImagePullBackOff",
        "prepare",
        None,
        _state("waiting", reason={"ErrImagePull", "ImagePullBackOff"}),
        words=NO_IMAGE,
    ),
    "crash": Case(
        "CrashLoopBackOff",
        "archiver",
        1,
        _state("waiting", reason={"CrashLoopBackOff"}),
        told={"archiver": "exit-1"},
        words="the stub was told to exit",
    ),
    "memory": Case(
        "OOMKilled", "host", 137, _state("terminated", reason={"OOMKilled"}), ONCE, told={"host": "oom"}
    ),
    "config": Case(
        "BadConfiguration", "prepare", 2, _state("terminated", exitCode={2}), told={"prepare": "exit-2"},
        words="the stub was told to exit",
    ),
    "claim": Case(
        "Unschedulable", None, None, _unschedulable, {"inputs": [{"claim": "none"}]}, words='"none" not found'
    ),
    "nowhere": Case(
        "Unschedulable",
        None,
        None,
        _unschedulable,
        {"scheduling": {"nodeSelector": {"disk": "none"}}},
        words="node affinity",
    ),
    "late": Case("DeadlineExceeded", None, None, _deadline, {"lifecycle": {"activeDeadlineSeconds": 8}}),
    "class": Case(
        "FailedCreate", None, None, _no_pod, {"scheduling": {"priorityClassName": "none"}}, words="none"
    ),
}  # fmt: skip


@dataclass
class Witness:
    """When the cluster first showed each failure, and when its status first said so."""

    shown: dict[str, float] = field(default_factory=dict)
    said: dict[str, float] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def watch(self, lab: Any) -> None:
        """Look again and again until told to stop, or everything was seen."""
        while not self.stop.wait(0.1) and CASES.keys() - (self.shown.keys() & self.said.keys()):
            pods, jobs, events = lab.all("Pod"), lab.all("Job"), lab.all("Event")
            for name in CASES.keys() - self.shown.keys():
                mine = [one for one in pods if one["metadata"]["labels"].get(EXPERIMENT) == name]
                job = next((one for one in jobs if one["metadata"]["name"] == name), {})
                uids = {one["metadata"]["uid"] for one in (*mine, job) if one}
                about = [one for one in events if one["involvedObject"].get("uid") in uids]
                if CASES[name].shows(mine, job, about):
                    self.shown[name] = time.monotonic()
            for one in lab.all("ScanExperiment"):
                name = one["metadata"]["name"]
                failure = one.get("status", {}).get("lastFailure", {})
                if name in CASES and failure.get("reason") == CASES[name].reason:
                    self.said.setdefault(name, time.monotonic())


@pytest.fixture(scope="module")
def witness(lab, operator, until) -> Iterator[Witness]:
    """Every failing experiment, begun at once, and somebody who looks."""
    operator.kill()
    operator.start(f"--image={NO_IMAGE}", "--image-pull-policy=IfNotPresent")
    lab.apply("image")
    until(lambda: lab.get("Job", "image"), "the Job of a worker's image that is nowhere")
    operator.kill()
    operator.start()  # it goes on with a Job that another has made
    for name in CASES.keys() - {"image"}:
        lab.apply(name, CASES[name].spec, **CASES[name].told)
    witness = Witness()
    thread = threading.Thread(target=witness.watch, args=(lab,), daemon=True)
    thread.start()
    yield witness
    witness.stop.set()
    thread.join()


@pytest.fixture(scope="module")
def steady(lab, witness) -> str:
    """An experiment that runs from the beginning on; returns its name."""
    lab.apply("steady")
    return "steady"


# -- A life


def test_an_experiment_runs_to_its_end_and_its_job_goes_in_time(lab, steady, until):
    """Pending to Succeeded with finish's last words; then the Job goes, and the status stays."""
    lab.apply("whole", {"lifecycle": {"ttlSecondsAfterFinished": 2}}, host="run-8")
    status = lab.until_phase("whole", "Succeeded")
    assert status["counters"] == {"seen": 10, "captured": 9, "sampledOut": 1, "dropped": 0, "archived": 9}
    assert status["ledger"] == {"balanced": True}
    assert "lastFailure" not in status
    until(lambda: lab.get("Job", "whole") is None, "the Job goes")
    until(lambda: not lab.all("Pod", of="whole"), "its pod goes")
    assert lab.status("whole")["phase"] == "Succeeded"
    assert lab.status("whole")["counters"] == status["counters"]
    assert {"Capturing", "Complete"} <= {reason for reason, _ in lab.events("whole")}


def test_a_deleted_pod_comes_back_as_the_next_attempt(lab, steady, until):
    """A pod that somebody deletes is followed by another, of the next number; nothing of ours kept it."""
    status = lab.until_phase(steady, "Running")
    assert status["attempt"] == 0
    lab.delete("Pod", status["pod"])
    until(lambda: lab.status(steady).get("attempt") == 1, "the next attempt", 60)
    after = lab.until_phase(steady, "Running")
    assert after["pod"] != status["pod"]
    assert after["startTime"] == status["startTime"]
    assert "NextAttempt" in {reason for reason, _ in lab.events(steady)}


def test_suspend_and_resume(lab, operator, until):
    """Suspended, the pod goes and the experiment stays; resumed, the next attempt has a number of its own."""
    lab.apply("paused")
    lab.until_phase("paused", "Running")
    lab.edit("ScanExperiment", "paused", {"spec": {"lifecycle": {"suspend": True}}})
    lab.until_phase("paused", "Suspended")
    until(lambda: not lab.all("Pod", of="paused"), "the pod goes")
    assert "lastFailure" not in lab.status("paused")
    lab.edit("ScanExperiment", "paused", {"spec": {"lifecycle": {"suspend": False}}})
    status = lab.until_phase("paused", "Running")
    assert status["attempt"] == 1
    assert {"Suspended", "Resumed"} <= {reason for reason, _ in lab.events("paused")}
    lab.delete("ScanExperiment", "paused")


def test_an_edit_before_the_start_converges(lab, operator, until):
    """While nothing has run, every object follows an edit: Job, claim, configuration."""
    lab.apply("edited", {"lifecycle": {"suspend": True}, "output": {"claim": None, "size": "1Gi"}})
    before = until(lambda: lab.get("Job", "edited"), "the Job")
    lab.until_phase("edited", "Suspended")
    change = {"workload": {"scan": {"batchSize": 7}}, "output": {"size": "2Gi"}}
    code, _ = lab.edit("ScanExperiment", "edited", {"spec": change})
    assert code == 200

    def followed() -> bool:
        job, claim = lab.get("Job", "edited"), lab.get("PersistentVolumeClaim", "edited-output")
        config = lab.get("ConfigMap", "edited-config")
        return bool(
            job
            and claim
            and config
            and job["metadata"]["uid"] != before["metadata"]["uid"]
            and claim["spec"]["resources"]["requests"]["storage"] == "2Gi"
            and json.loads(config["data"]["experiment.json"])["spec"]["workload"]["scan"]["batchSize"] == 7
        )

    until(followed, "everything follows")
    until(lambda: lab.status("edited").get("observedGeneration") == 2, "the status follows")
    lab.edit("ScanExperiment", "edited", {"spec": {"output": {"claim": "results"}}})
    until(
        lambda: lab.get("PersistentVolumeClaim", "edited-output") is None, "the claim that nobody wants goes"
    )


def test_an_edit_after_the_start_is_refused_or_converges(lab, steady, until):
    """A running experiment takes another deadline, and refuses everything that would mix two specs."""
    lab.until_phase(steady, "Running")
    code, answer = lab.edit("ScanExperiment", steady, {"spec": {"workload": {"scan": {"batchSize": 7}}}})
    assert code == 422
    assert "spec.workload" in answer["message"]
    assert "frozen once" in answer["message"]
    lab.edit("ScanExperiment", steady, {"spec": {"lifecycle": {"activeDeadlineSeconds": 3000}}})
    until(lambda: lab.get("Job", steady)["spec"].get("activeDeadlineSeconds") == 3000, "the deadline")


def test_what_somebody_changes_or_leaves_behind_is_mended(lab, operator, until):
    """A child that is changed or deleted is put back; one that no plan wants any more is pruned."""
    lab.apply("mended", {"lifecycle": {"suspend": True}})
    wanted = until(lambda: lab.get("ConfigMap", "mended-config"), "the ConfigMap")["data"]
    owner = lab.get("ScanExperiment", "mended")["metadata"]["uid"]
    lab.until_phase("mended", "Suspended")
    lab.edit("ConfigMap", "mended-config", {"data": {"experiment.json": "{}"}})
    until(lambda: lab.get("ConfigMap", "mended-config")["data"] == wanted, "the configuration is put back")
    lab.edit("ConfigMap", "mended-config", {"metadata": {"labels": {EXPERIMENT: None}}})
    until(lambda: lab.all("ConfigMap", of="mended"), "a label that was taken off is put back")
    lab.delete("NetworkPolicy", "mended")
    until(lambda: lab.get("NetworkPolicy", "mended"), "the policy is put back")
    for kind, name in (("ConfigMap", "old-config"), ("NetworkPolicy", "old-policy")):
        lab.create({"kind": kind, "metadata": _owned(name, "mended", owner)} | _content(kind))
        until(lambda kind=kind, name=name: lab.get(kind, name) is None, f"{name} is pruned")


def test_what_is_somebody_elses_is_named_and_never_changed(lab, operator, until):
    """An object of a name that is needed, of whatever kind, is left as it is; when it goes, ours is made."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "asysi-stub:e2e"}]}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    theirs = {
        "ConfigMap": ("foreign-a-config", {"data": {"experiment.json": "theirs"}}),
        "PersistentVolumeClaim": ("foreign-b-output", {"spec": claim}),
        "NetworkPolicy": ("foreign-c", {"spec": {"podSelector": {"matchLabels": {"their": "pods"}}}}),
        "Job": ("foreign-d", {"spec": {"suspend": True, "template": {"spec": pod}}}),
    }
    mine = {kind: name[: len("foreign-a")] for kind, (name, _content) in theirs.items()}
    made = {
        kind: lab.create({"kind": kind, "metadata": {"name": name}} | content)["metadata"]["uid"]
        for kind, (name, content) in theirs.items()
    }
    for name in mine.values():
        lab.apply(name, {"lifecycle": {"suspend": True}, "output": {"claim": None, "size": "1Gi"}})
    for kind, (name, content) in theirs.items():
        said = f"{kind} {name} exists and is not this experiment's"
        until(lambda kind=kind, said=said: said in str(lab.status(mine[kind]).get("lastFailure")), said)
        there = lab.get(kind, name)
        assert there["metadata"]["uid"] == made[kind]
        assert EXPERIMENT not in (there["metadata"].get("labels") or {})
        assert there.get("data") == content.get("data")
        lab.delete(kind, name)
    for name in mine.values():
        lab.until_phase(name, "Suspended", 120)
        assert {one["kind"] for one in lab.children(of=name)} == set(theirs)
        lab.delete("ScanExperiment", name)


def _owned(name: str, experiment: str, uid: str) -> Tree:
    owner = {"apiVersion": "asysi.dev/v1alpha1", "kind": "ScanExperiment", "name": experiment, "uid": uid}
    return {"name": name, "labels": {EXPERIMENT: experiment}, "ownerReferences": [owner]}


def _content(kind: str) -> Tree:
    return {"spec": {"podSelector": {}}} if kind == "NetworkPolicy" else {}


# -- Processors


def test_the_archivers_processor_is_its_own_and_the_rest_share(lab, operator, until, processors):
    """cpuSets holds what the kernel says in each container; CPUPinned names what is pinned and what not."""
    lab.apply("pinned", {"archive": {"cpus": 1}})
    lab.until_phase("pinned", "Running")
    sets = until(lambda: lab.status("pinned").get("cpuSets"), "the processors are read back")
    until(
        lambda: set(lab.status("pinned")["cpuSets"]) == {"archiver", "hook", "host", "finish"}, "all of them"
    )
    sets, pod = lab.status("pinned")["cpuSets"], lab.status("pinned")["pod"]
    assert {name: processors(pod, name) for name in sets} == sets
    assert len({sets["archiver"]} & {sets["hook"], sets["host"], sets["finish"]}) == 0
    condition = lab.condition("pinned", "CPUPinned")
    assert (condition["status"], condition["reason"]) == ("False", "FractionalCPU")
    assert f"archiver to {sets['archiver']}" in condition["message"]
    assert "host, hook share" in condition["message"] or "hook, host share" in condition["message"]
    lab.delete("ScanExperiment", "pinned")


# -- Failures that a person can read


@pytest.mark.parametrize("name", CASES)
def test_a_failure_is_read_within_seconds(lab, witness, until, name):
    """What the cluster shows, the status says within five seconds, and an event says it too."""
    case = CASES[name]
    until(lambda: name in witness.shown, "the cluster shows it", 120)
    until(lambda: name in witness.said, lambda: yaml.safe_dump(lab.status(name)), 30)
    failure = lab.status(name)["lastFailure"]
    assert (failure["reason"], failure.get("container")) == (case.reason, case.container)
    assert failure.get("exitCode") == case.code
    assert case.words in failure["message"]
    assert failure["message"]
    assert failure["time"].endswith("Z")
    assert witness.said[name] - witness.shown[name] <= SECONDS
    told = [message for reason, message in lab.events(name) if reason in {"ContainerFailed", "PodFailed"}]
    assert any(case.reason in message for message in told)


def test_a_start_deadline_ends_what_cannot_start(lab, operator):
    """An experiment that finds no node fails in time, says both, and its Job goes."""
    lab.apply(
        "waiting",
        {"lifecycle": {"startDeadlineSeconds": 3}, "scheduling": {"nodeSelector": {"disk": "none"}}},
    )
    lab.until_phase("waiting", "Failed")
    condition = lab.condition("waiting", "Failed")
    assert condition["reason"] == "StartDeadlineExceeded"
    assert "Unschedulable" in condition["message"]


def test_counters_are_written_at_most_once_in_five_seconds(lab, operator, steady):
    """While finish counts on and on, writes that change nothing but counters lie five seconds apart."""
    lab.until_phase(steady, "Running")
    path = f"/{steady}/status"
    deadline = time.monotonic() + 40
    while len(gaps := _gaps([one for one in operator.proxy.writes() if one.path.endswith(path)])) < 2:
        assert time.monotonic() < deadline, "counters are never written"
        time.sleep(1)
    assert min(gaps) >= SECONDS - 0.2  # a request's own time


def _gaps(writes: list[Any]) -> list[float]:
    """Return the seconds between two writes of a status of which the latter changes counters alone."""
    bodies = [(one.time, json.loads(one.body)["status"]) for one in writes]
    return [
        then - before
        for (before, old), (then, new) in itertools.pairwise(bodies)
        if _rest(old) == _rest(new) and old != new
    ]


def _rest(status: Tree) -> Tree:
    return {
        key: value for key, value in status.items() if key not in {"counters", "sae", "ledger", "duration"}
    }


# -- Without the operator


def test_an_experiment_runs_on_while_the_operator_is_away(lab, operator, until):
    """Killed and started again, the operator finds an experiment that went on, and reads its totals."""
    lab.apply("alone", host="run-6")
    lab.until_phase("alone", "Running")
    operator.kill()
    until(lambda: (lab.get("Job", "alone")["status"].get("succeeded") or 0) == 1, "it ends by itself")
    assert lab.status("alone")["phase"] == "Running"
    operator.start()
    status = lab.until_phase("alone", "Succeeded")
    assert (status["attempt"], status["counters"]["seen"]) == (0, 10)


def test_deletion_leaves_nothing_even_without_an_operator(lab, operator, until):
    """No finalizer waits for the operator: what an experiment had goes with it."""
    lab.apply("gone", {"output": {"claim": None, "size": "1Gi"}})
    lab.until_phase("gone", "Running")
    operator.kill()
    assert not lab.get("ScanExperiment", "gone")["metadata"].get("finalizers")
    lab.delete("ScanExperiment", "gone")
    until(lambda: lab.get("ScanExperiment", "gone") is None, "the experiment goes at once", 5)
    until(lambda: not lab.children(of="gone"), "everything of it goes", 60)
    operator.start()


def test_the_probe_fails_when_watches_fall_silent(lab, operator, until):
    """Silent watches are found by the audit: what they missed is mended, and then the probe says so."""
    operator.kill()
    before = len(operator.proxy.requests)
    operator.start("--audit-seconds=1")
    begun = lambda: sum("watch" in one.query for one in operator.proxy.requests[before:])  # noqa: E731
    until(lambda: begun() >= 6, "a watch of every kind has begun")
    until(lambda: operator.ask("/livez") == 200, "it is well")
    operator.proxy.silent.set()
    try:
        lab.apply("unheard")
        lab.delete("Pod", lab.status("steady")["pod"], grace=0)
        until(lambda: lab.get("Job", "unheard"), "what no watch brought is found", 30)
        until(lambda: operator.ask("/livez") == 503, "the probe fails", 30)
        lab.delete("ScanExperiment", "unheard")
    finally:
        operator.proxy.silent.clear()
    operator.kill()  # as the kubelet does
    operator.start()
    assert operator.ask("/livez") == 200


def test_it_ends_cleanly_when_asked(operator):
    """SIGTERM ends it with code 0, in less than its pod's grace; the next one finds nothing to write anew."""
    assert operator.stop() == 0
    before = len(operator.proxy.writes())
    operator.start()
    time.sleep(2)
    again = [one for one in operator.proxy.writes()[before:] if one.method == "PATCH"]
    assert [one.path for one in again if not one.path.endswith("/status")] == []


# -- The whole of it


def test_every_event_has_a_reason_of_the_fixed_set(lab, steady):
    """Reasons are CamelCase words of one list, and messages stay within the API server's limit."""
    ours = [one for one in lab.all("Event") if one["source"].get("component") == "asysi-operator"]
    assert {one["reason"] for one in ours} <= set(EVENT_REASONS)
    assert {"ContainerFailed", "PodFailed", "NextAttempt", "Complete"} <= {one["reason"] for one in ours}
    assert max(len(one["message"]) for one in ours) <= 1024


def test_nothing_is_left_over(lab, operator, until):
    """After all that: no orphan, no double, and no plan that would change anything."""
    until(lambda: not lab.strays(), lab.strays, 30)
    assert lab.strays() == []


def test_the_role_holds_exactly_the_verbs_used(operator, rules):
    """What the operator asked for and what the chart's Role allows are the same; nothing was refused."""
    granted = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    used = set().union(*(one.verbs for one in operator.proxy.requests))
    assert used == granted
    assert not [one for one in operator.proxy.requests if one.code in {401, 403}]
