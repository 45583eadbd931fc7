"""An operator that finds what an earlier version of it has made: it goes on, and replaces nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from asysi_operator.reconcile import Remove

Tree = dict[str, Any]
GOLDEN: dict[str, Tree] = json.loads(
    (Path(__file__).parents[1] / "golden" / "first_version.json").read_text(encoding="utf-8")
)["experiments"]
BEGAN = "2026-01-02T03:01:00Z"
RENDERED = [name for name, one in GOLDEN.items() if "objects" in one]


def inherited(cluster: Any, name: str) -> Any:
    """Return a cluster with the objects of an experiment as the first version has left them."""
    lab = cluster()
    lab.experiment = GOLDEN[name]["object"]
    lab.experiment["metadata"] |= {"name": "minimal", "generation": 1}
    for item in GOLDEN[name]["objects"]:
        lab.put(item)
    return lab


def jobs(lab: Any) -> dict[str, Tree]:
    """Return identity and template of each Job."""
    found = [item for (kind, _name), item in lab.objects.items() if kind == "Job"]
    return {one["metadata"]["uid"]: one["spec"]["template"] for one in found}


@pytest.mark.parametrize("state", ["waiting", "running", "finished", "failed"])
@pytest.mark.parametrize("name", RENDERED)
def test_what_is_there_is_kept(cluster: Any, name: str, state: str) -> None:
    """Whatever state an experiment was in: after an upgrade none is refused, and no Job is replaced."""
    lab = inherited(cluster, name)
    status: Tree = {} if state == "waiting" else {"startTime": BEGAN, "attempt": 0}
    if state in {"finished", "failed"}:
        kind = "Complete" if state == "finished" else "Failed"
        condition = {"type": kind, "status": "True", "reason": "Ended", "lastTransitionTime": BEGAN}
        status |= {"conditions": [condition], "completionTime": BEGAN}
    lab.write_status(status)
    before = jobs(lab)
    lab.settle()
    decided = lab.step()
    assert decided.refusal is None
    assert not any(isinstance(action, Remove) for action in decided.actions)
    assert lab.removed == []
    assert jobs(lab) == before
