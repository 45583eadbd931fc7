"""The plan: whatever happened before, and whenever the operator died, the same objects come to be."""

import copy
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asysi_operator import reconcile
from asysi_operator.allowed import Allowed
from asysi_operator.manifests import build
from asysi_operator.manifests.labels import EXPERIMENT
from asysi_operator.reconcile import APPLIED, Apply, OperatorSettings, Remove, concurrent, plan, sealed

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SPECS = st.sampled_from(
    [
        {},
        {"output": {"claim": "results"}},
        {"output": {"size": "20Gi"}},
        {"archive": {"enabled": False}},
        {"lifecycle": {"maxRestarts": 5}},
        {"lifecycle": {"activeDeadlineSeconds": 60}},
        {"scheduling": {"nodeSelector": {"disk": "fast"}}},
        {"inputs": [{"claim": "models"}]},
    ]
)


def shape(cluster):
    """Return what is there, without identities."""
    kept = copy.deepcopy(cluster.objects)
    for item in kept.values():
        item["metadata"].pop("uid")
        item["metadata"].pop("creationTimestamp")
    return kept


def test_a_new_experiment_gets_its_objects_the_job_last(cluster):
    """The plan for a new experiment applies ConfigMap, claim and NetworkPolicy, and last the Job."""
    decided = plan(cluster().observe(), OperatorSettings())
    kinds = [action.manifest["kind"] for action in decided.actions]
    assert kinds == ["ConfigMap", "PersistentVolumeClaim", "NetworkPolicy", "Job"]
    assert not any(action.exists for action in decided.actions)


def test_what_is_there_is_not_written_again(cluster):
    """Once everything is there, a plan holds no write, and the same observation gives the same plan."""
    lab = cluster()
    lab.settle()
    assert lab.writes == 4
    assert plan(lab.observe(), OperatorSettings()) == plan(lab.observe(), OperatorSettings())
    assert plan(lab.observe(), OperatorSettings()).actions == []


def test_the_plan_does_not_change_what_it_is_given(cluster):
    """Planning is pure: the observation is afterwards as it was before."""
    lab = cluster()
    lab.settle()
    lab.edit({"archive": {"enabled": False}})
    observed = lab.observe()
    before = copy.deepcopy(observed)
    plan(observed, OperatorSettings())
    assert observed == before


def test_an_unchanged_experiment_is_rendered_once(cluster, monkeypatch):
    """However often an experiment is reconciled, its objects are rendered anew only when its spec changes."""
    rendered = []
    monkeypatch.setattr(
        reconcile, "build", lambda *given, **named: rendered.append(given) or build(*given, **named)
    )
    lab = cluster(uid="rendered-once")
    lab.settle()
    for _ in range(3):
        plan(lab.observe(), OperatorSettings())
    assert len(rendered) == 1
    lab.edit({"archive": {"enabled": False}})
    assert plan(lab.observe(), OperatorSettings()).actions
    assert len(rendered) == 2
    plan(lab.observe(), OperatorSettings(readers=[]))
    assert len(rendered) == 3


def test_a_sealed_object_sealed_again_is_the_same(cluster):
    """The digest is of what an object holds, not of the digest that it carries."""
    for action in plan(cluster().observe(), OperatorSettings()).actions:
        assert sealed(action.manifest) == action.manifest


@settings(max_examples=60, deadline=None)
@given(specs=st.lists(SPECS, min_size=1, max_size=3), cuts=st.lists(st.integers(0, 5), max_size=8))
def test_a_crash_between_any_two_writes_converges(cluster, specs, cuts):
    """However often the operator dies in the middle of a plan, the end is as if it never had."""
    broken, whole = cluster(), cluster()
    for spec in specs:
        for lab in (broken, whole):
            lab.edit(spec)
        for cut in cuts:
            broken.step(writes=cut)
        broken.settle()
        whole.settle()
    assert shape(broken) == shape(whole)


