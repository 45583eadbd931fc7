"""A pipeline before the experiment: its Job first, the experiment's once that has completed."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asysi_operator.reconcile import OperatorSettings, Remove, plan

ROWS, OWN = ("Job", "minilm-rows"), ("Job", "minilm")
TEXT = {"uri": "jsonl:///data/text.jsonl"}


def data(**pipeline):
    """Return `spec.data` with a pipeline of two shards."""
    operators = [{"operator": "template", "params": {"fields": {"text": "{{ text }}"}}}]
    return {"data": {**TEXT, "pipeline": {"operators": operators, "shards": 2, **pipeline}}}


def end(lab, kind="Complete", **more):
    """Let the pipeline's Job end."""
    condition = {"type": kind, "status": "True", "lastTransitionTime": "2026-01-02T03:02:00Z", **more}
    lab.objects[ROWS] = copy.deepcopy(lab.objects[ROWS])
    lab.objects[ROWS]["status"] = {"conditions": [condition], "succeeded": 2 if kind == "Complete" else 1}


def run_shard(lab, index, state, *, scheduled=True, **status):
    """Let a shard have a pod whose container is in the given state."""
    job = lab.objects[ROWS]
    template = job["spec"]["template"]["metadata"]
    placed = {"type": "PodScheduled", "status": "True" if scheduled else "False", "reason": "Unschedulable"}
    lab.put(
        {
            "kind": "Pod",
            "metadata": {
                "name": f"minilm-rows-{index}-x",
                "namespace": "lab",
                "labels": template["labels"],
                "annotations": template["annotations"],
                "ownerReferences": [{"uid": job["metadata"]["uid"]}],
            },
            "spec": {"nodeName": "node"} if scheduled else {},
            "status": {
                "conditions": [placed],
                "containerStatuses": [{"name": "pipeline", "state": state}] if scheduled else [],
                **status,
            },
        }
    )


def conditions(lab):
    """Return the recorded conditions by type."""
    return {one["type"]: one for one in lab.experiment["status"]["conditions"]}


@pytest.fixture
def lab(cluster):
    """An experiment with a pipeline, whose objects are there."""
    made = cluster(data())
    made.settle()
    return made


def test_the_pipeline_comes_first(lab):
    """Until the pipeline's Job has completed there is no Job of the experiment; then both are there."""
    assert ROWS in lab.objects
    assert OWN not in lab.objects
    assert lab.experiment["status"]["job"] == "minilm-rows"
    end(lab)
    lab.settle()
    assert OWN in lab.objects
    assert lab.experiment["status"]["job"] == "minilm"
    assert conditions(lab)["PipelineComplete"]["reason"] == "RowsReady"


def test_an_experiment_without_a_pipeline_says_nothing_of_one(cluster):
    """The condition is for experiments that have a pipeline."""
    lab = cluster()
    lab.settle()
    assert "PipelineComplete" not in conditions(lab)
    assert "pipeline" not in lab.experiment["status"]


def test_while_it_runs_the_phase_is_preparing(lab):
    """A pipeline's pod on a node means Preparing, and the phase never falls back to Pending."""
    assert lab.experiment["status"]["phase"] == "Pending"
    run_shard(lab, 0, {"running": {}}, phase="Running")
    lab.objects[ROWS]["status"] = {"active": 2}
    lab.step()
    status = lab.experiment["status"]
    assert status["phase"] == "Preparing"
    assert status["pipeline"] == {"shards": 2, "done": 0, "running": 2, "failed": 0}
    assert conditions(lab)["PipelineComplete"]["reason"] == "Running"
    assert "attempt" not in status
    end(lab)
    lab.settle()
    assert lab.experiment["status"]["phase"] == "Preparing"
    assert lab.experiment["status"]["pipeline"]["done"] == 2


EDITS = st.sampled_from(
    [
        data(),
        data(shards=3),
        data(budget={"cost": 1.0}),
        data(parallelism=1),
        {"data": TEXT},
        {"sae": {"cpus": 2.0}},
        {"output": {"size": "20Gi"}},
        {"output": {"claim": "results"}},
        {"lifecycle": {"suspend": True}},
        {"lifecycle": {}},
    ]
)


