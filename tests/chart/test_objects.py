"""What the chart installs."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from asysi import __version__
from asysi.contract.runtime import PORTS
from asysi.contract.spec import ScanExperiment
from asysi.monitor.metrics import METRICS
from asysi_operator.__main__ import options
from asysi_operator.allowed import Allowed
from asysi_operator.manifests import build
from asysi_operator.metrics import REGISTRY

CHART = Path(__file__).parents[2] / "charts" / "asysi"
SCENARIOS = {
    path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))
}


@pytest.fixture(params=SCENARIOS)
def scenario(request):
    """Values of each scenario in ci/."""
    return yaml.safe_load(SCENARIOS[request.param].read_text()) or {}


def test_the_deployment_is_one_operator_that_is_replaced_and_never_doubled(one):
    """One replica, Recreate: two never write at once."""
    spec = one("Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_selector_stays_within_the_pods_labels_and_apart_from_others(render, one):
    """The Deployment selects its own pods, neither those of `helm test` nor those of experiments."""
    spec = one("Deployment")["spec"]
    selected = spec["selector"]["matchLabels"].items()
    assert selected <= spec["template"]["metadata"]["labels"].items()
    [test] = [item for item in render() if item["kind"] == "Pod"]
    assert not selected <= test["metadata"]["labels"].items()
    assert not selected <= _experiment_pod()["metadata"]["labels"].items()


def test_every_pod_is_restricted(render, scenario, laid_over):
    """What the operator and `helm test` run in meets Pod Security's level restricted, root read-only."""
    for item in render(laid_over(scenario, {"crds": {"enabled": False}})):
        pod = {
            "Pod": item.get("spec"),
            "Deployment": item.get("spec", {}).get("template", {}).get("spec"),
        }.get(item["kind"])
        if pod is None:
            continue
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all("hostPath" not in volume for volume in pod.get("volumes", []))
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["memory"]


