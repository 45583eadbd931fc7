"""Values: every one does something, is described, and is checked before anything is rendered."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "asysi"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())

CHANGES = {
    "nameOverride": "another",
    "fullnameOverride": "whole",
    "commonLabels": {"team": "lens"},
    "image.repository": "registry/operator",
    "image.tag": "9",
    "image.digest": "sha256:" + "a" * 64,
    "image.pullPolicy": "Always",
    "workerImage.repository": "registry/worker",
    "workerImage.tag": "9",
    "workerImage.digest": "sha256:" + "b" * 64,
    "workerImage.pullPolicy": "Never",
    "imagePullSecrets": [{"name": "pull"}],
    "namespaces": ["one", "two"],
    "crds.enabled": True,
    "crds.keep": False,
    "crds.takeOwnership": True,
    "allowed.serviceAccounts": ["robot"],
    "allowed.priorityClasses": ["low-*"],
    "allowed.runtimeClasses": [],
    "allowed.nodeLabels": ["example.org/pool"],
    "allowed.taints": ["dedicated"],
    "allowed.images": ["registry.example.org/team/*"],
    "allowed.cpus": 7.5,
    "allowed.memory": "7Gi",
    "allowed.gpus": 0,
    "admissionPolicy.enabled": False,
    "rbac.create": False,
    "rbac.aggregate": False,
    "serviceAccount.create": False,
    "serviceAccount.name": "somebody",
    "serviceAccount.annotations": {"a": "b"},
    "terminationGracePeriodSeconds": 31,
    "logLevel": "debug",
    "extraArgs": ["--verbose"],
    "extraEnv": [{"name": "A", "value": "b"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"a": "b"},
    "podSecurityContext": {"runAsUser": 7},
    "securityContext": {"runAsUser": 7},
    "resources": {"requests": {"cpu": "70m"}},
    "startupProbe.periodSeconds": 77,
    "startupProbe.timeoutSeconds": 77,
    "startupProbe.failureThreshold": 77,
    "livenessProbe.periodSeconds": 77,
    "livenessProbe.timeoutSeconds": 77,
    "livenessProbe.failureThreshold": 77,
    "nodeSelector": {"a": "b"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "podDisruptionBudget.enabled": False,
    "podDisruptionBudget.maxUnavailable": "50%",
    "networkPolicy.enabled": False,
    "networkPolicy.apiServerPorts": [8443],
    "metrics.port": 9777,
    "metrics.readers": [{"namespaceSelector": {}}],
    "metrics.podMonitor.enabled": False,
    "metrics.podMonitor.labels": {"a": "b"},
    "metrics.podMonitor.interval": "7s",
    "metrics.prometheusRule.enabled": False,
    "metrics.prometheusRule.labels": {"a": "b"},
    "metrics.prometheusRule.alertLabels": {"a": "b"},
    "metrics.prometheusRule.runbookUrl": "https://example.org/runbooks",
    "metrics.prometheusRule.workerDead.for": "77s",
    "metrics.prometheusRule.workerDead.heartbeatSeconds": 77,
    "metrics.prometheusRule.rowsDropped.for": "77s",
    "metrics.prometheusRule.rowsDropped.share": 0.77,
    "metrics.prometheusRule.consumerLag.for": "77s",
    "metrics.prometheusRule.consumerLag.ratio": 0.77,
    "metrics.prometheusRule.saeStalled.for": "77s",
    "metrics.prometheusRule.operatorSilent.for": "77s",
    "metrics.prometheusRule.operatorSilent.auditSeconds": 7777,
    "metrics.dashboard.enabled": False,
    "metrics.dashboard.labels": {"a": "b"},
    "metrics.dashboard.annotations": {"a": "b"},
    "tests.timeoutSeconds": 77,
}
"""By its path, another value than the default."""

HOSTILE = [
    ("image.repository", "good\nprivileged: true"),
    ("image.repository", "{{ .Release.Name }}"),
    ("image.repository", ""),
    ("image.tag", "1.0 # comment"),
    ("image.digest", "sha256:short"),
    ("workerImage.pullPolicy", "Sometimes"),
    ("namespaces", ["UPPER"]),
    ("namespaces", ["a", "a"]),
    ("namespaces", "one"),
    ("namespaces", ["a\nb"]),
    ("nameOverride", "a: b"),
    ("fullnameOverride", "x" * 64),
    ("serviceAccount.name", "../admin"),
    ("priorityClassName", "a\nhostNetwork: true"),
    ("commonLabels", {"app.kubernetes.io/name": "other"}),
    ("podLabels", {"app.kubernetes.io/instance": "other"}),
    ("metrics.podMonitor.interval", "soon"),
    ("metrics.port", 0),
    ("metrics.readers", [{"everybody": True}]),
    ("allowed.serviceAccounts", ["a' || true || '"]),
    ("allowed.images", ["a*b"]),
    ("allowed.cpus", "all"),
    ("allowed.memory", "7Gi') || true"),
    ("allowed.gpus", -1),
    ("metrics.port", 65_536),
    ("metrics.prometheusRule.rowsDropped.share", 1.5),
    ("metrics.prometheusRule.workerDead.for", "1m\n- alert: Other"),
    ("metrics.prometheusRule.runbookUrl", "javascript:alert(1)"),
    ("metrics.dashboard.labels", {"grafana_dashboard": "0"}),
    ("podDisruptionBudget.maxUnavailable", -1),
    ("networkPolicy.apiServerPorts", []),
    ("terminationGracePeriodSeconds", 0),
    ("extraArgs", [1]),
    ("extraEnv", [{"value": "nameless"}]),
    ("replicas", 2),
    ("hostNetwork", True),
]


def _leaves() -> list[str]:
    sys.path.insert(0, str(CHART.parent))
    try:
        from generate import documented
    finally:
        sys.path.pop(0)
    return [path for path, _ in documented((CHART / "values.yaml").read_text())]


def test_every_value_is_described_and_has_a_change():
    """Each leaf of values.yaml has its comment, and a changed value in the test below."""
    assert set(_leaves()) == set(CHANGES)

    def undescribed(tree, path=""):
        for key, value in tree.items():
            here = f"{path}{key}"
            if here not in CHANGES:
                assert isinstance(value, dict), f"{here} has no comment"
                undescribed(value, f"{here}.")

    undescribed(VALUES)


@pytest.mark.parametrize("path", CHANGES)
def test_every_value_changes_something(path, render, everything, nested, laid_over):
    """A value other than the default renders other objects."""
    crds = {"enabled": path in {"crds.keep", "crds.takeOwnership"}, "keep": path != "crds.takeOwnership"}
    base = laid_over(everything, {"crds": crds})
    assert render(laid_over(base, nested(path, CHANGES[path]))) != render(base)


@pytest.mark.parametrize(("path", "value"), HOSTILE, ids=lambda item: str(item)[:30])
def test_hostile_values_are_refused(path, value, helm, nested):
    """What could break out of its place, or means nothing, stops Helm with the value's path."""
    done = helm(nested(path, value))
    assert done.returncode != 0
    assert path.split(".")[-1] in done.stderr.replace("/", ".")


def test_unknown_values_are_refused_at_every_level(helm, nested):
    """A misspelt key is refused wherever it stands: every object of the schema is closed."""

    def open_objects(schema, path=()):
        if "properties" in schema:
            assert schema["additionalProperties"] is False, path
            for key, member in schema["properties"].items():
                open_objects(member, (*path, key))

    open_objects(SCHEMA)
    done = helm(nested("metrics.prometheusRule.workerDead.misspelt", 1))
    assert done.returncode != 0
    assert "misspelt" in done.stderr


def test_the_schema_knows_every_value():
    """Each leaf of values.yaml has a place of its own in the schema."""
    for path in CHANGES:
        schema = SCHEMA
        for part in path.split("."):
            schema = schema["properties"][part]
        assert schema, path


def test_generated_files_are_up_to_date():
    """README.md says what values.yaml says, and the chart's CRD is the contract's."""
    done = subprocess.run(
        [sys.executable, str(CHART.parent / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
