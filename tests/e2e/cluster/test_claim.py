"""Several experiments on one claim of a real cluster: each has its own folder, at once and one by one."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def _attempt_and_place(lab: Any, name: str) -> tuple[int, str]:
    status = lab.until_phase(name, "Succeeded")
    return status["attempt"], status["output"]


def test_each_has_a_folder_of_its_own(lab: Any, operator: Any, until: Callable[..., Any]) -> None:
    """Two at once and one later count their attempts alone: none finds what another has left there."""
    for name in ("first", "second"):
        lab.apply(name, host="run-4")
    assert _attempt_and_place(lab, "first") == (0, "results/first")
    assert _attempt_and_place(lab, "second") == (0, "results/second")
    lab.apply("third", host="run-1")
    assert _attempt_and_place(lab, "third") == (0, "results/third")
    lab.apply("chosen", {"output": {"path": "a/b"}}, host="run-1")
    assert _attempt_and_place(lab, "chosen") == (0, "results/a/b")

    lab.delete("ScanExperiment", "first")
    until(lambda: not lab.all("Pod", of="first"), "its pod goes")
    lab.apply("first", host="run-1")
    assert _attempt_and_place(lab, "first") == (1, "results/first"), "created anew, it finds its own folder"
    for name in ("first", "second", "third", "chosen"):
        lab.delete("ScanExperiment", name)


OWN: dict[str, Any] = {
    "claim": None,
    "size": "16Mi",
    "storageClassName": None,
    "accessModes": ["ReadWriteOnce"],
}


def _claim(lab: Any, name: str) -> dict[str, Any]:
    found = lab.get("PersistentVolumeClaim", f"{name}-output")
    return found["metadata"] | {"spec": found["spec"]} if found else {}


def test_a_retained_claim_outlives_the_experiment(lab: Any, operator: Any, until: Callable[..., Any]) -> None:
    """Asked for at the start or after the end, results stay; the next of the name uses and leaves them."""
    lab.apply("kept", {"output": OWN | {"whenDeleted": "Retain"}}, host="run-1")
    lab.until_phase("kept", "Succeeded")
    lab.apply("late", {"output": OWN}, host="run-1")
    lab.until_phase("late", "Succeeded")
    assert len(_claim(lab, "late")["ownerReferences"]) == 1
    lab.edit("ScanExperiment", "late", {"spec": {"output": {"whenDeleted": "Retain"}}})
    until(lambda: not _claim(lab, "late").get("ownerReferences"), lambda: str(_claim(lab, "late")))
    lab.apply("gone", {"output": OWN}, host="run-1")
    lab.until_phase("gone", "Succeeded")
    uids = {name: _claim(lab, name)["uid"] for name in ("kept", "late")}
    for name in ("kept", "late", "gone"):
        lab.delete("ScanExperiment", name)
        until(lambda name=name: not lab.all("Pod", of=name), "its pod goes")
    until(lambda: not _claim(lab, "gone"), "what is not retained goes")
    assert {name: _claim(lab, name).get("uid") for name in uids} == uids

    lab.apply("kept", {"output": OWN}, host="run-1")
    assert lab.until_phase("kept", "Succeeded")["attempt"] == 1, "it finds what is there"
    lab.delete("ScanExperiment", "kept")
    until(lambda: not lab.all("Pod", of="kept"), "its pod goes")
    assert _claim(lab, "kept")["uid"] == uids["kept"]
    assert "deletionTimestamp" not in _claim(lab, "kept")
    for name in uids:
        lab.delete("PersistentVolumeClaim", f"{name}-output")


def test_class_and_access_modes_reach_the_claim(lab: Any, operator: Any, until: Callable[..., Any]) -> None:
    """A class that is not there leaves the claim pending, and the pod says so."""
    chosen = OWN | {"storageClassName": "none-such", "accessModes": ["ReadWriteMany"]}
    lab.apply("classy", {"output": chosen})
    spec = until(lambda: _claim(lab, "classy"), "the claim")["spec"]
    assert (spec["storageClassName"], spec["accessModes"]) == ("none-such", ["ReadWriteMany"])
    until(lambda: lab.status("classy").get("reason") == "Unschedulable", lambda: str(lab.status("classy")))
    lab.delete("ScanExperiment", "classy")