@settings(max_examples=60, deadline=None)
@given(specs=st.lists(SPECS, min_size=1, max_size=3), data=st.data())
def test_a_crash_among_concurrent_writes_converges(cluster, specs, data):
    """Whichever writes of a group have happened when the operator dies, in any order, the end is the same."""
    broken, whole = cluster(), cluster()
    for spec in specs:
        for lab in (broken, whole):
            lab.edit(spec)
        groups = concurrent(plan(broken.observe(), OperatorSettings()).actions)
        cut = data.draw(st.integers(0, max(0, len(groups) - 1)))
        for action in (one for group in groups[:cut] for one in group):
            broken.do(action)
        last = groups[cut] if groups else []
        happened = data.draw(st.permutations(last))[: data.draw(st.integers(0, len(last)))]
        for action in happened:
            broken.do(action)
        broken.settle()
        whole.settle()
    assert shape(broken) == shape(whole)


def test_the_job_is_written_after_everything_that_its_pod_needs(cluster):
    """Other objects are written at the same time; removals and the Job happen one by one, in their order."""
    lab = cluster()
    groups = concurrent(plan(lab.observe(), OperatorSettings()).actions)
    assert [[action.manifest["kind"] for action in group] for group in groups] == [
        ["ConfigMap", "PersistentVolumeClaim", "NetworkPolicy"],
        ["Job"],
    ]
    gone = [Remove("Job", "minilm", "1"), Remove("ConfigMap", "minilm", "2")]
    assert concurrent([*gone, groups[0][0]]) == [[gone[0]], [gone[1]], [groups[0][0]]]


@settings(max_examples=60, deadline=None)
@given(specs=st.lists(SPECS, min_size=1, max_size=4), data=st.data())
def test_a_stale_observation_neither_doubles_nor_deletes(cluster, specs, data):
    """Acting on anything that was once observed removes nothing newer, and the present then prevails."""
    lab, whole = cluster(), cluster()
    seen = [lab.observe()]
    for spec in specs:
        lab.edit(spec)
        whole.edit(spec)
        lab.settle()
        whole.settle()
        seen.append(lab.observe())
    before = {key: item["metadata"]["uid"] for key, item in lab.objects.items()}
    for action in plan(data.draw(st.sampled_from(seen)), OperatorSettings()).actions:
        lab.do(action)
    current = {key for key in before if key in lab.objects}
    gone = {uid for _kind, _name, uid in lab.removed}
    assert all(lab.objects[key]["metadata"]["uid"] not in gone for key in current)
    lab.settle()
    assert shape(lab) == shape(whole)
    assert len([key for key in lab.objects if key[0] == "Job"]) == 1


def test_an_edit_before_the_start_replaces_the_job(cluster):
    """A spec changed before its host has started gives a new Job; the old one goes by its identity."""
    lab = cluster()
    lab.settle()
    old = lab.objects["Job", "minilm"]["metadata"]["uid"]
    lab.edit({"capture": {"hookPoints": ["encoder.*"]}})
    assert plan(lab.observe(), OperatorSettings()).actions == [Remove("Job", "minilm", old)]
    lab.settle()
    assert lab.objects["Job", "minilm"]["metadata"]["uid"] != old


def test_an_edit_after_the_start_is_refused_and_its_undoing_accepted(cluster):
    """Once the host has run, a changed spec is refused with a reason and nothing is touched."""
    lab = cluster()
    lab.settle()
    lab.run_pod(host={"running": {"startedAt": "2026-01-02T03:01:00Z"}})
    before = shape(lab)
    lab.edit({"capture": {"hookPoints": ["encoder.*"]}})
    decided = lab.step()
    assert decided.refusal.reason == "SpecIsFrozen"
    assert decided.actions == ()
    assert shape(lab) == before
    lab.edit({"capture": {"hookPoints": ["*"]}})
    assert lab.step().refusal is None


def test_an_amount_that_is_spelled_anew_is_no_edit(cluster):
    """1024Mi for 1Gi changes nothing, before the host runs or after; another amount is refused."""
    lab = cluster()
    lab.edit({"output": {"size": "1Gi"}})
    lab.settle()
    before = shape(lab)
    lab.edit({"output": {"size": "1024Mi"}})
    assert lab.step().actions == []
    lab.run_pod(host={"running": {"startedAt": "2026-01-02T03:01:00Z"}})
    decided = lab.step()
    assert (decided.refusal, decided.actions) == (None, [])
    assert {key: value for key, value in shape(lab).items() if key in before} == before
    lab.edit({"output": {"size": "1025Mi"}})
    assert lab.step().refusal.message.startswith("spec.output.size was changed")


