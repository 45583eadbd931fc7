"""Failures as a person would say them, from the states that kubelet, scheduler and Job controller leave."""

from datetime import UTC, datetime

import pytest

from asysi_operator.failures import last_failure, oddity

START, END = "2026-01-02T03:01:00Z", "2026-01-02T03:02:00Z"


def ended(code, reason="Error", message="", at=END):
    return {"exitCode": code, "reason": reason, "message": message, "startedAt": START, "finishedAt": at}


def waiting(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


def sidecar(name, state, last=None, **more):
    return {"name": name, "state": state, "lastState": {"terminated": last} if last else {}, **more}


@pytest.fixture
def pod(cluster):
    """Return a function that gives the experiment a pod with such a status, and returns what is observed."""

    def make(status, events=(), **metadata):
        lab = cluster()
        lab.settle()
        made = lab.run_pod(**status)
        made["metadata"] |= metadata
        return lab.observe(events=events)

    return make


BACKOFF = waiting("CrashLoopBackOff", "back-off 20s restarting failed container")
CASES = {
    "an image that cannot be fetched": (
        {"initContainerStatuses": [sidecar("prepare", waiting("ImagePullBackOff", "no such image"))]},
        ("ImagePullBackOff", "prepare", None, "no such image"),
    ),
    "the kubelet's other word for it": (
        {"initContainerStatuses": [sidecar("prepare", waiting("ErrImagePull", "no such image"))]},
        ("ImagePullBackOff", "prepare", None, "no such image"),
    ),
    "a Secret that is not there": (
        {"initContainerStatuses": [sidecar("prepare", waiting("CreateContainerConfigError", "secret"))]},
        ("CreateContainerConfigError", "prepare", None, "secret"),
    ),
    "a crash loop says what was said last": (
        {"initContainerStatuses": [sidecar("sae", BACKOFF, ended(1, message="OSError: full"))]},
        ("CrashLoopBackOff", "sae", 1, "OSError: full"),
    ),
    "a crash loop for want of memory": (
        {"initContainerStatuses": [sidecar("sae", BACKOFF, ended(137, "OOMKilled"))]},
        ("OOMKilled", "sae", 137, "137"),
    ),
    "bad configuration": (
        {
            "initContainerStatuses": [
                sidecar("prepare", {"terminated": ended(2, message="spec.model.uri: no")})
            ]
        },
        ("BadConfiguration", "prepare", 2, "spec.model.uri"),
    ),
    "no room on any node": (
        {
            "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "cpu"}
            ]
        },
        ("Unschedulable", None, None, "cpu"),
    ),
    "an evicted pod": (
        {"phase": "Failed", "reason": "Evicted", "message": "low on memory"},
        ("Evicted", None, None, "low on memory"),
    ),
    "a pod that a drain put out, not what its containers ended with": (
        {
            "conditions": [
                {
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "EvictionByEvictionAPI",
                    "message": "Eviction API: evicting",
                    "lastTransitionTime": END,
                }
            ],
            "containerStatuses": [sidecar("host", {"terminated": ended(143)})],
        },
        ("EvictionByEvictionAPI", None, None, "evicting"),
    ),
    "a host that died, not the finish that says so": (
        {
            "containerStatuses": [
                sidecar("host", {"terminated": ended(139)}),
                sidecar("finish", {"terminated": ended(1, message="{}", at="2026-01-02T03:02:09Z")}),
            ]
        },
        ("Error", "host", 139, "139"),
    ),
    "a sidecar that was restarted": (
        {"initContainerStatuses": [sidecar("hook", {"running": {}}, ended(1, message="RingError"))]},
        ("Error", "hook", 1, "RingError"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_failure_is_read(pod, case):
    """Container, reason, exit code and words of a failure are found where Kubernetes leaves them."""
    status, (reason, container, code, words) = CASES[case]
    failure = last_failure(pod(status))
    assert (failure.reason, failure.container, failure.exit_code) == (reason, container, code)
    assert words in failure.message


HARMLESS = {
    "containers that wait their turn": {"containerStatuses": [sidecar("host", waiting("PodInitializing"))]},
    "a sidecar started again after its work": {
        "initContainerStatuses": [sidecar("sae", BACKOFF, ended(0, "Completed"))]
    },
    "sidecars stopped when all was done": {
        "initContainerStatuses": [sidecar("hook", {"terminated": ended(143, at="2026-01-02T03:02:05Z")})],
        "containerStatuses": [
            sidecar("host", {"terminated": ended(0, "Completed")}),
            sidecar("finish", {"terminated": ended(0, "Completed")}),
        ],
    },
    "nothing known yet": {},
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_meant_is_no_failure(pod, case):
    """Waiting, ending well and being stopped at the end are not failures."""
    assert last_failure(pod(HARMLESS[case])) is None


def test_being_deleted_is_no_failure(pod):
    """A pod that is being deleted, as at a suspension, ends by signals: that is not a failure."""
    status = {"containerStatuses": [sidecar("host", {"terminated": ended(143)})]}
    assert last_failure(pod(status, deletionTimestamp=END)) is None
    assert last_failure(pod(status)) is not None


@pytest.mark.parametrize(
    ("probe", "reason"), [("liveness", "LivenessProbeFailed"), ("startup", "StartupProbeFailed")]
)
def test_a_probes_kill_is_told_from_others(pod, probe, reason):
    """What the states call an error, the events call a probe's kill: they are asked for."""
    status = {"initContainerStatuses": [sidecar("sae", {"running": {}}, ended(137), started=True)]}
    event = {
        "reason": "Killing",
        "message": f"Container sae failed {probe} probe, will be restarted",
        "lastTimestamp": END,
        "involvedObject": {"fieldPath": "spec.initContainers{sae}"},
    }
    assert oddity(pod(status)) is not None
    assert last_failure(pod(status)).reason == "Error"
    assert last_failure(pod(status, events=[event])).reason == reason
    other = event | {"involvedObject": {"fieldPath": "spec.initContainers{hook}"}}
    assert last_failure(pod(status, events=[other])).reason == "Error"


def test_a_job_without_a_pod_is_odd(cluster):
    """What keeps a Job from having a pod is in its events alone."""
    lab = cluster()
    lab.settle()
    assert oddity(lab.observe()).uid == lab.objects["Job", "minilm"]["metadata"]["uid"]
    event = {"reason": "FailedCreate", "message": "violates PodSecurity", "lastTimestamp": END}
    assert last_failure(lab.observe(events=[event])).reason == "FailedCreate"
    assert last_failure(lab.observe()) is None


def test_what_is_young_is_looked_at_again_when_it_is_due(cluster):
    """A Job that has no pod yet may have one in a moment: its events are asked for then."""
    lab = cluster()
    lab.settle()
    lab.objects["Job", "minilm"]["metadata"]["creationTimestamp"] = "2026-01-02T03:04:04Z"
    young = oddity(lab.observe(now=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)))
    assert young.due == 2.0
    assert oddity(lab.observe(now=datetime(2026, 1, 2, 3, 4, 7, tzinfo=UTC))).due == 0.0


def test_nothing_is_odd_about_a_pod_that_runs(pod):
    """No events are asked for while the states say enough."""
    fine = [sidecar(name, {"running": {}}, started=True) for name in ("archiver", "sae", "hook")]
    done = sidecar("prepare", {"terminated": ended(0)})
    host = sidecar("host", {"running": {}}, started=True)
    assert oddity(pod({"initContainerStatuses": [done, *fine], "containerStatuses": [host]})) is None


def test_a_deadline_says_so(cluster):
    """The Job's deadline comes before what it did to the containers."""
    lab = cluster()
    lab.settle()
    lab.run_pod(containerStatuses=[sidecar("host", {"terminated": ended(137)})])
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}
    lab.objects["Job", "minilm"]["status"] = {"conditions": [failed | {"lastTransitionTime": END}]}
    assert last_failure(lab.observe()).reason == "DeadlineExceeded"


def test_a_failure_that_goes_on_is_written_once(pod):
    """A back-off whose count alone moves keeps its words and its time."""
    first = last_failure(
        pod({"initContainerStatuses": [sidecar("prepare", waiting("ImagePullBackOff", "10s"))]})
    )
    again = last_failure(pod({"initContainerStatuses": [sidecar("prepare", waiting("ErrImagePull", "20s"))]}))
    recorded = first.as_status(START, {})
    assert again.as_status(END, recorded) == recorded
    assert recorded["time"] == START
