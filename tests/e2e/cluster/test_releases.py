"""Two teams, two releases of the chart by a real Helm: their namespaces, and whose the CRD is."""

import json
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asysi.contract.crd import GROUP, PLURAL

from .conftest import ROOT, Lab, Proxy, operating

Tree = dict[str, Any]
Helm = Callable[..., str]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
CRD = f"{PLURAL}.{GROUP}"
CHART = str(ROOT / "charts" / "asysi")
OWNER = ("meta.helm.sh/release-name", "meta.helm.sh/release-namespace")


@pytest.fixture(scope="module")
def helm(kubeconfig: Path, tool: Callable[[str], str]) -> Helm:
    """Return a function that runs helm and returns what it says."""

    def run(*arguments: str) -> str:
        command = [tool("helm"), "--kubeconfig", str(kubeconfig), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def teams(lab: Lab, kubeconfig: Path, helm: Helm) -> Iterator[list[Lab]]:
    """Two namespaces; whatever is installed there goes with them, and the CRD stays."""
    mark = secrets.token_hex(3)  # the namespaces of the test before may not have gone yet
    labs = [Lab(kubeconfig, f"{lab.namespace}-{mark}-{team}") for team in ("a", "b")]
    for one in labs:
        one.create({"kind": "Namespace", "metadata": {"name": one.namespace}})
    yield labs
    for one in labs:
        for release in json.loads(helm("list", "--namespace", one.namespace, "--output", "json")):
            helm("uninstall", release["name"], "--namespace", one.namespace)
        one.ask("DELETE", one.path("Namespace", one.namespace))
        one.close()
    path = lab.path("CustomResourceDefinition", CRD)
    nobodys = {"metadata": {"annotations": dict.fromkeys(OWNER)}}
    lab.ask("PATCH", path, nobodys, "application/merge-patch+json")


def _install(helm: Helm, lab: Lab, name: str, *more: str, verb: str = "install") -> str:
    """Install a release that watches its own namespace alone; its operator runs beside the tests."""
    values = f"namespaces={{{lab.namespace}}},image.repository=absent,image.pullPolicy=Never"
    return helm(verb, name, CHART, "--namespace", lab.namespace, "--set", values, *more)


def _owner(lab: Lab) -> tuple[str, str]:
    annotations = (lab.get("CustomResourceDefinition", CRD) or {})["metadata"].get("annotations", {})
    return annotations.get(OWNER[0], ""), annotations.get(OWNER[1], "")


def _take(*more: str) -> tuple[str, ...]:
    return ("--set", "crds.takeOwnership=true", "--take-ownership", *more)


def test_the_crd_is_one_releases_and_the_other_finds_it(lab: Lab, teams: list[Lab], helm: Helm) -> None:
    """Told whose it is, used as it is, left behind by its owner, taken over by a release of another name."""
    a, b = teams
    made = (lab.get("CustomResourceDefinition", CRD) or {})["metadata"]["uid"]
    _install(helm, a, "asysi", *_take())
    assert _owner(lab) == ("asysi", a.namespace)
    said = _install(helm, b, "asysi")
    assert f"belongs to release asysi in namespace {a.namespace}" in " ".join(said.split())
    assert _owner(lab) == ("asysi", a.namespace)
    assert "CustomResourceDefinition" not in helm("get", "manifest", "asysi", "--namespace", b.namespace)
    said = _install(helm, a, "asysi", verb="upgrade")
    assert "belongs to" not in said
    assert "CustomResourceDefinition" in helm("get", "manifest", "asysi", "--namespace", a.namespace)

    helm("uninstall", "asysi", "--namespace", a.namespace)
    said = _install(helm, a, "renamed")
    assert f"belongs to release asysi in namespace {a.namespace}" in " ".join(said.split())
    _install(helm, a, "renamed", *_take(), verb="upgrade")
    assert _owner(lab) == ("renamed", a.namespace)
    said = helm("upgrade", "renamed", CHART, "--namespace", a.namespace, "--reset-then-reuse-values")
    assert "belongs to" not in said
    _install(helm, b, "asysi", *_take(), verb="upgrade")
    assert _owner(lab) == ("asysi", b.namespace)
    _install(helm, a, "renamed", "--set", "crds.takeOwnership=false", verb="upgrade")
    assert (lab.get("CustomResourceDefinition", CRD) or {})["metadata"]["uid"] == made
    assert _owner(lab) == ("asysi", b.namespace)


def test_each_release_runs_its_own_namespace(
    teams: list[Lab], helm: Helm, tmp_path: Path, until: Any
) -> None:
    """With the accounts and arguments of two releases: each runs its team's experiment and no other's."""
    for one in teams:
        _install(helm, one, "asysi")
    a, b = teams
    proxies = [Proxy(one) for one in teams]
    folders = [tmp_path / one.namespace for one in teams]
    for folder in folders:
        folder.mkdir()
    try:
        with (
            operating(proxies[0], _token(a), folders[0]) as first,
            operating(proxies[1], _token(b), folders[1]) as second,
        ):
            first.start()
            a.apply("same-name")
            b.apply("same-name")
            until(lambda: a.status("same-name").get("job"), lambda: str(a.status("same-name")))
            assert b.status("same-name") == {}
            assert b.children(of="same-name") == []
            second.start()
            until(lambda: b.status("same-name").get("job"), lambda: str(b.status("same-name")))
            for proxy, other in ((proxies[0], b), (proxies[1], a)):
                assert not any(f"/{other.namespace}/" in one.path for one in proxy.requests)
                assert not {one.code for one in proxy.requests} & {401, 403}
            a.delete("ScanExperiment", "same-name")
            until(lambda: not a.children(of="same-name"), "what it had goes")
            assert b.get("Job", "same-name")
            b.delete("ScanExperiment", "same-name")
    finally:
        for proxy in proxies:
            proxy.close()


def _token(lab: Lab) -> str:
    """Return a token of the account that Helm has made for the release."""
    asked = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}}
    status, answer = lab.ask("POST", f"{lab.path('ServiceAccount', 'asysi')}/token", asked)
    assert status == 201, answer
    return str(answer["status"]["token"])
