"""A namespace that is deleted with experiments that run in it: it goes, whether or not the operator lives."""

import os
import time
from typing import Any

import pytest

from asysi_operator.acceptance import validate
from asysi_operator.manifests import build

Tree = dict[str, Any]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

GRACE = 10
SPEC: Tree = {"lifecycle": {"gracePeriodSeconds": GRACE}, "output": {"claim": None, "size": "1Gi"}}


def _goes(lab: Any, until: Any, name: str) -> None:
    began = time.monotonic()
    code, answer = lab.ask("DELETE", lab.path("Namespace", name))
    assert code in {200, 202}, answer
    until(
        lambda: lab.ask("GET", lab.path("Namespace", name))[0] == 404,
        lambda: str(lab.ask("GET", lab.path("Namespace", name))[1].get("status")),
        GRACE + 30,
    )
    print(f"{name} was gone after {time.monotonic() - began:.1f} s")


def test_a_namespace_goes_without_an_operator(lab, kubeconfig, until):
    """What the operator would make is enough: no Job keeps its pods when nobody looks after it."""
    from .conftest import IMAGE, Lab

    other = Lab(kubeconfig, f"{lab.namespace}-{os.getpid()}")
    other.create({"kind": "Namespace", "metadata": {"name": other.namespace}})
    try:
        made = other.apply("left", SPEC)
        for item in build(validate(made), image=IMAGE, pull_policy="Never"):
            code, answer = other.ask("POST", other.path(item["kind"]), item)
            assert code == 201, answer
        until(lambda: [one for one in other.all("Pod") if one["status"].get("phase") == "Running"], "it runs")
        _goes(lab, until, other.namespace)
    finally:
        other.close()


def test_a_namespace_goes_beside_an_operator(lab, operator, until):
    """An operator that sees it all does not stand in the way, and is well afterwards."""
    lab.apply("running", SPEC)
    lab.until_phase("running", "Running")
    _goes(lab, until, lab.namespace)
    assert operator.ask("/livez") == 200
