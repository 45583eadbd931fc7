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


def folder(lab: Any) -> set[str]:
    """Return where the Jobs' containers write their results."""
    found = set()
    for template in jobs(lab).values():
        for container in [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]:
            found |= {one["value"] for one in container["env"] if one["name"] == "ASYSI_OUTPUT"}
    return found


def test_a_new_experiment_has_a_folder_of_its_own_on_a_shared_claim(cluster: Any) -> None:
    """On a named claim it is the experiment's name, or output.path; the claim that is made keeps its root."""
    for output, path in (
        ({}, "/output"),
        ({"claim": "results"}, "/output/minilm"),
        ({"claim": "results", "path": "a/b"}, "/output/a/b"),
    ):
        lab = cluster({"output": output})
        lab.settle()
        assert folder(lab) == {path}
        claim = output.get("claim", "minilm-output")
        assert lab.experiment["status"]["output"] == str(
            Path(claim) / path.removeprefix("/output").strip("/")
        )


def test_the_pipeline_writes_where_the_model_reads(cluster: Any) -> None:
    """Both Jobs of an experiment with a pipeline have the same folder."""
    data = {"uri": "jsonl:///a.jsonl", "pipeline": {"operators": [{"operator": "o"}]}}
    lab = cluster({"output": {"claim": "results"}, "data": data})
    lab.settle()
    lab.objects["Job", "minilm-rows"]["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    lab.settle()
    assert len(jobs(lab)) == 2
    assert folder(lab) == {"/output/minilm"}


@pytest.mark.parametrize("name", ["claim", "pipeline"])
def test_what_has_begun_keeps_its_place(cluster: Any, name: str) -> None:
    """An experiment of the first version wrote to its claim's root, and does so with a new Job too."""
    lab = inherited(cluster, name)
    lab.write_status({"startTime": BEGAN, "attempt": 0})
    lab.settle()
    assert folder(lab) == {"/output"}
    assert lab.experiment["status"]["output"] == "results"
    del lab.objects["Job", "minimal"]
    lab.settle()
    assert folder(lab) == {"/output"}


def test_a_lost_job_is_made_anew_where_it_was_even_if_only_the_old_status_is_left(cluster: Any) -> None:
    """An experiment that started before there were folders, and whose Job was lost, goes on in the root."""
    lab = inherited(cluster, "claim")
    del lab.objects["Job", "minimal"]
    lab.write_status({"startTime": BEGAN, "attempt": 0})
    lab.settle()
    assert folder(lab) == {"/output"}


def test_rows_that_an_older_pipeline_made_are_read_where_they_are(cluster: Any) -> None:
    """The pipeline ran before the upgrade, the model runs after it: it reads what was made in the root."""
    lab = inherited(cluster, "pipeline")
    del lab.objects["Job", "minimal"]
    lab.objects["Job", "minimal-rows"]["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    lab.settle()
    assert len(jobs(lab)) == 2
    assert folder(lab) == {"/output"}


def test_an_edit_of_the_path_before_the_start_is_followed(cluster: Any) -> None:
    """Until the model has started, another output.path is another place."""
    lab = cluster({"output": {"claim": "results"}})
    lab.settle()
    lab.edit({"output": {"claim": "results", "path": "elsewhere"}})
    lab.settle()
    assert folder(lab) == {"/output/elsewhere"}