def test_what_the_api_server_spells_anew_is_not_written_again(cluster):
    """It writes 1024Mi as 1Gi: a claim that is as it was applied stays alone."""
    lab = cluster()
    lab.edit({"output": {"size": "1024Mi"}})
    lab.settle()
    claim = lab.objects["PersistentVolumeClaim", "minilm-output"]
    claim["spec"]["resources"]["requests"]["storage"] = "1Gi"
    assert lab.step().actions == []


def test_an_experiment_too_large_for_its_file_is_refused_by_field(cluster):
    """What a ConfigMap cannot carry is refused, naming the field that takes the room."""
    lab = cluster()
    operators = [{"operator": "o", "params": {"small": 1, "text": "x" * 1_100_000}}]
    lab.edit({"data": {"uri": "jsonl:///inputs/a/t.jsonl", "pipeline": {"operators": operators}}})
    refusal = lab.step().refusal
    assert refusal.reason == "Invalid"
    assert (
        "spec.data.pipeline.operators[0].params.text takes 1,100,002 of the experiment's" in refusal.message
    )


@pytest.mark.parametrize(
    "lifecycle", [{"suspend": True}, {"activeDeadlineSeconds": 60}, {"ttlSecondsAfterFinished": 60}]
)
def test_what_may_change_while_running_does(cluster, lifecycle):
    """Suspension, deadline and time to live reach the same Job, running or not."""
    lab = cluster()
    lab.settle()
    lab.run_pod(host={"running": {"startedAt": "2026-01-02T03:01:00Z"}})
    uid = lab.objects["Job", "minilm"]["metadata"]["uid"]
    before = shape(lab)["Job", "minilm"]
    lab.edit({"lifecycle": lifecycle})
    lab.settle()
    job = lab.objects["Job", "minilm"]
    assert job["metadata"]["uid"] == uid
    assert shape(lab)["Job", "minilm"] != before
    assert job["spec"]["template"] == before["spec"]["template"]


def test_a_lost_object_comes_back(cluster):
    """Whatever somebody deletes, or changes, is put back as it was."""
    for kind, name in list(_settled(cluster).objects):
        lab = _settled(cluster)
        whole = shape(lab)
        del lab.objects[kind, name]
        lab.settle()
        assert shape(lab) == whole
    lab = _settled(cluster)
    whole = shape(lab)
    lab.objects["ConfigMap", "minilm-config"]["data"] = {"experiment.json": "{}"}
    lab.settle()
    assert shape(lab) == whole


def test_what_nothing_wants_is_pruned_and_the_users_is_not(cluster):
    """The experiment's own claim goes when the user names one; objects of others stay as they are."""
    lab = _settled(cluster)
    lab.put(
        {
            "kind": "ConfigMap",
            "metadata": {"name": "theirs", "namespace": "lab", "labels": {EXPERIMENT: "minilm"}},
        }
    )
    lab.edit({"output": {"claim": "results"}})
    lab.settle()
    assert ("PersistentVolumeClaim", "minilm-output") not in lab.objects
    assert ("ConfigMap", "theirs") in lab.objects


OURS = {EXPERIMENT: "minilm", "app.kubernetes.io/managed-by": "asysi-operator"}
EARLIER = {"kind": "ScanExperiment", "name": "minilm", "uid": "experiment-0"}


def _config(lab, labels=OURS, owners=()):
    metadata = {
        "name": "minilm-config",
        "namespace": "lab",
        "labels": labels,
        "ownerReferences": list(owners),
    }
    lab.put({"kind": "ConfigMap", "metadata": metadata})


def test_what_an_earlier_experiment_left_is_the_garbage_collectors(cluster):
    """An object of an earlier experiment of the name is waited for; one that nobody collects is adopted."""
    lab = cluster(creationTimestamp="2026-01-02T03:04:00Z")
    _config(lab, owners=[EARLIER])
    decided = plan(lab.observe(), OperatorSettings())
    assert decided.actions == []
    assert decided.again is not None
    later = plan(lab.observe(now=NOW + timedelta(seconds=60)), OperatorSettings())
    assert next(one.manifest["kind"] for one in later.actions) == "ConfigMap"