def shape(lab):
    """Return what is there, without identities."""
    kept = copy.deepcopy(lab.objects)
    for item in kept.values():
        item["metadata"].pop("uid")
        item["metadata"].pop("creationTimestamp")
    return kept


@settings(max_examples=60, deadline=None)
@given(
    edits=st.lists(st.tuples(EDITS, st.booleans()), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 6), max_size=6),
)
def test_a_crash_between_any_two_writes_converges(cluster, edits, cuts):
    """However often the operator dies, and whether a pipeline runs between two edits or not: as if never."""
    broken, whole = cluster(), cluster()
    for edit, runs in edits:
        for lab in (broken, whole):
            lab.edit(edit)
        for cut in cuts:
            broken.step(writes=cut)
        for lab in (broken, whole):
            lab.settle()
            if runs and ROWS in lab.objects and "status" not in lab.objects[ROWS]:
                end(lab)
            lab.settle()
    assert shape(broken) == shape(whole)
    assert plan(whole.observe(), OperatorSettings()).actions == []


@settings(max_examples=60, deadline=None)
@given(edits=st.lists(EDITS, min_size=1, max_size=4), which=st.data())
def test_a_stale_observation_starts_nothing_twice(cluster, edits, which):
    """Acting on anything that was once observed removes nothing newer, and the present then prevails."""
    lab, whole = cluster(data()), cluster(data())
    seen = [lab.observe()]
    for edit in edits:
        for one in (lab, whole):
            one.edit(edit)
            one.settle()
            if ROWS in one.objects and "status" not in one.objects[ROWS]:
                end(one)
            one.settle()
        seen.append(lab.observe())
    for action in plan(which.draw(st.sampled_from(seen)), OperatorSettings()).actions:
        lab.do(action)
    gone = {uid for _kind, _name, uid in lab.removed}
    assert not gone & {item["metadata"]["uid"] for item in lab.objects.values()}
    lab.settle()
    if ROWS in lab.objects and "status" not in lab.objects[ROWS]:
        end(lab)
    lab.settle()
    assert set(shape(lab)) == set(shape(whole))


def test_an_edit_of_the_pipeline_begins_it_anew(lab):
    """Another pipeline before the host's start: its Job goes by its identity, and another one comes."""
    old = lab.objects[ROWS]["metadata"]["uid"]
    lab.edit(data(shards=3))
    assert plan(lab.observe(), OperatorSettings()).actions == [Remove(*ROWS, old)]
    lab.settle()
    assert lab.objects[ROWS]["spec"]["completions"] == 3


def test_an_edit_of_the_rest_does_not(lab):
    """What the pipeline has nothing to do with leaves its Job alone, while it runs and afterwards."""
    uid = lab.objects[ROWS]["metadata"]["uid"]
    lab.edit({"sae": {"cpus": 2.0}})
    lab.settle()
    end(lab)
    lab.settle()
    own = lab.objects[OWN]["metadata"]["uid"]
    lab.edit({"sae": {"cpus": 4.0}})
    lab.settle()
    assert lab.objects[ROWS]["metadata"]["uid"] == uid
    assert lab.objects[OWN]["metadata"]["uid"] != own


def test_a_lost_pipeline_runs_again_until_it_is_read(lab):
    """Its Job comes back as long as the experiment's is not there, and never afterwards."""
    end(lab)
    del lab.objects[ROWS]
    lab.settle()
    assert ROWS in lab.objects
    end(lab)
    lab.settle()
    del lab.objects[ROWS]
    lab.settle()
    assert ROWS not in lab.objects
    assert OWN in lab.objects
    assert conditions(lab)["PipelineComplete"]["status"] == "True"


def test_a_dropped_pipeline_goes(lab):
    """A spec without its pipeline has the experiment's Job at once, and nothing of the pipeline."""
    lab.edit({"data": TEXT})
    lab.settle()
    assert OWN in lab.objects
    assert not [name for _kind, name in lab.objects if name == "minilm-rows"]


