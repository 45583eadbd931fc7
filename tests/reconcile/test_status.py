"""The status: what is said follows from what is observed, and what was once known stays known."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from asysi.contract.status import Status
from asysi.contract.telemetry import RunStatus
from asysi_operator.reconcile import OperatorSettings, plan
from asysi_operator.status import (
    CONDITIONS,
    EVENT_REASONS,
    announcements,
    derive,
    is_urgent,
    only_counters_changed,
    phase,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUNNING = {"running": {"startedAt": "2026-01-02T03:01:00Z"}}
ENDED = {
    "terminated": {"exitCode": 0, "finishedAt": "2026-01-02T03:02:00Z", "startedAt": "2026-01-02T03:01:00Z"}
}
WORDS = {
    "attempt": 0,
    "complete": True,
    "ledger": {"balanced": True, "unbalanced": []},
    "capture": {"seen": 10, "published": 7, "sampledOut": 1, "dropped": {"full": 1, "error": 1}},
    "durable": {"archiver": 7, "sae": 7},
    "trained": 6,
    "sae": {"fvu": 0.25, "l0": 8.0, "dead": 0.5},
    "problems": [],
}
ANSWER = {
    "phase": "running",
    "cpus": "1",
    "capture": {"seen": 5, "published": 4, "sampledOut": 1, "dropped": {}},
    "consumers": {"archiver": {"durable": 3}},
    "points": [{"path": "a", "fvu": 0.5, "l0": 4.0, "dead": 0.0, "trained": 2}],
    "ledger": {"balanced": True},
}


def said(lab, **more):
    observed = lab.observe(**more)
    return derive(observed, plan(observed, OperatorSettings())).status


def conditions(status):
    return {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}


@pytest.fixture
def lab(cluster):
    """Return a cluster whose experiment has its Job."""
    made = cluster()
    made.settle()
    return made


def answered(**changes):
    return {"finish": RunStatus.read(json.dumps({**ANSWER, **changes}).encode())}


def test_every_status_is_of_the_contract(cluster, lab):
    """Whatever is said fits the schema of the status, with every condition and the generation it is about."""
    refused = cluster({"mode": "CONSUMER"})
    lab.run_pod(host=RUNNING)
    for status in (said(refused), said(lab), said(lab, answers=answered())):
        assert Status.model_validate(status)
        assert status["observedGeneration"] == 1
        assert {one["observedGeneration"] for one in status["conditions"]} == {1}
        assert {one["type"] for one in status["conditions"]} <= set(CONDITIONS)
    assert [one["type"] for one in said(lab)["conditions"]] == [
        kind for kind in CONDITIONS if kind not in {"PipelineComplete", "Contended"}
    ]


def test_a_life(lab):
    """Pending, Preparing, Running, Finishing, Succeeded: each from what pod, workers and Job show."""
    assert said(lab)["phase"] == "Pending"
    pod = lab.run_pod(host={"waiting": {"reason": "PodInitializing"}})
    assert said(lab)["phase"] == "Preparing"
    pod["status"]["containerStatuses"][0]["state"] = RUNNING
    starting = said(lab)
    assert (starting["phase"], conditions(starting)["Capturing"]) == ("Running", ("False", "HostStarting"))
    running = said(lab, answers=answered())
    assert (running["phase"], conditions(running)["Capturing"]) == ("Running", ("True", "HostRunning"))
    assert running["counters"] == {
        "seen": 5,
        "captured": 4,
        "sampledOut": 1,
        "dropped": 0,
        "archived": 3,
        "trained": 2,
    }
    assert running["sae"] == {"fvu": 0.5, "l0": 4.0, "dead": 0.0}
    assert running["startTime"] == "2026-01-02T03:01:00Z"
    pod["status"]["containerStatuses"][0]["state"] = ENDED
    assert said(lab)["phase"] == "Finishing"
    finish = {"exitCode": 0, "finishedAt": "2026-01-02T03:03:00Z", "message": json.dumps(WORDS)}
    pod["status"]["containerStatuses"].append({"name": "finish", "state": {"terminated": finish}})
    _end(lab, "Complete")
    done = said(lab)
    assert done["phase"] == "Succeeded"
    assert done["counters"] == {
        "seen": 10,
        "captured": 7,
        "sampledOut": 1,
        "dropped": 2,
        "archived": 7,
        "trained": 6,
    }
    assert done["ledger"] == {"balanced": True}
    assert done["completionTime"] == "2026-01-02T03:03:30Z"
    assert "lastFailure" not in done


def said_by_finish(status, reason, message="why"):
    return {"status": status, "reason": reason, "message": message}


def test_the_verdicts_are_passed_on(lab):
    """LedgerBalanced and DataSound are Unknown until finish says more: in an answer, or its last words."""
    pod = lab.run_pod(host=RUNNING)
    verdicts = {kind: conditions(said(lab))[kind] for kind in ("LedgerBalanced", "DataSound")}
    assert verdicts == dict.fromkeys(verdicts, ("Unknown", "NotEnded"))
    told = {
        "LedgerBalanced": said_by_finish("True", "Balanced"),
        "DataSound": said_by_finish("False", "OutlierShare", "position 0"),
    }
    live = said(lab, answers=answered(conditions=told))
    assert conditions(live)["DataSound"] == ("False", "OutlierShare")
    words = {**WORDS, "conditions": told}
    finish = {"exitCode": 0, "finishedAt": "2026-01-02T03:03:00Z", "message": json.dumps(words)}
    pod["status"]["containerStatuses"].append({"name": "finish", "state": {"terminated": finish}})
    _end(lab, "Complete")
    done = said(lab)
    assert done["phase"] == "Succeeded"
    assert conditions(done)["LedgerBalanced"] == ("True", "Balanced")
    assert [one["message"] for one in done["conditions"] if one["type"] == "DataSound"] == ["position 0"]
    assert ("Warning", "DataNotSound", "position 0") in announcements(
        "minilm", said(lab) | {"conditions": []}, done
    )


def test_an_end_without_a_verdict_is_not_called_sound(lab):
    """finish killed, or last words that say something else: Unknown, NoVerdict."""
    pod = lab.run_pod(host=ENDED)
    words = {**WORDS, "conditions": {"DataSound": {"status": "yes", "reason": "no such thing"}}}
    finish = {"exitCode": 137, "finishedAt": "2026-01-02T03:03:00Z", "message": json.dumps(words)}
    pod["status"]["containerStatuses"].append({"name": "finish", "state": {"terminated": finish}})
    _end(lab, "Failed")
    found = conditions(said(lab))
    assert found["DataSound"] == found["LedgerBalanced"] == ("Unknown", "NoVerdict")


def test_an_experiment_that_ended_before_there_were_verdicts_is_left_alone(lab):
    """A recorded end without the two conditions gets none later: nothing is written anew."""
    lab.run_pod(host=ENDED)
    _end(lab, "Complete")
    old = said(lab)
    old["conditions"] = [
        one for one in old["conditions"] if one["type"] not in {"LedgerBalanced", "DataSound"}
    ]
    lab.write_status(old)
    assert said(lab) == old


def test_what_was_known_outlives_the_pod(lab):
    """When pod and Job have gone, the status says what it said."""
    finish = {"exitCode": 0, "finishedAt": "2026-01-02T03:03:00Z", "message": json.dumps(WORDS)}
    status = {
        "containerStatuses": [
            {"name": "host", "state": ENDED},
            {"name": "finish", "state": {"terminated": finish}},
        ]
    }
    lab.run_pod(**status)
    _end(lab, "Complete")
    before = said(lab)
    lab.write_status(before)
    lab.objects.clear()
    assert said(lab) == before


def test_a_refused_spec_says_why(cluster):
    """A spec that is refused says so with a message that names the field, and gets no Job."""
    status = said(cluster({"output": {"uri": "runs/x"}}))
    assert status["phase"] == "Refused"
    (accepted,) = [one for one in status["conditions"] if one["type"] == "Accepted"]
    assert (accepted["status"], accepted["reason"]) == ("False", "Invalid")
    assert "spec.output.uri" in accepted["message"]


def test_a_condition_keeps_its_time_while_it_holds(lab):
    """lastTransitionTime moves when a condition's status does, and at no other time."""
    lab.write_status(said(lab))
    lab.run_pod(host=RUNNING)
    later = said(lab, now=NOW + timedelta(minutes=5))
    times = {one["type"]: one["lastTransitionTime"] for one in later["conditions"]}
    assert times["Accepted"] == "2026-01-02T03:04:05Z"
    assert times["Scheduled"] == "2026-01-02T03:09:05Z"