@pytest.mark.parametrize(
    ("labels", "owners"),
    [
        ({EXPERIMENT: "minilm"}, []),
        (OURS, [{"kind": "Deployment", "name": "web", "uid": "web-1"}]),
        (OURS, [{"kind": "ScanExperiment", "name": "other", "uid": "other-1"}]),
    ],
)
def test_nobody_elses_object_is_taken(cluster, labels, owners):
    """What is not ours by its labels, or has another owner, is neither adopted nor removed: it is said."""
    lab = cluster()
    _config(lab, labels, owners)
    decided = plan(lab.observe(), OperatorSettings())
    assert decided.actions == []
    assert "ConfigMap minilm-config" in decided.blocked


def test_orphans_are_adopted(cluster):
    """What a deletion has orphaned, or a backup brought back without owners, goes on as it is."""
    for uid in ("experiment-1", "experiment-2"):
        lab = _settled(cluster)
        whole = shape(lab)
        before = {key: item["metadata"]["uid"] for key, item in lab.objects.items()}
        for item in lab.objects.values():
            item["metadata"]["ownerReferences"] = []
        lab.experiment["metadata"]["uid"] = uid
        lab.settle()
        assert {key: item["metadata"]["uid"] for key, item in lab.objects.items()} == before
        if uid == "experiment-1":
            assert shape(lab) == whole


def test_an_orphan_of_another_spec_gives_way_and_its_results_stay(cluster):
    """An orphaned Job of another spec is replaced; an orphaned claim is never, whatever its size."""
    lab = _settled(cluster)
    before = {key: item["metadata"]["uid"] for key, item in lab.objects.items()}
    for item in lab.objects.values():
        item["metadata"]["ownerReferences"] = []
    lab.experiment["metadata"] |= {"uid": "experiment-2", "creationTimestamp": "2026-01-02T03:04:00Z"}
    lab.edit({"model": {"uri": "file:///models/other"}, "output": {"size": "99Gi"}})
    lab.settle()
    after = {key: item["metadata"]["uid"] for key, item in lab.objects.items()}
    assert after["Job", "minilm"] != before["Job", "minilm"]
    assert after["PersistentVolumeClaim", "minilm-output"] == before["PersistentVolumeClaim", "minilm-output"]


CLAIM = ("PersistentVolumeClaim", "minilm-output")


def _deleted(lab, uid, spec):
    """Delete the experiment, garbage collection included, and create another one of its name."""
    own = lab.experiment["metadata"]["uid"]
    for key, item in list(lab.objects.items()):
        if any(owner["uid"] == own for owner in item["metadata"].get("ownerReferences", ())):
            del lab.objects[key]
    lab.experiment["metadata"] |= {"uid": uid, "creationTimestamp": "2026-01-02T03:04:00Z"}
    lab.experiment.pop("status", None)
    lab.edit(spec)
    lab.settle()


def test_a_retained_claim_outlives_every_later_experiment(cluster):
    """It is used again by those that find it, and goes with none of them, whatever they ask for."""
    lab = cluster({"output": {"whenDeleted": "Retain"}})
    lab.settle()
    claim = lab.objects[CLAIM]["metadata"]
    for number, wish in enumerate(("Delete", "Retain", "Delete"), start=2):
        _deleted(lab, f"experiment-{number}", {"output": {"whenDeleted": wish, "size": f"{number}Gi"}})
        found = lab.objects[CLAIM]["metadata"]
        assert found["uid"] == claim["uid"]
        assert not found.get("ownerReferences")
        assert found["annotations"]["asysi.dev/retained-by"] == "experiment-1"
        assert ("Job", "minilm") in lab.objects


