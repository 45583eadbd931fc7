"""`why`: from what is observed to the sentence that says what to do."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi_operator.plugin.diagnosis import explain
from asysi_operator.plugin.experiment_view import ExperimentView

Tree = dict[str, Any]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SPEC: Tree = {
    "model": {"uri": "hf://a/b"},
    "data": {"uri": "jsonl:///inputs/texts/a.jsonl"},
    "inputs": [{"claim": "texts"}],
}
OPERATOR: Tree = {
    "metadata": {"name": "asysi", "namespace": "asysi", "uid": "o1"},
    "spec": {"template": {"spec": {"containers": [{"args": ["python", "-m", "asysi_operator"]}]}}},
    "status": {"readyReplicas": 1},
}
JOB: Tree = {
    "metadata": {
        "name": "minilm", "uid": "j1", "creationTimestamp": "2026-01-02T03:00:00Z",
        "ownerReferences": [{"uid": "e1"}],
    },
    "spec": {"suspend": False},
}  # fmt: skip
CLAIM: Tree = {"metadata": {"name": "texts", "uid": "c1"}, "spec": {}, "status": {"phase": "Bound"}}


def experiment(phase: str, conditions: Tree | None = None, spec: Tree | None = None, **status: Any) -> Tree:
    """Return an experiment with a status; conditions are {type: (status, reason, message)}."""
    found = [
        {"type": kind, "status": says[0], "reason": says[1], "message": says[2]}
        for kind, says in (conditions or {}).items()
    ]
    return {
        "metadata": {"name": "minilm", "namespace": "lab", "uid": "e1"},
        "spec": {**SPEC, **(spec or {})},
        "status": {"phase": phase, "conditions": found, **status},
    }


def pod(scheduled: tuple[str, str, str] = ("True", "", ""), **states: Tree) -> Tree:
    """Return the experiment's pod, with the state of each container that is named."""
    condition = {
        "type": "PodScheduled",
        "status": scheduled[0],
        "reason": scheduled[1],
        "message": scheduled[2],
    }
    return {
        "metadata": {
            "name": "minilm-0-abc", "uid": "p1", "creationTimestamp": "2026-01-02T03:01:00Z",
            "ownerReferences": [{"uid": "j1"}],
        },
        "spec": {"nodeName": "node-1", "containers": []},
        "status": {
            "phase": "Pending",
            "conditions": [condition],
            "containerStatuses": [{"name": name, "state": state} for name, state in states.items()],
        },
    }  # fmt: skip


def event(uid: str, reason: str, message: str) -> Tree:
    """Return a warning about an object."""
    return {"type": "Warning", "reason": reason, "message": message, "involvedObject": {"uid": uid},
            "lastTimestamp": "2026-01-02T03:02:00Z"}  # fmt: skip


WELL = ExperimentView(experiment("Pending"), NOW, [JOB], [], [CLAIM], [], [], [OPERATOR])
"""Accepted, with a Job, its input and an operator; each case changes one thing."""
QUOTA = (
    'Error creating: pods "minilm-0-x" is forbidden: exceeded quota: team, requested: requests.cpu=4, '
    "used: requests.cpu=2, limited: requests.cpu=4"
)


@dataclass(frozen=True)
class Case:
    """What is observed, and what the first sentence must say."""

    seen: ExperimentView
    says: tuple[str, ...]


