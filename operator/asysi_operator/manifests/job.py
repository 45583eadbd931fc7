"""The Job: a pod an attempt, so many attempts, and what makes another one pointless."""

from asysi.contract.runtime import Container, Exit
from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import QUEUE, metadata
from asysi_operator.manifests.names import job_name
from asysi_operator.manifests.pod import pod_template

START_DEADLINE = "asysi.dev/start-deadline-seconds"
"""Annotation: seconds in which the host must have started. A Job itself has no such deadline."""


def job(experiment: ScanExperiment, image: str) -> Manifest:
    """Return the Job. It is Indexed, with one index: only then does a pod learn the number of its attempt."""
    lifecycle, queue = experiment.spec.lifecycle, experiment.spec.scheduling.queue_name
    described = metadata(experiment, job_name(experiment))
    if queue:
        described["labels"][QUEUE] = queue
    if lifecycle.start_deadline_seconds is not None:
        described["annotations"] = {START_DEADLINE: str(lifecycle.start_deadline_seconds)}
    optional = {
        "activeDeadlineSeconds": lifecycle.active_deadline_seconds,
        "ttlSecondsAfterFinished": lifecycle.ttl_seconds_after_finished,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": described,
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "completionMode": "Indexed",
            "suspend": lifecycle.suspend,
            "backoffLimit": lifecycle.max_restarts,
            "backoffLimitPerIndex": lifecycle.max_restarts,
            "podReplacementPolicy": "Failed",  # two attempts never write one output
            "podFailurePolicy": {"rules": failure_rules()},
            **{key: value for key, value in optional.items() if value is not None},
            "template": pod_template(experiment, image),
        },
    }


def failure_rules() -> list[Manifest]:
    """Return the rules in order; the first that fits decides.

    Bad configuration fails the Job. A dead host is tried again. Where only finish's verdict is bad, the same
    stream would bring the same verdict.
    """
    return [
        *(
            _rule("FailJob", name, "In", Exit.CONFIG)
            for name in (Container.PREPARE, Container.HOST, Container.FINISH)
        ),
        _rule("Count", Container.HOST, "NotIn", Exit.OK),
        _rule("FailJob", Container.FINISH, "In", Exit.FAILED),
    ]


def _rule(action: str, container: Container, operator: str, code: Exit) -> Manifest:
    codes = {"containerName": str(container), "operator": operator, "values": [int(code)]}
    return {"action": action, "onExitCodes": codes}
