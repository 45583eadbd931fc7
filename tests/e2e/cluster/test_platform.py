"""What a platform team does to a cluster that experiments run on."""

import subprocess
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from asysi.contract.crd import GROUP, PLURAL, custom_resource_definition
from asysi_operator.manifests.labels import EXPERIMENT

Tree = dict[str, Any]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def _evict(lab: Any, pod: str) -> None:
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": lab.namespace},
    }
    code, answer = lab.ask("POST", f"{lab.path('Pod', pod)}/eviction", body)
    assert code == 201, answer


# -- Drains


def test_two_drains_are_three_attempts_and_no_failure(lab, operator, until):
    """A pod that is put out comes back under the next number, though not a single restart is allowed."""
    lab.apply("drained", {"lifecycle": {"maxRestarts": 0}})
    for number in (0, 1):
        status = lab.until_phase("drained", "Running")
        until(lambda number=number: lab.status("drained").get("attempt") == number, "its number")
        _evict(lab, status["pod"])
        until(
            lambda number=number: lab.status("drained").get("lastFailure", {}).get("attempt") == number,
            lambda: str(lab.status("drained")),
        )
        assert lab.status("drained")["lastFailure"]["reason"] == "EvictionByEvictionAPI"
        until(lambda pod=status["pod"]: lab.status("drained")["pod"] != pod, "the next pod")
    until(lambda: lab.status("drained").get("attempt") == 2, "the third attempt")
    lab.until_phase("drained", "Running")
    assert lab.get("Job", "drained")["status"].get("failed", 0) == 0
    told = [message for reason, message in lab.events("drained") if reason == "Disrupted"]
    assert len(told) == 2
    assert all("EvictionByEvictionAPI" in message for message in told)
    lab.delete("ScanExperiment", "drained")


# -- Others at the same objects


def _policy(lab: Any, kind: str, resource: tuple[str, str], patch: str) -> Tree:
    """Return a mutating admission policy on a kind in the lab, and its binding."""
    name = f"{lab.namespace}-{kind.lower()}"
    group, plural = resource
    rule: Tree = {"apiGroups": [group], "apiVersions": ["v1"], "resources": [plural]}
    rule["operations"] = ["CREATE", "UPDATE"]
    where = {"matchLabels": {"kubernetes.io/metadata.name": lab.namespace}}
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"namespaceSelector": where, "resourceRules": [rule]},
            "reinvocationPolicy": "Never",
            "failurePolicy": "Ignore",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
        },
    }
    binding = policy | {"kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": name}}
    return {"mutatingadmissionpolicies": policy, "mutatingadmissionpolicybindings": binding}


def _writes(operator: Any, kind: str, name: str, seconds: float) -> int:
    """Return how often the operator writes an object within so many seconds from now."""
    before = len(operator.proxy.requests)
    time.sleep(seconds)
    return sum(
        one.method == "PATCH" and one.path.endswith(f"/{kind}/{name}")
        for one in operator.proxy.requests[before:]
    )


@pytest.mark.parametrize(
    ("kind", "resource", "patch"),
    [
        (
            "NetworkPolicy",
            ("networking.k8s.io", "networkpolicies"),
            '[JSONPatch{op: "add", path: "/spec/ingress/-", value: Object.spec.ingress{}}]',
        ),
        ("Job", ("batch", "jobs"), '[JSONPatch{op: "replace", path: "/spec/suspend", value: true}]'),
    ],
)
def test_a_policy_that_changes_our_objects_is_no_loop(  # noqa: PLR0917 - three of them are one case
    lab, operator, until, kind, resource, patch
):
    """A policy that changes what is applied is met with patience, and said; without it all is as before."""
    name = f"contended-{kind.lower()}"
    made = _policy(lab, kind, resource, patch)
    paths = {plural: f"/apis/admissionregistration.k8s.io/v1/{plural}" for plural in made}
    try:
        for plural, item in made.items():
            code, answer = lab.ask("POST", paths[plural], item)
            assert code == 201, answer
        time.sleep(2)  # until the API server minds it
        lab.apply(name)
        until(
            lambda: lab.condition(name, "Contended").get("status") == "True",
            lambda: str(lab.status(name)),
            40,
        )
        assert f"{kind} {name}" in lab.condition(name, "Contended")["message"]
        assert "admission" in lab.condition(name, "Contended")["message"]
        assert _writes(operator, resource[1], name, 10) <= 3
    finally:
        for plural, item in made.items():
            lab.ask("DELETE", f"{paths[plural]}/{item['metadata']['name']}")
    lab.delete("ScanExperiment", name)


