"""Every set of values, checked against the schemas of a real API server."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "asysi"
SCENARIOS = sorted((CHART / "ci").glob("*-values.yaml"))
_TEXT_OR_NUMBER = {"oneOf": [{"type": "string"}, {"type": "number"}]}
"""What the API server says is a string, and takes as a number too."""
_LOOSE = ("resource.Quantity", "intstr.IntOrString")
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="session")
def schemas(kubeconfig: Path, tool: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of strict schemas, `kind-group-version.json`, made of what the API server says."""
    if script := os.environ.get("ASYSI_CLUSTER"):
        subprocess.run([script, "monitoring-crds"], check=True, capture_output=True, timeout=60)
    said = _definitions(tool("kubectl"), kubeconfig)
    definitions = {name: _strict(name, body) for name, body in said.items()}
    folder = tmp_path_factory.mktemp("schemas")
    for name, body in definitions.items():
        for gvk in body.get("x-kubernetes-group-version-kind", []):
            schema = {"$ref": f"#/definitions/{name}", "definitions": _reached(name, definitions)}
            group = gvk["group"].split(".")[0]
            file = "-".join(part for part in (gvk["kind"], group, gvk["version"]) if part).lower()
            (folder / f"{file}.json").write_text(json.dumps(schema))
    return folder


def _definitions(kubectl: str, kubeconfig: Path) -> dict[str, Any]:
    """Return what the API server says about its kinds; a new one takes seconds to be among them."""
    deadline = time.monotonic() + 60
    while True:
        command = [kubectl, "--kubeconfig", str(kubeconfig), "get", "--raw", "/openapi/v2"]
        said = subprocess.run(command, capture_output=True, check=True, timeout=60)
        definitions: dict[str, Any] = json.loads(said.stdout)["definitions"]
        if all(
            any(name.endswith(kind) for name in definitions) for kind in (".PodMonitor", ".PrometheusRule")
        ):
            return definitions
        assert time.monotonic() < deadline, (
            "the cluster has no kinds of the Prometheus operator: install its CRDs"
        )
        time.sleep(0.5)


def _strict(name: str, body: dict[str, Any]) -> dict[str, Any]:
    if name.endswith(_LOOSE):
        return _TEXT_OR_NUMBER
    if "properties" in body:
        return {**body, "additionalProperties": body.get("additionalProperties", False)}
    return body


def _reached(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the definitions that one refers to, itself among them."""
    found: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        now = waiting.pop()
        if now not in found:
            found[now] = definitions[now]
            waiting += _references(definitions[now])
    return found


def _references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [name for item in node for name in _references(item)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"].removeprefix("#/definitions/")] if isinstance(node.get("$ref"), str) else []
    return [*own, *(name for item in node.values() for name in _references(item))]


def _conform(tool: Any, schemas: Path, text: str) -> "subprocess.CompletedProcess[str]":
    location = f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    return subprocess.run(
        [tool("kubeconform"), "-summary", "-schema-location", location, "-"],
        input=text, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("values", SCENARIOS, ids=lambda path: path.name.removesuffix("-values.yaml"))
def test_every_scenario_conforms(values, helm, tool, schemas):
    """What each set of values in ci/ renders is valid, strictly, for a real API server."""
    done = helm(yaml.safe_load(values.read_text()) or {})
    assert done.returncode == 0, done.stderr
    checked = _conform(tool, schemas, done.stdout)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "Skipped: 0" in checked.stdout


def test_the_check_can_fail(helm, tool, schemas):
    """A field that Kubernetes does not know is found."""
    done = helm({"podSecurityContext": {"runAsNobody": True}})
    checked = _conform(tool, schemas, done.stdout)
    assert checked.returncode == 1
    assert "runAsNobody" in checked.stdout
