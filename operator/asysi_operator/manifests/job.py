"""The Job: a pod an attempt, so many attempts, and what makes another one pointless."""

from asysi.contract.runtime import Container, Exit
from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests.kinds import Manifest, PodSettings
from asysi_operator.manifests.labels import QUEUE, metadata, queue_of
from asysi_operator.manifests.names import job_name, rows_name
from asysi_operator.manifests.pod import pipeline_template, pod_template

START_DEADLINE = "asysi.dev/start-deadline-seconds"
"""Annotation: seconds in which the host must have started. A Job itself has no such deadline."""
TTL = "asysi.dev/ttl-seconds-after-finished"
"""Annotation: seconds after which the operator removes the finished Job. Kubernetes' own field would remove
it before its totals are read when the operator is away, and the experiment would begin anew."""


def job(experiment: ScanExperiment, settings: PodSettings) -> Manifest:
    """Return the Job.

    Failures are counted for the Job, not for its index: with a limit per index a failed pod is kept until its
    successor is there, and in a namespace that is being deleted none can come, so both would stay for ever.
    """
    lifecycle = experiment.spec.lifecycle
    described = _described(experiment, job_name(experiment))
    seconds = {
        START_DEADLINE: lifecycle.start_deadline_seconds,
        TTL: lifecycle.ttl_seconds_after_finished,
    }
    if annotations := {key: str(value) for key, value in seconds.items() if value is not None}:
        described["annotations"] = annotations
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": described,
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "completionMode": "Indexed",
            **_lifecycle(experiment),
            "backoffLimit": lifecycle.max_restarts,
            "podReplacementPolicy": "Failed",  # two attempts never write one output
            "podFailurePolicy": {"rules": failure_rules()},
            "template": pod_template(experiment, settings),
        },
    }


def pipeline_job(experiment: ScanExperiment, settings: PodSettings) -> Manifest:
    """Return the Job that runs before: one index per shard, and a dead one goes on where its ledger ends.

    All shards together may fail as often as one attempt of the experiment may; see `job` for why not each.
    """
    data = experiment.spec.data
    assert data is not None
    assert data.pipeline is not None
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _described(experiment, rows_name(experiment)),
        "spec": {
            "completions": data.pipeline.shards,
            "parallelism": data.pipeline.parallelism or data.pipeline.shards,
            "completionMode": "Indexed",
            **_lifecycle(experiment),
            "backoffLimit": experiment.spec.lifecycle.max_restarts,
            "podReplacementPolicy": "Failed",  # two pods never write one ledger
            "podFailurePolicy": {
                "rules": [
                    _rule("FailJob", Container.PIPELINE, "In", Exit.CONFIG),
                    _PUT_OUT,
                ]
            },
            "template": pipeline_template(experiment, settings),
        },
    }


_PUT_OUT: Manifest = {
    "action": "Ignore",
    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
}
"""A drained, lost or overfull node, or a pod of higher priority: no failure, so it costs no restart."""


def _described(experiment: ScanExperiment, name: str) -> Manifest:
    described = metadata(experiment, name)
    if queue := queue_of(experiment):
        described["labels"][QUEUE] = queue
    return described


def _lifecycle(experiment: ScanExperiment) -> Manifest:
    lifecycle = experiment.spec.lifecycle
    deadline = lifecycle.active_deadline_seconds
    return {
        # A queue suspends and resumes the Job itself: the field is Kueue's.
        **({} if queue_of(experiment) else {"suspend": lifecycle.suspend}),
        **({"activeDeadlineSeconds": deadline} if deadline is not None else {}),
    }


def failure_rules() -> list[Manifest]:
    """Return the rules in order; the first that fits decides.

    Bad configuration fails the Job. A pod that was put out has not failed, whatever its containers then ended
    with. A dead host is tried again. Where only finish's verdict is bad, the same stream would bring the same
    verdict.
    """
    return [
        *(
            _rule("FailJob", name, "In", Exit.CONFIG)
            for name in (Container.PREPARE, Container.HOST, Container.FINISH)
        ),
        _PUT_OUT,
        _rule("Count", Container.HOST, "NotIn", Exit.OK),
        _rule("FailJob", Container.FINISH, "In", Exit.FAILED),
    ]


def _rule(action: str, container: Container, operator: str, code: Exit) -> Manifest:
    codes = {"containerName": str(container), "operator": operator, "values": [int(code)]}
    return {"action": action, "onExitCodes": codes}