def test_who_keeps_changing_an_object_is_named(lab, operator, until):
    """Another controller that wants a field otherwise is named, and does not drive the operator round."""
    lab.apply("fought")
    until(lambda: lab.get("Job", "fought"), "its Job")
    flips, path = 0, f"{lab.path('Job', 'fought')}?fieldManager=flipper"
    before, until_time = len(operator.proxy.requests), time.monotonic() + 15
    while time.monotonic() < until_time:
        job = lab.get("Job", "fought")
        if not job["spec"]["suspend"]:
            lab.ask("PATCH", path, {"spec": {"suspend": True}}, "application/merge-patch+json")
            flips += 1
        time.sleep(0.05)
    said = lab.condition("fought", "Contended")
    assert said["status"] == "True", lab.status("fought")
    assert "Job fought: spec.suspend is changed by flipper" in said["message"]
    written = [one for one in operator.proxy.requests[before:] if one.path.endswith("/jobs/fought")]
    assert sum(one.method == "PATCH" for one in written) <= 6
    assert 3 <= flips <= 6
    assert "Contended" in {reason for reason, _ in lab.events("fought")}
    lab.delete("ScanExperiment", "fought")


# -- Orphans and restores


def test_orphans_of_a_deletion_are_adopted(lab, operator, until):
    """Deleted with --cascade=orphan and applied again, an experiment goes on with the pod that it had."""
    made = lab.apply("orphaned", {"output": {"claim": None, "size": "1Gi"}})
    before = lab.until_phase("orphaned", "Running")
    job = lab.get("Job", "orphaned")["metadata"]["uid"]
    code, _ = lab.ask("DELETE", f"{lab.path('ScanExperiment', 'orphaned')}?propagationPolicy=Orphan")
    assert code in {200, 202}
    until(lambda: lab.get("ScanExperiment", "orphaned") is None, "it goes")
    assert lab.get("Job", "orphaned")["metadata"].get("ownerReferences", []) == []
    lab.apply("orphaned", {"output": {"claim": None, "size": "1Gi"}})
    after = lab.until_phase("orphaned", "Running")
    assert after["pod"] == before["pod"]
    assert lab.get("Job", "orphaned")["metadata"]["uid"] == job
    new = lab.get("ScanExperiment", "orphaned")["metadata"]["uid"]
    assert new != made["metadata"]["uid"]
    for one in lab.children(of="orphaned"):
        if one["kind"] != "Pod":
            assert [owner["uid"] for owner in one["metadata"]["ownerReferences"]] == [new]
    lab.delete("ScanExperiment", "orphaned")


def test_what_a_backup_brings_back_is_adopted_and_what_is_not_ours_is_said(lab, operator, until):
    """Objects with our labels and no owner are taken over; with somebody else's owner: NameTaken."""
    labels = {EXPERIMENT: "restored", "app.kubernetes.io/managed-by": "asysi-operator"}
    config = {
        "kind": "ConfigMap",
        "metadata": {"name": "restored-config", "labels": labels},
        "data": {"a": "b"},
    }
    uid = lab.create(config)["metadata"]["uid"]
    lab.apply("restored")
    lab.until_phase("restored", "Running")
    assert lab.get("ConfigMap", "restored-config")["metadata"]["uid"] == uid
    lab.delete("ScanExperiment", "restored")
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "name": "restored-config", "uid": uid}
    labels = labels | {EXPERIMENT: "taken"}
    until(lambda: lab.get("ConfigMap", "restored-config") is None, "what was restored goes with it")
    owner = lab.create({"kind": "ConfigMap", "metadata": {"name": "theirs"}})["metadata"]["uid"]
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "name": "theirs", "uid": owner}
    metadata = {"name": "taken-config", "labels": labels, "ownerReferences": [theirs]}
    lab.create({"kind": "ConfigMap", "metadata": metadata})
    lab.apply("taken")
    until(lambda: lab.status("taken").get("lastFailure", {}).get("reason") == "NameTaken", "it is said", 10)
    assert "ConfigMap taken-config" in lab.status("taken")["lastFailure"]["message"]
    lab.delete("ConfigMap", "taken-config")
    lab.until_phase("taken", "Running")
    lab.delete("ScanExperiment", "taken")


