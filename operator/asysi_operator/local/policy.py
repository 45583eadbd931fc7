"""What a pod's exit codes mean for its Job: the podFailurePolicy of the rendered Job. Pure."""

from collections.abc import Mapping, Sequence
from enum import Enum

from asysi_operator.manifests.kinds import Manifest


class Judgement(Enum):
    """What becomes of the Job."""

    COMPLETE = "complete"
    RETRY = "retry"
    """Counts towards the limit of attempts."""
    FAIL = "fail"


def judge(codes: Mapping[str, int], mains: Sequence[str], rules: Sequence[Manifest]) -> Judgement:
    """Return what becomes of the Job.

    Args:
        codes: exit codes of the containers that have ended, by name.
        mains: main containers; all of them at 0 complete the Job.
        rules: `podFailurePolicy.rules`, the first that fits decides; where none fits the attempt counts.
            Those about a pod's conditions fit no process.
    """
    if all(codes.get(name) == 0 for name in mains):
        return Judgement.COMPLETE
    for rule in rules:
        if "onExitCodes" in rule and _fits(rule["onExitCodes"], codes):
            return Judgement.FAIL if rule["action"] == "FailJob" else Judgement.RETRY
    return Judgement.RETRY


def _fits(condition: Manifest, codes: Mapping[str, int]) -> bool:
    code = codes.get(condition["containerName"], 0)
    if code == 0:  # only failures are looked at
        return False
    return (code in condition["values"]) is (condition["operator"] == "In")
