"""What an installation lets experiments choose, on a real cluster: the policy and the operator agree."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from tests.manifests.test_allowed import CASES, LESS

from asysi.contract.crd import GROUP
from asysi_operator.acceptance import validate
from asysi_operator.allowed import Allowed, violations

from .conftest import ROOT, SMALL, laid_over

Tree = dict[str, Any]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
POLICIES = "/apis/admissionregistration.k8s.io/v1"
MORE: Tree = {}
for _spec, _allowing in CASES.values():
    for _key, _value in _allowing.items():
        MORE[_key] = MORE.get(_key, []) + _value if isinstance(_value, list) else _value
MORE["memory"] = "64Gi"


@pytest.fixture
def enforce(lab: Any, until: Any, tool: Callable[[str], str]) -> Iterator[Callable[[Tree], None]]:
    """Return a function that puts the chart's policy for the lab's namespace in force."""
    made: list[str] = []

    def put(allowed: Tree) -> None:
        values = {
            "namespaces": [lab.namespace],
            "admissionPolicy": {"enabled": True},
            "allowed": {
                key: sorted(set(one)) if isinstance(one, list) else one for key, one in allowed.items()
            },
        }
        command = [tool("helm"), "template", lab.namespace, str(ROOT / "charts" / "asysi"), "--values", "-"]
        rendered = subprocess.run(
            [*command, "--show-only", "templates/admissionpolicy.yaml"],
            input=yaml.safe_dump(values), capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for item in yaml.safe_load_all(rendered):
            plural = {
                "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
                "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
            }[item["kind"]]
            path = f"{POLICIES}/{plural}/{item['metadata']['name']}"
            query = "?fieldManager=tests&force=true"
            code, answer = lab.ask("PATCH", path + query, item, "application/apply-patch+yaml")
            assert code < 300, answer
            made.append(path)

    yield put
    for path in set(made):
        lab.ask("DELETE", path)
    until(lambda: _tried(lab, CASES["serviceAccountName"][0])[0] == 201, "the policy is forgotten", 30)


def _tree(lab: Any, spec: Tree, name: str = "tried") -> Tree:
    spec = spec | {"workload": {"scan": None, **spec["workload"]}} if "workload" in spec else spec
    return {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "ScanExperiment",
        "metadata": {"name": name, "namespace": lab.namespace},
        "spec": laid_over(SMALL, spec),
    }


def _tried(lab: Any, spec: Tree) -> tuple[int, str]:
    code, answer = lab.ask("POST", f"{lab.path('ScanExperiment')}?dryRun=All", _tree(lab, spec))
    return code, answer.get("message", "")


def test_the_policy_says_what_the_operator_says(lab: Any, enforce: Any, until: Any) -> None:
    """Each choice is refused at admission where the operator would refuse it, and passes where not."""
    enforce(LESS)
    until(lambda: _tried(lab, CASES["gpus"][0])[0] == 403, lambda: str(_tried(lab, CASES["gpus"][0])), 30)
    for what, (spec, _) in CASES.items():
        code, message = _tried(lab, spec)
        assert code == 403, (what, code, message)
        assert "allowed" in message or "may have" in message, message
    assert _tried(lab, {"sae": None}) == (201, "")
    assert _tried(lab, {})[0] == 201
    enforce(MORE)
    until(lambda: _tried(lab, CASES["gpus"][0])[0] == 201, lambda: str(_tried(lab, CASES["gpus"][0])), 30)
    for what, (spec, _) in CASES.items():
        code, message = _tried(lab, spec)
        assert code == 201, (what, message)
        if what != "custom.image":  # which no operator runs yet
            assert violations(validate(_tree(lab, spec)), Allowed.model_validate(MORE)) == []


def test_what_was_stored_before_the_rules_can_still_be_suspended(
    lab: Any, operator: Any, enforce: Any, until: Any
) -> None:
    """Rules are about choices: an update that chooses nothing passes, one that chooses more does not."""
    lab.apply("before", {"scheduling": {"priorityClassName": "low-1"}, "lifecycle": {"suspend": True}})
    lab.until_phase("before", "Suspended")
    enforce(LESS)
    until(lambda: _tried(lab, CASES["gpus"][0])[0] == 403, "the rules are in force", 30)
    code, answer = lab.edit("ScanExperiment", "before", {"metadata": {"labels": {"team": "x"}}})
    assert code == 200, answer
    code, answer = lab.edit("ScanExperiment", "before", {"spec": {"lifecycle": {"maxRestarts": 1}}})
    assert code == 200, answer
    code, answer = lab.edit("ScanExperiment", "before", {"spec": {"resources": {"host": {"gpus": 2}}}})
    assert code == 403, answer
    lab.delete("ScanExperiment", "before")


def test_without_a_policy_the_operator_refuses(lab: Any, operator: Any, until: Any) -> None:
    """An account that is not allowed: nothing is made, the condition names it; corrected, it runs."""
    lab.apply("robotic", {"scheduling": {"serviceAccountName": "robot"}})
    until(lambda: lab.condition("robotic", "Accepted").get("reason") == "NotAllowed", "it is refused", 20)
    assert "spec.scheduling.serviceAccountName is robot" in lab.condition("robotic", "Accepted")["message"]
    assert lab.status("robotic")["phase"] == "Refused"
    time.sleep(1)
    assert lab.children(of="robotic") == []
    assert (
        lab.edit("ScanExperiment", "robotic", {"spec": {"scheduling": {"serviceAccountName": None}}})[0]
        == 200
    )
    lab.until_phase("robotic", "Running")
    lab.delete("ScanExperiment", "robotic")


def test_what_the_chart_tells_the_operator_reaches_the_pod(lab: Any, operator: Any, until: Any) -> None:
    """An account that is allowed, everything that places the pod, and who may read its metrics."""
    account = {"kind": "ServiceAccount", "metadata": {"name": "robot"}}
    lab.create(account, fine=(409,))
    readers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    operator.kill()
    try:
        told = json.dumps({"serviceAccounts": ["robot"]}, separators=(",", ":"))
        operator.start(f"--allowed={told}", f"--metrics-readers={json.dumps(readers, separators=(',', ':'))}")
        apart = {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "kubernetes.io/hostname"}
        spread = {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
        }
        scheduling = {
            "serviceAccountName": "robot",
            "imagePullSecrets": [{"name": "pull"}],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
            "topologySpreadConstraints": [spread | {"labelSelector": {"matchLabels": {"app": "x"}}}],
        }
        lab.apply("placed", {"scheduling": scheduling})
        pod = until(lambda: next(iter(lab.all("Pod", of="placed")), None), "its pod")["spec"]
        assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("robot", False)
        assert pod["imagePullSecrets"] == [{"name": "pull"}]
        assert pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert pod["topologySpreadConstraints"][0]["maxSkew"] == 1
        assert not any("projected" in volume for volume in pod["volumes"])
        [rule] = lab.get("NetworkPolicy", "placed")["spec"]["ingress"]
        assert rule["from"] == readers
        since = len(operator.proxy.requests)
        time.sleep(2)
        assert [
            one for one in operator.proxy.requests[since:] if one.path.endswith("/networkpolicies/placed")
        ] == []
        lab.delete("ScanExperiment", "placed")
    finally:
        operator.kill()
        operator.start()
