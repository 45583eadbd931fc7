"""Summary of the conditions for tools and tables: Ready, Stalled, reason, duration, history. Pure."""

from collections.abc import Mapping, Sequence

from asysi_operator.manifests.kinds import Manifest
from asysi_operator.observation import ConditionValue, parse_time

HISTORY = 10
"""Past failures kept in addition to the last one."""
_PARTS = ("container", "reason", "exitCode", "attempt")
"""Fields that identify a failure."""
_WELL = {"Running", "Finishing", "Succeeded", "Suspended"}
"""Phases in which an experiment is as requested."""


def ready(phase: str, conditions: Sequence[Manifest]) -> ConditionValue:
    """Return the condition Ready, as kstatus interprets it: a running Job is ready.

    Suspended counts as ready if the spec asks for it; an experiment waiting in a queue does not.
    """
    by_type = {one["type"]: one for one in conditions}
    suspended = by_type.get("Suspended", {}).get("message", "")
    if phase == "Suspended" and not suspended.startswith("lifecycle.suspend"):
        return "False", "Queued", suspended
    if phase in _WELL:
        return "True", phase, _message(phase, by_type)
    if phase == "Unknown":
        return "Unknown", phase, _message(phase, by_type)
    return "False", phase, _message(phase, by_type)


def stalled(conditions: Sequence[Manifest], failure: Mapping[str, object] | None) -> ConditionValue:
    """Return the condition Stalled: whether progress needs user action."""
    by_type = {one["type"]: one for one in conditions}
    if by_type["Accepted"]["status"] == "False":
        return "True", by_type["Accepted"]["reason"], by_type["Accepted"].get("message", "")
    failed = by_type.get("Failed")
    if failed is not None and failed["status"] == "True":
        return "True", failed["reason"], failed.get("message", "")
    if failure is not None and failure.get("reason") == "NameTaken":
        return "True", "NameTaken", str(failure.get("message", ""))
    return "False", "Progressing", "No action is required."


def _message(phase: str, by_type: Mapping[str, Manifest]) -> str:
    """Return the message of the condition that a phase is derived from."""
    kind = {
        "Succeeded": "Complete",
        "Failed": "Failed",
        "Suspended": "Suspended",
        "Refused": "Accepted",
        "Pending": "Scheduled",
    }.get(phase, "Capturing")
    return str(by_type.get(kind, {}).get("message", ""))


def why(phase: str, says: ConditionValue, failure: Mapping[str, object] | None) -> str | None:
    """Return the one-word reason why an experiment is not progressing, or None."""
    if says[0] == "True":
        return says[1]
    if phase in _WELL or failure is None:
        return None
    return str(failure.get("reason"))


def duration(start: str | None, end: str | None, now: str) -> str | None:
    """Return how long the model has run, as kubectl writes it: `95s`, `2m39s`, `3h4m`, `2d5h`."""
    if start is None:
        return None
    seconds = max(0, int((parse_time(end or now) - parse_time(start)).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60}m"
    return f"{minutes}m{seconds % 60}s" if minutes > 1 else f"{seconds}s"


def failures(
    before: Mapping[str, object], found: Manifest | None, phase: str
) -> tuple[Manifest | None, list[Manifest]]:
    """Return the last failure and the past ones: superseded by another failure, or resolved by success.

    Args:
        before: the last recorded status.
        found: the current failure, or None.
        phase: the current phase.
    """
    last: Manifest | None = before.get("lastFailure")  # type: ignore[assignment]
    history: list[Manifest] = list(before.get("failures") or ())  # type: ignore[call-overload]
    now = last if found is None else found
    past = [last] if last and now and not _same(last, now) else []
    if now and phase == "Succeeded":
        past.append(now)
        now = None
    for one in past:
        if not any(_same(one, other) for other in history):
            history.append(one)
    return now, history[-HISTORY:]


def _same(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return all(one.get(part) == other.get(part) for part in _PARTS)
