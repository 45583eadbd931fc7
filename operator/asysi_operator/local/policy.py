"""Evaluates the rendered Job's podFailurePolicy on a pod's exit codes. Pure."""

from collections.abc import Mapping, Sequence
from enum import Enum

from asysi_operator.manifests.kinds import Manifest


class Judgement(Enum):
    """Outcome for the Job."""

    COMPLETE = "complete"
    RETRY = "retry"
    """Counts towards the retry limit."""
    FAIL = "fail"


def judge(codes: Mapping[str, int], mains: Sequence[str], rules: Sequence[Manifest]) -> Judgement:
    """Return the outcome for the Job.

    Args:
        codes: exit codes of the containers that have ended, by name.
        mains: main containers; the Job is complete if all of them exit with 0.
        rules: `podFailurePolicy.rules`; the first match decides, and without a match the attempt counts.
            Rules on pod conditions never match a process.
    """
    if all(codes.get(name) == 0 for name in mains):
        return Judgement.COMPLETE
    for rule in rules:
        if "onExitCodes" in rule and _fits(rule["onExitCodes"], codes):
            return Judgement.FAIL if rule["action"] == "FailJob" else Judgement.RETRY
    return Judgement.RETRY


def _fits(condition: Manifest, codes: Mapping[str, int]) -> bool:
    code = codes.get(condition["containerName"], 0)
    if code == 0:  # rules apply to failures only
        return False
    return (code in condition["values"]) is (condition["operator"] == "In")