@pytest.mark.parametrize("end", [None, "Complete", "Failed"])
def test_whether_the_claim_is_retained_may_change_at_any_time(cluster, end):
    """Its owner comes and goes with the wish, before the start, during the run and after the end."""
    lab = _settled(cluster)
    uid = lab.objects[CLAIM]["metadata"]["uid"]
    if end:
        lab.run_pod(host={"running": {"startedAt": "2026-01-02T03:01:00Z"}})
        condition = {"type": end, "status": "True", "reason": end}
        status = {"startTime": "2026-01-02T03:01:00Z", "conditions": [condition]}
        lab.write_status(status)
    for wish, owners in (("Retain", 0), ("Delete", 1), ("Retain", 0)):
        lab.edit({"output": {"whenDeleted": wish}})
        actions = plan(lab.observe(), OperatorSettings()).actions
        assert [one.manifest["kind"] for one in actions if one.manifest["kind"] != "ConfigMap"] == [CLAIM[0]]
        for action in actions:
            lab.do(action)
        assert len(lab.objects[CLAIM]["metadata"].get("ownerReferences", ())) == owners
        assert lab.objects[CLAIM]["metadata"]["uid"] == uid
        assert not plan(lab.observe(), OperatorSettings()).actions


def test_a_retained_claim_that_nobody_has_used_goes_with_the_wish_for_it(cluster):
    """An edit before the start that names another claim takes the empty one away; not an earlier one's."""
    lab = cluster({"output": {"whenDeleted": "Retain"}})
    lab.settle()
    lab.edit({"output": {"claim": "results"}})
    lab.settle()
    assert CLAIM not in lab.objects
    lab.edit({"output": {"whenDeleted": "Retain"}})
    lab.settle()
    _deleted(lab, "experiment-2", {"output": {"claim": "results"}})
    assert CLAIM in lab.objects


def test_what_others_add_is_theirs(cluster):
    """A label, an annotation, a finalizer or an owner of somebody else's is nothing to undo."""
    lab = _settled(cluster)
    for item in lab.objects.values():
        item["metadata"]["labels"]["theirs"] = "yes"
        item["metadata"]["annotations"]["theirs"] = "yes"
        item["metadata"]["finalizers"] = ["example.org/theirs"]
        item["metadata"]["ownerReferences"].append({"kind": "Backup", "uid": "theirs"})
    assert plan(lab.observe(), OperatorSettings()).actions == []


def test_who_changes_an_object_is_named(cluster):
    """A field that somebody else has changed is put back, with its path and its manager."""
    lab = _settled(cluster)
    job = lab.objects["Job", "minilm"]
    job["spec"]["suspend"] = True
    (action,) = plan(lab.observe(), OperatorSettings()).actions
    assert action.undoes == "spec.suspend is changed by an admission policy or webhook"
    fields = {"f:spec": {"f:suspend": {}}}
    job["metadata"]["managedFields"] = [{"manager": "flipper", "operation": "Update", "fieldsV1": fields}]
    (action,) = plan(lab.observe(), OperatorSettings()).actions
    assert action.undoes == "spec.suspend is changed by flipper"
    assert action.manifest["spec"]["suspend"] is False


def test_results_are_never_pruned(cluster):
    """Once the host has started, no plan removes the claim that holds what it made."""
    lab = _settled(cluster)
    lab.run_pod(host={"running": {"startedAt": "2026-01-02T03:01:00Z"}})
    lab.edit({"output": {"claim": "results"}})
    for _ in range(5):
        assert not any(isinstance(action, Remove) for action in lab.step().actions)


def test_another_operator_goes_on_with_what_runs(cluster):
    """An upgrade that renders otherwise changes no Job that is there, but for what may change."""
    lab = _settled(cluster)
    assert plan(lab.observe(), OperatorSettings(image="asysi-worker:next")).actions == []
    lab.edit({"lifecycle": {"suspend": True}})
    (action,) = [
        one
        for one in plan(lab.observe(), OperatorSettings(image="asysi-worker:next")).actions
        if one.manifest["kind"] == "Job"
    ]
    assert action.manifest["spec"]["suspend"] is True
    assert action.manifest["spec"]["template"] == lab.objects["Job", "minilm"]["spec"]["template"]