# -- Clocks

HOUR = 3600
NOWHERE: Tree = {"nodeSelector": {"disk": "none"}}


def test_an_operator_an_hour_ahead_ends_nothing_early(lab, skewed):
    """Start deadlines and times to live that have half an hour left by the API server's clock do not end."""
    half = {"startDeadlineSeconds": HOUR // 2, "ttlSecondsAfterFinished": HOUR // 2}
    with skewed(HOUR):
        lab.apply("early", {"lifecycle": half, "scheduling": NOWHERE})
        lab.apply("kept", {"lifecycle": half}, host="run-1")
        status = lab.until_phase("kept", "Succeeded")
        time.sleep(5)
        assert lab.status("early")["phase"] == "Pending"
        assert lab.get("Job", "kept")
        changed = datetime.fromisoformat(lab.condition("kept", "Complete")["lastTransitionTime"])
        ended = datetime.fromisoformat(status["completionTime"])
        assert abs((changed - ended).total_seconds()) < 60
    lab.delete("ScanExperiment", "early")
    lab.delete("ScanExperiment", "kept")


def test_an_operator_an_hour_behind_ends_everything_in_time(lab, skewed, until):
    """Deadlines of seconds are over after seconds."""
    soon = {"startDeadlineSeconds": 3, "ttlSecondsAfterFinished": 2}
    with skewed(-HOUR):
        lab.apply("late", {"lifecycle": soon, "scheduling": NOWHERE})
        lab.apply("brief", {"lifecycle": soon | {"startDeadlineSeconds": HOUR}}, host="run-1")
        lab.until_phase("late", "Failed", 30)
        lab.until_phase("brief", "Succeeded")
        until(lambda: lab.get("Job", "brief") is None, "its Job goes", 30)
    lab.delete("ScanExperiment", "late")
    lab.delete("ScanExperiment", "brief")


# -- Nodes, pods and claims that go

NODES = "/api/v1/nodes"
SAID_SECONDS = 10
"""Seconds within which the status says what the API server knows."""
MERGE = "application/merge-patch+json"


@pytest.fixture
def ghost(lab) -> Any:
    """A node without a kubelet, which this test plays: its name, for as long as it is told to be there."""
    name = f"ghost-{lab.namespace[-6:]}"
    code, answer = lab.ask(
        "POST", NODES, {"kind": "Node", "metadata": {"name": name, "labels": {"disk": name}}}
    )
    assert code == 201, answer
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
    has = {"cpu": "8", "memory": "16Gi", "pods": "10", "ephemeral-storage": "10Gi"}
    status = {"conditions": [ready], "capacity": has, "allocatable": has}
    assert lab.ask("PATCH", f"{NODES}/{name}/status", {"status": status}, MERGE)[0] == 200
    yield name
    lab.ask("DELETE", f"{NODES}/{name}")


def _play_kubelet(lab: Any, pod: Tree) -> None:
    """Say of a pod what a kubelet would once it runs."""
    began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    done = {
        "terminated": {"exitCode": 0, "startedAt": began, "finishedAt": began, "message": '{"attempt": 0}'}
    }
    runs = {"running": {"startedAt": began}}

    def one(container: Tree, state: Tree) -> Tree:
        flags = {"ready": True, "started": True, "restartCount": 0}
        return {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "state": state,
            **flags,
        }

    inits = [one(it, runs if it.get("restartPolicy") else done) for it in pod["spec"]["initContainers"]]
    mains = [one(it, runs) for it in pod["spec"]["containers"]]
    kinds = ("Initialized", "ContainersReady", "Ready")
    told = [*pod["status"]["conditions"], *({"type": kind, "status": "True"} for kind in kinds)]
    status = {
        "phase": "Running",
        "conditions": told,
        "initContainerStatuses": inits,
        "containerStatuses": mains,
    }
    code, answer = lab.ask(
        "PATCH", f"{lab.path('Pod', pod['metadata']['name'])}/status", {"status": status}, MERGE
    )
    assert code == 200, answer


def _ready(lab: Any, pod: str) -> str:
    conditions = (lab.get("Pod", pod) or {"status": {}})["status"].get("conditions", ())
    return next((one["status"] for one in conditions if one["type"] == "Ready"), "")


def test_a_node_that_is_gone_is_said(lab, operator, until, ghost):
    """A node that falls silent is said by the pod's condition; once it is deleted the pod was put out."""
    lab.apply("haunted", {"scheduling": {"nodeSelector": {"disk": ghost}}, "lifecycle": {"maxRestarts": 0}})
    pod = until(
        lambda: next((one for one in lab.all("Pod", of="haunted") if one["spec"].get("nodeName")), None), "it"
    )
    _play_kubelet(lab, pod)
    status = lab.until_phase("haunted", "Running", 20)
    assert status["node"] == ghost
    until(lambda: _ready(lab, status["pod"]) == "False", "the node controller marks the pod", 120)
    lab.until_phase("haunted", "Unknown", SAID_SECONDS)
    assert ghost in lab.status("haunted")["lastFailure"]["message"]
    assert lab.condition("haunted", "Ready")["status"] == "Unknown"
    lab.ask("DELETE", f"{NODES}/{ghost}")
    until(
        lambda: "DeletionByPodGC" in {one["reason"] for one in lab.status("haunted").get("failures", ())},
        lambda: str(lab.status("haunted")),
        150,
    )
    lab.until_phase("haunted", "Pending")
    assert lab.get("Job", "haunted")["status"].get("failed", 0) == 0
    lab.delete("ScanExperiment", "haunted")


def test_a_pod_that_terminates_does_not_run(lab, operator, until, ghost):
    """A pod that is being deleted, and whose node does not answer, is said to be, for as long as it takes."""
    lab.apply("lingering", {"scheduling": {"nodeSelector": {"disk": ghost}}})
    pod = until(
        lambda: next((one for one in lab.all("Pod", of="lingering") if one["spec"].get("nodeName")), None),
        "it",
    )
    _play_kubelet(lab, pod)
    lab.until_phase("lingering", "Running", 20)
    lab.delete("Pod", pod["metadata"]["name"])
    lab.until_phase("lingering", "Terminating", SAID_SECONDS)
    assert lab.condition("lingering", "Capturing")["reason"] == "PodTerminating"
    lab.delete("ScanExperiment", "lingering")


@pytest.mark.parametrize("own", [True, False])
def test_a_claim_that_is_deleted_under_a_run_is_said(lab, operator, until, own):
    """Whether it is the experiment's own or somebody else's: a claim's end is said while the pod runs."""
    name = f"claimed-{'own' if own else 'named'}"
    claim = f"{name}-output" if own else name
    storage = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    if not own:
        lab.create({"kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": storage})
    lab.apply(name, {"output": {"claim": None, "size": "1Gi"} if own else {"claim": claim}})
    lab.until_phase(name, "Running")
    lab.delete("PersistentVolumeClaim", claim)
    until(
        lambda: lab.status(name).get("lastFailure", {}).get("reason") == "ClaimTerminating",
        lambda: str(lab.status(name)),
        SAID_SECONDS,
    )
    assert claim in lab.status(name)["lastFailure"]["message"]
    assert lab.status(name)["phase"] == "Running"
    lab.delete("ScanExperiment", name)


# -- What is left, and what tools see


def test_a_success_shows_no_failure_and_its_leavings_go_in_time(lab, operator, until):
    """A pod put out on the way is history; after its time to live only experiment and claim are left."""
    spec = {"lifecycle": {"ttlSecondsAfterFinished": 5}, "output": {"claim": None, "size": "1Gi"}}
    lab.apply("scarred", spec, host="run-12")
    lab.until_phase("scarred", "Running")
    pod = lab.status("scarred")["pod"]
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": lab.namespace},
    }
    assert lab.ask("POST", f"{lab.path('Pod', pod)}/eviction", body)[0] == 201
    until(lambda: "lastFailure" in lab.status("scarred"), lambda: str(lab.status("scarred")))
    status = lab.until_phase("scarred", "Succeeded")
    assert "lastFailure" not in status
    assert [one["reason"] for one in status["failures"]] == ["EvictionByEvictionAPI"]
    assert status["node"]
    assert status["duration"].endswith("s")
    conditions = {one["type"]: one for one in status["conditions"]}
    assert (conditions["Ready"]["status"], conditions["Stalled"]["status"]) == ("True", "False")
    assert status["observedGeneration"] == lab.get("ScanExperiment", "scarred")["metadata"]["generation"]
    until(
        lambda: {one["kind"] for one in lab.children(of="scarred")} == {"PersistentVolumeClaim"},
        lambda: str([(one["kind"], one["metadata"]["name"]) for one in lab.children(of="scarred")]),
        60,
    )
    time.sleep(2)
    assert {one["kind"] for one in lab.children(of="scarred")} == {"PersistentVolumeClaim"}
    assert lab.status("scarred")["phase"] == "Succeeded"
    lab.delete("ScanExperiment", "scarred")


