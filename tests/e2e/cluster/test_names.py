"""What Kubernetes lets a claim be called, how it spells amounts, and how much a ConfigMap holds."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
LONGEST = ".".join(["results", "of-team-a", *["x" * 57] * 4, "end"])
"""A claim's name, with dots and as long as names may be."""


def _claimed(lab: Any, name: str) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}
    lab.create({"kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})


def test_a_claim_may_have_the_longest_name(lab: Any, operator: Any, until: Callable[..., Any]) -> None:
    """Claims whose names have dots, one of 253 characters, are mounted and written."""
    assert len(LONGEST) == 253
    _claimed(lab, LONGEST)
    _claimed(lab, "texts.v1")
    lab.apply("dotted", {"inputs": [{"claim": "texts.v1"}], "output": {"claim": LONGEST}}, host="run-1")
    status = lab.until_phase("dotted", "Succeeded")
    assert status["output"] == f"{LONGEST}/dotted"
    lab.delete("ScanExperiment", "dotted")
    until(lambda: not lab.all("Pod", of="dotted"), "its pod goes")
    for name in (LONGEST, "texts.v1"):
        lab.delete("PersistentVolumeClaim", name)


def test_an_amount_that_is_spelled_otherwise_is_no_edit(lab: Any, operator: Any, until: Any) -> None:
    """While the host runs, 1024Ki for 1Mi is taken and changes no object; another amount is refused."""
    lab.apply("spelled")
    lab.until_phase("spelled", "Running")
    before = {one["kind"]: one["metadata"]["uid"] for one in lab.children(of="spelled")}
    code, answer = lab.edit("ScanExperiment", "spelled", {"spec": {"capture": {"size": "1024Ki"}}})
    assert code == 200, answer
    generation = answer["metadata"]["generation"]
    until(lambda: lab.status("spelled").get("observedGeneration") == generation, "the edit is seen")
    assert lab.condition("spelled", "Accepted")["status"] == "True"
    assert {one["kind"]: one["metadata"]["uid"] for one in lab.children(of="spelled")} == before
    code, answer = lab.edit("ScanExperiment", "spelled", {"spec": {"capture": {"size": "1025Ki"}}})
    assert (code, "spec.capture" in answer["message"]) == (422, True), answer
    lab.delete("ScanExperiment", "spelled")


def test_what_a_config_map_cannot_hold_is_refused_by_field(lab: Any, operator: Any, until: Any) -> None:
    """An experiment that the API server stores and no ConfigMap can carry is refused, and nothing is made."""
    operators = [{"operator": "asysi.pipeline.operators:Text", "params": {"text": "x" * 1_100_000}}]
    lab.apply("large", {"data": {"uri": "jsonl:///data/text.jsonl", "pipeline": {"operators": operators}}})
    said = until(lambda: lab.condition("large", "Accepted"), "it is refused")
    assert (said["status"], said["reason"]) == ("False", "Invalid")
    assert "spec.data.pipeline.operators[0].params.text takes 1,100,002 of" in said["message"]
    assert lab.children(of="large") == []
    lab.delete("ScanExperiment", "large")