def test_a_claim_in_use_goes_after_the_pipeline(lab):
    """Another size of the claim takes the pipeline's Job away first, which holds on to the claim."""
    lab.edit({"output": {"size": "20Gi"}})
    lab.settle()
    assert [kind for kind, _name, _uid in lab.removed] == ["Job", "PersistentVolumeClaim"]


def test_a_failed_shard_is_named(lab):
    """The experiment has Failed; lastFailure names container and pod, with what it said last."""
    said = {"exitCode": 2, "message": "spec.data.uri: no such file", "finishedAt": "2026-01-02T03:02:00Z"}
    run_shard(lab, 1, {"terminated": said}, phase="Failed")
    end(lab, "Failed", reason="PodFailurePolicy", message="pod failed")
    lab.settle()
    status = lab.experiment["status"]
    assert status["phase"] == "Failed"
    assert status["completionTime"]
    failure = status["lastFailure"]
    assert (failure["container"], failure["reason"], failure["exitCode"]) == (
        "pipeline",
        "BadConfiguration",
        2,
    )
    assert failure["message"] == "minilm-rows-1-x: spec.data.uri: no such file"
    assert conditions(lab)["Failed"]["message"] == f"pipeline: {failure['message']}"
    assert OWN not in lab.objects


def test_after_a_failure_an_edit_begins_anew(lab):
    """A mended pipeline runs again; an edit of something else does not heal the failure."""
    end(lab, "Failed", reason="BackoffLimitExceeded", message="too often")
    lab.settle()
    lab.edit({"sae": {"cpus": 2.0}})
    lab.settle()
    assert lab.experiment["status"]["phase"] == "Failed"
    lab.edit(data(budget={"cost": 2.0}))
    lab.settle()
    assert "status" not in lab.objects[ROWS]
    assert lab.experiment["status"]["phase"] == "Pending"


def test_a_shard_that_waits_for_room_has_not_failed(lab):
    """Unschedulable is a failure only while no other shard has a node."""
    run_shard(lab, 1, {}, scheduled=False, phase="Pending")
    lab.step()
    assert lab.experiment["status"]["lastFailure"]["reason"] == "Unschedulable"
    other = type(lab)(data())
    other.settle()
    run_shard(other, 0, {"waiting": {"reason": "ContainerCreating"}}, phase="Pending")
    run_shard(other, 1, {}, scheduled=False, phase="Pending")
    other.step()
    assert "lastFailure" not in other.experiment["status"]
    assert other.experiment["status"]["phase"] == "Preparing"


def test_suspension_reaches_the_pipeline(lab):
    """A suspended experiment suspends its pipeline, keeps its Job, and says so."""
    uid = lab.objects[ROWS]["metadata"]["uid"]
    lab.edit({"lifecycle": {"suspend": True}})
    lab.settle()
    assert lab.objects[ROWS]["spec"]["suspend"] is True
    assert lab.experiment["status"]["phase"] == "Suspended"
    lab.edit({"lifecycle": {"suspend": False}})
    lab.settle()
    assert lab.objects[ROWS]["spec"]["suspend"] is False
    assert lab.objects[ROWS]["metadata"]["uid"] == uid


def test_deadlines_and_parallelism_change_in_place(lab):
    """What a Job lets change is changed in the same Job."""
    uid = lab.objects[ROWS]["metadata"]["uid"]
    lab.edit({**data(parallelism=1), "lifecycle": {"activeDeadlineSeconds": 60}})
    lab.settle()
    job = lab.objects[ROWS]
    assert (job["metadata"]["uid"], job["spec"]["parallelism"]) == (uid, 1)
    assert job["spec"]["activeDeadlineSeconds"] == 60


def test_the_time_to_live_is_of_both_jobs(lab):
    """When it is over, both Jobs of an experiment that has ended go."""
    end(lab)
    lab.edit({"lifecycle": {"ttlSecondsAfterFinished": 0}})
    lab.settle()
    done = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-02T03:03:00Z"}
    lab.objects[OWN]["status"] = {"conditions": [done]}
    lab.step()
    lab.settle()
    assert {ROWS, OWN}.isdisjoint(lab.objects)
    assert lab.experiment["status"]["phase"] == "Succeeded"