def test_suspension(cluster):
    """A suspended experiment is Suspended once its pod has ended, and says that it is suspending before."""
    lab = cluster({"lifecycle": {"suspend": True}})
    lab.settle()
    assert (said(lab)["phase"], conditions(said(lab))["Suspended"]) == ("Suspended", ("True", "Suspended"))
    lab.run_pod(host=RUNNING)
    assert conditions(said(lab))["Suspended"] == ("False", "Suspending")


def test_the_start_deadline(cluster):
    """An experiment whose host does not start in time fails by the operator, and its Job is removed."""
    lab = cluster({"lifecycle": {"startDeadlineSeconds": 60}})
    lab.settle()
    lab.objects["Job", "minilm"]["status"] = {"startTime": "2026-01-02T03:03:35Z"}
    observed = lab.observe()
    early = derive(observed, plan(observed, OperatorSettings()))
    assert early.again == pytest.approx(30)
    late = said(lab, now=NOW + timedelta(seconds=31))
    assert (late["phase"], conditions(late)["Failed"]) == ("Failed", ("True", "StartDeadlineExceeded"))
    lab.write_status(late)
    lab.settle()
    assert ("Job", "minilm") not in lab.objects
    assert said(lab)["phase"] == "Failed"


def test_a_host_that_started_meets_no_start_deadline(cluster):
    """The start deadline is about the first start alone."""
    lab = cluster({"lifecycle": {"startDeadlineSeconds": 60}})
    lab.settle()
    lab.objects["Job", "minilm"]["status"] = {"startTime": "2026-01-02T03:00:00Z"}
    lab.run_pod(host=RUNNING)
    assert said(lab)["phase"] == "Running"