CASES = {
    "unschedulable": Case(
        replace(WELL, pods=[pod(("False", "Unschedulable", "0/1 nodes are available: 1 Insufficient cpu."))]),
        ("Unschedulable: 0/1 nodes are available: 1 Insufficient cpu", "ask for less"),
    ),
    "image": Case(
        replace(WELL, pods=[pod(prepare={"waiting": {"reason": "ErrImagePull", "message": "not found"}})]),
        ("prepare: ImagePullBackOff: not found", "workerImage"),
    ),
    "secret that is not there": Case(
        replace(
            WELL,
            pods=[
                pod(
                    prepare={
                        "waiting": {
                            "reason": "CreateContainerConfigError",
                            "message": 'secret "hub" not found',
                        }
                    }
                )
            ],
        ),
        ('CreateContainerConfigError: secret "hub" not found', "create the object that the message names"),
    ),
    "quota": Case(
        replace(WELL, events=[event("j1", "FailedCreate", QUOTA)]),
        (
            "The quota team of namespace lab has no room",
            "requested: requests.cpu=4",
            "limited: requests.cpu=4",
        ),
    ),
    "pod security": Case(
        replace(
            WELL,
            events=[
                event(
                    "j1",
                    "FailedCreate",
                    'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
                )
            ],
        ),
        ("Pod Security's level restricted:latest", "runAsNonRoot"),
    ),
    "another admission rule": Case(
        replace(WELL, events=[event("j1", "FailedCreate", "admission webhook denied: no")]),
        ("may not make its pod: admission webhook denied",),
    ),
    "input claim missing": Case(
        replace(WELL, claims=[]),
        ("The claim texts does not exist in namespace lab", "asysi cluster put texts"),
    ),
    "claim without a volume": Case(
        replace(
            WELL,
            claims=[{**CLAIM, "status": {"phase": "Pending"}}],
            events=[
                event("c1", "FailedBinding", "no persistent volumes available and no storage class is set")
            ],
        ),
        ("The claim texts gets no volume (storage class none)", "no storage class is set"),
    ),
    "claim that lost its volume": Case(
        replace(WELL, claims=[{**CLAIM, "status": {"phase": "Lost"}}]),
        ("texts has lost its volume",),
    ),
    "a claim that waits for its pod is not trouble": Case(
        replace(
            WELL,
            claims=[{**CLAIM, "status": {"phase": "Pending"}}],
            events=[event("c1", "WaitForFirstConsumer", "waiting for first consumer")],
        ),
        ("The Job minilm has no pod yet",),
    ),
    "claim being deleted": Case(
        replace(
            WELL,
            claims=[{**CLAIM, "metadata": CLAIM["metadata"] | {"deletionTimestamp": "2026-01-02T03:00:00Z"}}],
            pods=[pod(host={"running": {}})],
        ),
        ("ClaimTerminating", "asysi cluster fetch minilm"),
    ),
    "refused": Case(
        replace(
            WELL, experiment=experiment("Refused", {"Accepted": ("False", "Invalid", "spec.model.uri is x.")})
        ),
        ("The spec of minilm is refused: spec.model.uri is x. Correct it",),
    ),
    "bad configuration": Case(
        replace(
            WELL,
            experiment=experiment(
                "Failed",
                {"Failed": ("True", "PodFailurePolicy", "rule 0")},
                lastFailure={
                    "reason": "BadConfiguration",
                    "container": "prepare",
                    "message": "no such model",
                },
            ),
        ),
        ("minilm has failed. prepare: BadConfiguration: no such model", "correct the spec"),
    ),
    "out of memory": Case(
        replace(
            WELL,
            experiment=experiment(
                "Failed",
                {"Failed": ("True", "BackoffLimitExceeded", "")},
                lastFailure={"reason": "OOMKilled", "container": "sae", "message": "exit code 137"},
            ),
        ),
        ("sae: OOMKilled", "raise the memory of sae"),
    ),
    "suspended by itself": Case(
        replace(WELL, experiment=experiment("Suspended", spec={"lifecycle": {"suspend": True}})),
        ("suspended by its own spec (lifecycle.suspend)", "kubectl patch scanx minilm"),
    ),
    "waits in Kueue's queue": Case(
        replace(
            WELL,
            experiment=experiment("Suspended", spec={"scheduling": {"queueName": "gpus"}}),
            workloads=[
                {
                    "metadata": {"name": "w", "ownerReferences": [{"uid": "j1"}]},
                    "status": {
                        "conditions": [
                            {
                                "type": "QuotaReserved",
                                "status": "False",
                                "message": "insufficient quota for cpu",
                            }
                        ]
                    },
                }
            ],
        ),
        ("waits for its queue gpus: Kueue has not admitted it: insufficient quota for cpu",),
    ),
    "queue without Kueue": Case(
        replace(WELL, experiment=experiment("Suspended", spec={"scheduling": {"queueName": "gpus"}})),
        ("Kueue has made no Workload",),
    ),
    "queue by the label": Case(
        replace(
            WELL,
            experiment=experiment("Suspended")
            | {
                "metadata": {
                    "name": "minilm",
                    "namespace": "lab",
                    "uid": "e1",
                    "labels": {"kueue.x-k8s.io/queue-name": "cpus"},
                }
            },
        ),
        ("waits for its queue cpus",),
    ),
    "Workloads that may not be seen": Case(
        replace(
            WELL,
            experiment=experiment("Suspended", spec={"scheduling": {"queueName": "gpus"}}),
            hidden={"workloads": "you may not list workloads"},
        ),
        ("the cause cannot be read: you may not list workloads",),
    ),
    "no operator": Case(
        replace(WELL, experiment={**experiment(""), "status": {}}, operators=[]),
        ("No operator is installed", "helm install"),
    ),
    "operator not ready": Case(
        replace(WELL, experiment={**experiment(""), "status": {}}, operators=[{**OPERATOR, "status": {}}]),
        ("The operator is not ready", "kubectl --namespace asysi describe deployment asysi"),
    ),
    "operator of other namespaces": Case(
        replace(
            WELL,
            experiment={**experiment(""), "status": {}},
            operators=[
                {
                    **OPERATOR,
                    "spec": {
                        "template": {"spec": {"containers": [{"args": ["--namespace=a", "--namespace=b"]}]}}
                    },
                }
            ],
        ),
        ("No operator watches namespace lab: they watch a, b",),
    ),
    "not looked at yet": Case(
        replace(WELL, experiment={**experiment(""), "status": {}}),
        ("No operator has processed minilm yet",),
    ),
    "being deleted": Case(
        replace(
            WELL,
            pods=[pod()],
            experiment={
                **experiment("Running"),
                "metadata": {
                    "name": "minilm",
                    "namespace": "lab",
                    "uid": "e1",
                    "deletionTimestamp": "2026-01-02T03:00:00Z",
                },
            },
        ),
        ("minilm is being deleted", "minilm-0-abc"),
    ),
    "scheduler is at it": Case(
        replace(WELL, pods=[pod(("False", "SchedulingGated", ""))]),
        ("has not placed minilm-0-abc yet",),
    ),
    "images come": Case(
        replace(
            WELL,
            experiment=experiment("Preparing"),
            pods=[pod(prepare={"waiting": {"reason": "PodInitializing"}})],
        ),
        ("has a node, and prepare is being started",),
    ),
    "runs": Case(
        replace(
            WELL,
            experiment=experiment("Running", counters={"captured": 12345}),
            pods=[pod(host={"running": {}})],
        ),
        ("Nothing holds it up: minilm runs. 12,345 rows are captured.",),
    ),
    "succeeded": Case(
        replace(WELL, experiment=experiment("Succeeded", duration="2m")),
        ("minilm has succeeded after 2m: `asysi cluster report minilm`",),
    ),
    "contended": Case(
        replace(
            WELL,
            experiment=experiment("Pending", {"Contended": ("True", "ChangedByOthers", "Job by robot")}),
            pods=[pod()],
        ),
        ("has a node",),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_holds_it_up_is_the_first_sentence(case):
    """Each kind of trouble is named first, with what to do."""
    first = explain(case.seen)[0]
    for part in case.says:
        assert part in first


def test_a_dead_operator_makes_the_rest_old():
    """Beside what holds it up stands that nobody looks after it, so that an old status does not look new."""
    said = explain(replace(CASES["runs"].seen, operators=[]))
    assert "No operator is installed" in said[1]
    assert "may be out of date" in said[1]


def test_an_answer_about_an_older_spec_says_so():
    """After an edit that nobody has looked at yet the status is about the spec before."""
    edited = experiment("Refused", {"Accepted": ("False", "Invalid", "x")}, observedGeneration=1)
    for generation, older in ((1, False), (2, True)):
        edited["metadata"] = edited["metadata"] | {"generation": generation}
        said = explain(replace(WELL, experiment=edited))
        assert ("before its last edit" in " ".join(said)) is older


def test_contention_and_warnings_are_told_too():
    """What does not hold it up but must be known follows."""
    assert "Job by robot" in explain(CASES["contended"].seen)[1]
    warned = experiment("Succeeded", {"DataSound": ("False", "RowsLapped", "3 % lapped")})
    assert "RowsLapped: 3 % lapped" in explain(replace(WELL, experiment=warned))[1]


STATES = st.sampled_from([{}, {"running": {}}, {"terminated": {"exitCode": 1}}, {"waiting": {}},
                          {"waiting": {"reason": "CrashLoopBackOff"}}])  # fmt: skip
PHASES = st.sampled_from(
    [
        "Pending",
        "Refused",
        "Suspended",
        "Preparing",
        "Running",
        "Finishing",
        "Terminating",
        "Unknown",
        "Succeeded",
        "Failed",
        "",
    ]
)


@given(PHASES, st.dictionaries(st.sampled_from(["prepare", "sae", "host", "finish"]), STATES), st.booleans())
def test_there_is_always_a_sentence(phase, states, alive):
    """Whatever is seen, `why` says something, and never fails."""
    seen = replace(
        WELL, experiment=experiment(phase), pods=[pod(**states)], operators=[OPERATOR] if alive else []
    )
    assert all(sentence.strip() for sentence in explain(seen))