def test_the_attempt_is_what_prepare_has_taken(cluster):
    """The status has the number of the newest pod that knows it, and keeps it while the next has none yet."""
    lab = _settled(cluster)
    lab.run_pod(2, host={"running": {"startedAt": "2026-01-02T03:01:00Z"}})
    lab.step()
    assert lab.experiment["status"]["attempt"] == 2
    late = lab.run_pod(3, initContainerStatuses=[])
    lab.step()
    assert lab.experiment["status"]["pod"] == late["metadata"]["name"]
    assert lab.experiment["status"]["attempt"] == 2
    late["status"]["initContainerStatuses"] = [
        {"name": "prepare", "state": {"terminated": {"message": "{}"}}}
    ]
    lab.step()
    assert lab.experiment["status"]["attempt"] == 2


def test_the_end_is_the_end(cluster):
    """A recorded end is not begun anew when its Job has gone."""
    lab = _settled(cluster)
    lab.run_pod(host={"running": {"startedAt": "2026-01-02T03:01:00Z"}})
    lab.objects["Job", "minilm"]["status"] = {
        "conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-02T03:02:00Z"}]
    }
    lab.step()
    assert lab.experiment["status"]["phase"] == "Succeeded"
    del lab.objects["Job", "minilm"]
    for _ in range(3):
        assert list(lab.step().actions) == []
    assert lab.experiment["status"]["phase"] == "Succeeded"


def test_a_failure_before_the_start_can_be_mended(cluster):
    """An experiment that failed before its host started is tried again once its spec is changed."""
    lab = _settled(cluster)
    lab.objects["Job", "minilm"]["status"] = {
        "conditions": [
            {
                "type": "Failed",
                "status": "True",
                "reason": "PodFailurePolicy",
                "message": "no",
                "lastTransitionTime": "2026-01-02T03:02:00Z",
            }
        ]
    }
    lab.step()
    assert lab.experiment["status"]["phase"] == "Failed"
    assert list(lab.step().actions) == []
    lab.edit({"model": {"uri": "file:///models/other"}})
    lab.settle()
    assert lab.experiment["status"]["phase"] != "Failed"
    assert "status" not in lab.objects["Job", "minilm"]


def test_the_job_goes_when_its_time_is_over(cluster):
    """After its time to live all goes that an experiment ran with, not before, and not its results."""
    lab = cluster({"lifecycle": {"ttlSecondsAfterFinished": 60}})
    lab.settle()
    lab.objects["Job", "minilm"]["status"] = {
        "conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-02T03:04:00Z"}]
    }
    lab.step()
    early = plan(lab.observe(now=NOW + timedelta(seconds=50)), OperatorSettings())
    assert early.actions == ()
    assert early.again == pytest.approx(5)
    late = plan(lab.observe(now=NOW + timedelta(seconds=56)), OperatorSettings()).actions
    assert all(isinstance(one, Remove) for one in late)
    assert {one.kind for one in late} == {"Job", "ConfigMap", "NetworkPolicy"}


def test_an_experiment_that_goes_is_left_alone(cluster):
    """Nothing is made for an experiment that is being deleted: the garbage collector takes what it owns."""
    lab = cluster(deletionTimestamp="2026-01-02T03:04:00Z")
    assert plan(lab.observe(), OperatorSettings()).actions == ()


def test_applied_objects_say_so(cluster):
    """Every object carries the digest of what was applied, and plain data only."""
    for action in plan(cluster().observe(), OperatorSettings()).actions:
        assert isinstance(action, Apply)
        assert action.manifest["metadata"]["annotations"][APPLIED]
        assert json.loads(json.dumps(action.manifest)) == action.manifest


def _settled(cluster):
    lab = cluster()
    lab.settle()
    return lab


def test_what_is_not_allowed_is_not_made_and_what_runs_goes_on(cluster):
    """No object for an experiment that chooses too much; one whose Job is there is left alone."""
    strict, lax = OperatorSettings(), OperatorSettings(allowed=Allowed(service_accounts=("robot",)))
    lab = cluster({"scheduling": {"serviceAccountName": "robot"}})
    refused = plan(lab.observe(), strict)
    assert (refused.refusal.reason, list(refused.actions)) == ("NotAllowed", [])
    assert "spec.scheduling.serviceAccountName is robot" in refused.refusal.message
    for action in plan(lab.observe(), lax).actions:
        lab.do(action)
    again = plan(lab.observe(), strict)
    assert (again.refusal, list(again.actions)) == (None, [])