def test_kubectl_waits_for_what_tools_wait_for(lab, operator, kubeconfig, tool):
    """Ready comes true once the model runs, and the table names duration, node and reason."""
    lab.apply("shown")
    lab.apply("refused", {"model": {"uri": "file://model"}})
    kubectl = [tool("kubectl"), "--kubeconfig", str(kubeconfig), "--namespace", lab.namespace]
    waited = [*kubectl, "wait", "--for=condition=Ready", "scanx/shown", "--timeout=60s"]
    subprocess.run(waited, check=True, capture_output=True, timeout=90)
    subprocess.run(
        [*kubectl, "wait", "--for=condition=Stalled", "scanx/refused", "--timeout=60s"],
        check=True,
        timeout=90,
    )
    table = subprocess.run(
        [*kubectl, "get", "scanx", "-o", "wide"], check=True, capture_output=True, text=True
    ).stdout
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert {"REASON", "DURATION", "NODE"} <= set(lines["NAME"].split())
    assert lab.status("shown")["node"] in lines["shown"]
    assert "Invalid" in lines["refused"]
    for name in ("shown", "refused"):
        lab.delete("ScanExperiment", name)


# -- Without the definition


def test_it_waits_for_its_definition(lab, operator, until):
    """Without the CRD the operator is live and not ready; once it comes, experiments run within seconds."""
    operator.kill()
    definition = lab.path("CustomResourceDefinition", f"{PLURAL}.{GROUP}")
    assert lab.ask("DELETE", definition)[0] == 200
    until(lambda: lab.ask("GET", definition)[0] == 404, "the definition goes")
    operator.start(wait=False)
    until(lambda: operator.ask("/livez") == 200, operator.said, 20)
    time.sleep(5)
    assert (operator.ask("/livez"), operator.ask("/readyz")) == (200, 503)
    lab.create(custom_resource_definition())
    until(lambda: operator.ask("/readyz") == 200, operator.said, 20)
    lab.apply("defined")
    until(lambda: lab.get("Job", "defined"), "its Job", 10)
    lab.delete("ScanExperiment", "defined")


def test_it_ends_when_asked_while_it_waits(lab, operator, until):
    """SIGTERM ends an operator that waits for the definition, and one whose definition went comes back."""
    definition = lab.path("CustomResourceDefinition", f"{PLURAL}.{GROUP}")
    assert lab.ask("DELETE", definition)[0] == 200
    until(lambda: lab.ask("GET", definition)[0] == 404, "the definition goes")
    operator.kill()
    operator.start(wait=False)
    until(lambda: operator.ask("/livez") == 200, operator.said, 20)
    time.sleep(1)
    assert operator.stop() == 0
    lab.create(custom_resource_definition())
    operator.start()