def test_counters_alone_are_told_from_the_rest(lab):
    """Only counters, quality and ledger may wait to be written; everything else is news."""
    lab.run_pod(host=RUNNING)
    one = said(lab, answers=answered())
    other = said(lab, answers=answered(capture={"seen": 50, "published": 40, "dropped": {}}))
    assert one != other
    assert only_counters_changed(one, other)
    assert not only_counters_changed(one, other | {"phase": "Failed"})


def test_events_tell_of_what_is_new(lab):
    """Each change of note is one event with a reason out of the fixed set; no change is none."""
    first = said(lab)
    lab.write_status(first)
    lab.run_pod(host=RUNNING)
    second = said(lab, answers=answered())
    told = announcements("minilm", first, second)
    assert {reason for _level, reason, _message in told} == {"Capturing"}
    assert announcements("minilm", second, second) == []
    assert "Capturing" in EVENT_REASONS


def test_a_pause_from_the_start_is_no_news(cluster):
    """An event tells of a pause that came later; one that was asked for at first is in the file."""
    lab = cluster({"lifecycle": {"suspend": True}})
    lab.settle()
    first = said(lab)
    assert first["phase"] == "Suspended"
    assert announcements("minilm", {}, first) == []
    active = [
        {**one, "status": "False"} if one["type"] == "Suspended" else one for one in first["conditions"]
    ]
    told = announcements("minilm", first | {"conditions": active}, first)
    assert [reason for _level, reason, _message in told] == ["Suspended"]


def test_ends_and_refusals_press(lab):
    """What somebody waits for is written at once: an end, a refusal, a pause, an edit that was seen."""
    lab.run_pod(host=RUNNING)
    one = said(lab)
    other = said(lab, answers=answered())
    assert not is_urgent(one, other)
    assert is_urgent(other, other | {"observedGeneration": 2})
    assert is_urgent({}, one)
    for kind in ("Complete", "Failed", "Accepted", "Suspended"):
        turned = [
            {**cond, "status": "Unknown"} if cond["type"] == kind else cond for cond in one["conditions"]
        ]
        assert is_urgent(one, one | {"conditions": turned}), kind


def test_phase_is_a_summary():
    """The phase follows from the conditions alone."""
    assert phase([]) == "Refused"
    assert phase([{"type": "Accepted", "status": "True", "reason": "Valid"}]) == "Pending"


def _end(lab, kind):
    lab.objects["Job", "minilm"]["status"] = {
        "conditions": [{"type": kind, "status": "True", "lastTransitionTime": "2026-01-02T03:03:30Z"}]
    }
