"""The Job: one pod per attempt, the retry limit, and the failures that are not retried."""

from asysi.contract.runtime import Container, Exit
from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests.kinds import Manifest, PodSettings
from asysi_operator.manifests.labels import QUEUE, metadata, queue_of
from asysi_operator.manifests.names import job_name, rows_name
from asysi_operator.manifests.pod import pipeline_template, pod_template

START_DEADLINE = "asysi.dev/start-deadline-seconds"
"""Annotation: seconds within which the host must start. The Job API has no such deadline."""
TTL = "asysi.dev/ttl-seconds-after-finished"
"""Annotation: seconds after which the operator removes the finished Job. With ttlSecondsAfterFinished, a Job
could be removed before a stopped operator has read its totals, and the experiment would start over."""


def job(experiment: ScanExperiment, settings: PodSettings) -> Manifest:
    """Return the Job.

    Failures are counted per Job, not per index: with backoffLimitPerIndex, a failed pod is kept until its
    successor exists, which cannot happen in a namespace that is being deleted, so both would stay forever.
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
            "podReplacementPolicy": "Failed",  # two attempts must never write the same output
            "podFailurePolicy": {"rules": failure_rules()},
            "template": pod_template(experiment, settings),
        },
    }


def pipeline_job(experiment: ScanExperiment, settings: PodSettings) -> Manifest:
    """Return the pipeline's Job: one index per shard; a restarted shard resumes from its ledger.

    `backoffLimit` applies to all shards together; `job` explains why it is not per index.
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
            "podReplacementPolicy": "Failed",  # two pods must never write the same ledger
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
"""Drain, node loss, node pressure or preemption: not a failure, so it does not count as a restart."""


def _described(experiment: ScanExperiment, name: str) -> Manifest:
    described = metadata(experiment, name)
    if queue := queue_of(experiment):
        described["labels"][QUEUE] = queue
    return described


def _lifecycle(experiment: ScanExperiment) -> Manifest:
    lifecycle = experiment.spec.lifecycle
    deadline = lifecycle.active_deadline_seconds
    return {
        # In a queue, Kueue suspends and resumes the Job and owns this field.
        **({} if queue_of(experiment) else {"suspend": lifecycle.suspend}),
        **({"activeDeadlineSeconds": deadline} if deadline is not None else {}),
    }


def failure_rules() -> list[Manifest]:
    """Return the rules in order; the first match decides.

    Bad configuration fails the Job. An evicted pod has not failed, whatever its containers' exit codes. A
    failed host is retried. A bad verdict by finish alone is not retried: the same stream would give the same
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
