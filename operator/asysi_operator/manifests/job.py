"""The Job: a pod an attempt, so many attempts, and what makes another one pointless."""

from asysi.contract.runtime import Container, Exit
from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests.kinds import Image, Manifest
from asysi_operator.manifests.labels import QUEUE, metadata
from asysi_operator.manifests.names import job_name
from asysi_operator.manifests.pod import pod_template

START_DEADLINE = "asysi.dev/start-deadline-seconds"
"""Annotation: seconds in which the host must have started. A Job itself has no such deadline."""
TTL = "asysi.dev/ttl-seconds-after-finished"
"""Annotation: seconds after which the operator removes the finished Job. Kubernetes' own field would remove
it before its totals are read when the operator is away, and the experiment would begin anew."""


def job(experiment: ScanExperiment, image: Image, first_attempt: int) -> Manifest:
    """Return the Job. It is Indexed, with one index: only then does a pod learn the number of its attempt."""
    lifecycle, queue = experiment.spec.lifecycle, experiment.spec.scheduling.queue_name
    described = metadata(experiment, job_name(experiment))
    if queue:
        described["labels"][QUEUE] = queue
    seconds = {
        START_DEADLINE: lifecycle.start_deadline_seconds,
        TTL: lifecycle.ttl_seconds_after_finished,
    }
    if annotations := {key: str(value) for key, value in seconds.items() if value is not None}:
        described["annotations"] = annotations
    deadline = lifecycle.active_deadline_seconds
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": described,
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "completionMode": "Indexed",
            # A queue suspends and resumes the Job itself.
            **({"suspend": lifecycle.suspend} if lifecycle.suspend or not queue else {}),
            "backoffLimit": lifecycle.max_restarts,
            "backoffLimitPerIndex": lifecycle.max_restarts,
            "podReplacementPolicy": "Failed",  # two attempts never write one output
            "podFailurePolicy": {"rules": failure_rules()},
            **({"activeDeadlineSeconds": deadline} if deadline is not None else {}),
            "template": pod_template(experiment, image, first_attempt),
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