def test_probes_ask_a_port_that_is_there(one):
    """Startup and liveness ask the operator's own named port, the one that it is told to listen on."""
    [container] = one("Deployment")["spec"]["template"]["spec"]["containers"]
    [port] = container["ports"]
    for probe, path in (("startupProbe", "/readyz"), ("livenessProbe", "/livez")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
    assert f"--metrics-port={port['containerPort']}" in container["args"]


def test_the_operator_understands_its_arguments(one, everything):
    """What the Deployment passes are options of `python -m asysi_operator`, and arrive there."""
    values = everything | {"namespaces": ["one", "two"], "logLevel": "debug"}
    [container] = one("Deployment", values)["spec"]["template"]["spec"]["containers"]
    assert container["args"][:3] == ["python", "-m", "asysi_operator"]
    chosen = options(container["args"][3:])
    assert (chosen.namespace, chosen.log_level) == (["one", "two"], "debug")
    assert (chosen.image, chosen.image_pull_policy) == (f"asysi-worker:{__version__}", "IfNotPresent")


def test_a_role_in_each_namespace_has_the_rules_of_the_cluster_role(one, render):
    """Namespaced or cluster-wide, the rules are the same ones, and no cluster-wide binding is left over."""
    rules = one("ClusterRole", ending="watch-asysi")["rules"]
    namespaced = {"namespaces": ["one", "two"], "rbac": {"aggregate": False}}
    roles = [
        item for item in render(namespaced) if item["kind"] == "Role" and item["metadata"]["name"] == "asysi"
    ]
    assert {role["metadata"]["namespace"] for role in roles} == {"one", "two"}
    assert all(role["rules"] == rules for role in roles)
    assert not {"ClusterRole", "ClusterRoleBinding"} & {item["kind"] for item in render(namespaced)}


def test_rules_name_what_they_allow(one):
    """No rule has a star, and none touches secrets, service accounts, roles or the spec's creation."""
    rules = one("ClusterRole", ending="watch-asysi")["rules"]
    allowed = {
        (group, resource, verb)
        for rule in rules
        for group, resource, verb in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }
    assert not any("*" in part for one in allowed for part in one)
    resources = {resource for _, resource, _ in allowed}
    assert not resources & {"secrets", "serviceaccounts", "roles", "rolebindings", "pods/exec", "nodes"}
    assert ("asysi.dev", "scanexperiments", "create") not in allowed
    assert ("asysi.dev", "scanexperiments", "delete") not in allowed


def test_bindings_reach_the_operators_account(render, scenario, laid_over):
    """Each binding names the account that the Deployment runs as, in its namespace."""
    objects = render(laid_over(scenario, {"crds": {"enabled": False}}))
    [deployment] = [item for item in objects if item["kind"] == "Deployment"]
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    for item in objects:
        if item["kind"] in {"RoleBinding", "ClusterRoleBinding"} and "-test" not in item["metadata"]["name"]:
            [subject] = item["subjects"]
            assert (subject["name"], subject["namespace"]) == (account, "watch")


def test_the_crd_is_kept_and_otherwise_the_contracts(one):
    """The CRD is the generated one with labels and the policy to keep it, which keep: false takes away."""
    made = yaml.safe_load((CHART.parents[1] / "crds" / "asysi.dev_scanexperiments.yaml").read_text())
    kept = one("CustomResourceDefinition")
    assert kept["spec"] == made["spec"]
    assert kept["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    left = one("CustomResourceDefinition", {"crds": {"keep": False}})
    assert "helm.sh/resource-policy" not in left["metadata"].get("annotations", {})


def test_a_digest_stands_before_a_tag(one):
    """A digest pins both images, whatever the tag says."""
    digest = "sha256:" + "a" * 64
    image = {"tag": "9", "digest": digest}
    [container] = one("Deployment", {"image": image, "workerImage": image})["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["image"] == f"asysi-operator@{digest}"
    assert f"--image=asysi-worker@{digest}" in container["args"]


def _arguments(one, values=None):
    [container] = one("Deployment", values)["spec"]["template"]["spec"]["containers"]
    return options(container["args"][container["args"].index("asysi_operator") + 1 :])


def test_the_operator_is_told_what_experiments_may_choose(one, everything, laid_over):
    """Each of the values `allowed` reaches the operator; by default no service account is allowed."""
    assert _arguments(one).allowed == Allowed()
    chosen = {
        "serviceAccounts": ["robot"],
        "priorityClasses": ["low-*"],
        "runtimeClasses": [],
        "nodeLabels": ["example.org/pool"],
        "taints": ["dedicated"],
        "images": ["registry.example.org/team/*"],
        "cpus": 7.5,
        "memory": "7Gi",
        "gpus": 0,
    }
    assert set(chosen) == {info.alias for info in Allowed.model_fields.values()}
    told = _arguments(one, laid_over(everything, {"allowed": chosen})).allowed
    assert told == Allowed.model_validate(chosen)


def test_metrics_are_for_the_monitoring_namespace_and_the_operator(one):
    """The peers that reach the experiments' ports: who reads metrics, and the operator's own pod."""
    monitoring, own = _arguments(one).metrics_readers
    assert monitoring == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    pod = one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert own["podSelector"]["matchLabels"].items() <= pod.items()
    assert own["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "watch"}


def test_an_admission_policy_is_only_made_when_asked_for(render, one, everything, laid_over):
    """It is an object of the cluster; where the operator watches some namespaces it concerns those alone."""
    assert not [item for item in render() if item["kind"].startswith("ValidatingAdmission")]
    everywhere = one("ValidatingAdmissionPolicy", everything)["spec"]["matchConstraints"]
    assert "namespaceSelector" not in everywhere
    some = one("ValidatingAdmissionPolicy", laid_over(everything, {"namespaces": ["lab-a", "lab-b"]}))
    [where] = some["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"]
    assert (where["key"], where["values"]) == ("kubernetes.io/metadata.name", ["lab-a", "lab-b"])
    assert one("ValidatingAdmissionPolicyBinding", everything)["spec"]["validationActions"] == ["Deny"]


def test_nothing_is_monitored_by_default(render):
    """The Prometheus operator's kinds are only made when asked for: a cluster may not have them."""
    assert not {"PodMonitor", "PrometheusRule"} & {item["kind"] for item in render()}


# -- Monitoring


def _experiment_pod():
    minimal = {
        "metadata": {"name": "one"},
        "spec": {
            "model": {"uri": "file:///m"},
            "data": {"uri": "jsonl:///d"},
            "workload": {"scan": {}},
            "capture": {"hookPoints": ["a"]},
        },
    }
    return build(ScanExperiment.model_validate(minimal))[-1]["spec"]["template"]


def test_the_pod_monitor_finds_experiments_and_all_their_ports(one, everything):
    """The monitor selects a rendered experiment's pod, each of its ports once, and its label."""
    spec = one("PodMonitor", everything, ending="-experiments")["spec"]
    pod = _experiment_pod()
    assert spec["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    ports = [endpoint["port"] for endpoint in spec["podMetricsEndpoints"]]
    assert sorted(ports) == sorted(str(container) for container in PORTS)
    for endpoint in spec["podMetricsEndpoints"]:
        [relabel] = endpoint["relabelings"]
        [source] = relabel["sourceLabels"]
        escaped = {
            f"__meta_kubernetes_pod_label_{re.sub('[^a-zA-Z0-9]', '_', name)}"
            for name in pod["metadata"]["labels"]
        }
        assert source in escaped


def test_the_network_policy_lets_the_operator_read_status(one, everything):
    """Of experiments' pods the operator reaches the workers' own ports, and no others."""
    egress = one("NetworkPolicy", everything)["spec"]["egress"]
    [rule] = [rule for rule in egress if "to" in rule]
    assert {port["port"] for port in rule["ports"]} == {str(container) for container in PORTS}
    [peer] = rule["to"]
    assert peer["podSelector"]["matchLabels"].items() <= _experiment_pod()["metadata"]["labels"].items()


_SERIES = re.compile(r"\b(?:asysi_\w+|up)\b(?=[{\[)\s]|$)")


def _known() -> set[str]:
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    known = {f"{m.name}{suffix}" for m in METRICS for suffix in suffixes.get(m.type, ("",))}
    for metric in REGISTRY.collect():
        ends = {"counter": ("_total",), "histogram": suffixes["histogram"]}.get(metric.type, ("",))
        known |= {metric.name + end for end in ends}
    return known | {"up"}


def test_alerts_and_panels_ask_for_metrics_that_exist(one, everything):
    """Every series in a rule or a panel is in the table of metrics, or is the operator's, or `up`."""
    groups = one("PrometheusRule", everything)["spec"]["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    panels = json.loads(one("ConfigMap", everything, ending="-dashboard")["data"]["asysi.json"])["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert rules
    assert len(asked) > 20
    for expression in [*rules, *asked]:
        names = set(_SERIES.findall(expression))
        assert names, expression
        assert names <= _known(), expression


def test_alerts_cover_what_can_go_wrong(one, everything):
    """There are alerts for a dead worker, drops, lag, a stalled SAE and a silent operator."""
    groups = one("PrometheusRule", everything)["spec"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["alert"] for rule in rules} == {
        "AsysiWorkerDead",
        "AsysiRowsDropped",
        "AsysiConsumerLag",
        "AsysiSaeStalled",
        "AsysiOperatorSilent",
    }
    for rule in rules:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert {"summary", "description"} <= rule["annotations"].keys()


def test_every_alert_has_a_runbook(one, everything, laid_over, nested):
    """Each alert's runbook_url leads to a heading of docs/install.md."""
    page = (CHART.parents[1] / "docs" / "install.md").read_text()
    headings = {f"#{line.lstrip('#').strip().lower()}" for line in page.splitlines() if line.startswith("#")}
    values = laid_over(everything, nested("metrics.prometheusRule.runbookUrl", "https://example.org/install"))
    for group in one("PrometheusRule", values)["spec"]["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["runbook_url"].removeprefix("https://example.org/install") in headings


def test_the_dashboard_is_found_by_its_label(one, everything):
    """Grafana's sidecar finds the ConfigMap, whose JSON has panels with numbers of their own."""
    found = one("ConfigMap", everything, ending="-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    panels = json.loads(found["data"]["asysi.json"])["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
