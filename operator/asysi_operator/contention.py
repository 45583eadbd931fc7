"""Back-off for objects that another client keeps changing, and who that client is. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from asysi_operator.reconcile import Apply

FIRST_PATIENCE, LAST_PATIENCE = 1.0, 300.0
"""First and maximum delay in seconds between reverts of an object; doubled each time."""
SETTLED_SECONDS = 60.0
"""Seconds that an object must stay as desired, after its delay has passed, until its record is dropped."""
CONTENDED = 3
"""Reverts of an object after which contention is reported: a single change is a mistake by hand."""
Name = tuple[str, str]
"""Kind and name."""


@dataclass
class _Contest:
    count: int = 0
    until: float = 0.0
    message: str = ""


@dataclass
class Contests:
    """Recent reverts of one experiment's objects. Times are monotonic seconds."""

    _known: dict[Name, _Contest] = field(default_factory=dict)

    def wait(self, action: Apply, now: float) -> float:
        """Return the seconds until an object may be reverted; 0 if now, or if the action reverts nothing."""
        known = self._known.get(_name(action)) if action.undoes else None
        return max(0.0, known.until - now) if known else 0.0

    def undone(self, action: Apply, now: float) -> None:
        """Record that an object was reverted, whether or not the write changed anything."""
        if action.undoes is None:
            return
        contest = self._known.setdefault(_name(action), _Contest())
        contest.count += 1
        contest.until = now + min(LAST_PATIENCE, FIRST_PATIENCE * 2.0 ** min(contest.count - 1, 16))
        contest.message = f"{' '.join(_name(action))}: {action.undoes}"

    def settle(self, contested: Collection[Name], now: float) -> float | None:
        """Drop the records of settled objects; returns the seconds until the next one may settle.

        Args:
            contested: objects that differ from the desired state.
            now: current time.
        """
        waits = []
        for name, contest in list(self._known.items()):
            left = contest.until + SETTLED_SECONDS - now
            if name not in contested and left <= 0:
                del self._known[name]
            elif name not in contested:
                waits.append(left)
        return min(waits, default=None)

    def said(self) -> str | None:
        """Return which fields are contended and by whom, or None."""
        told = [one.message for one in self._known.values() if one.count >= CONTENDED]
        return "; ".join(sorted(told)) or None


def contested(actions: Iterable[object]) -> set[Name]:
    """Return the objects that a plan would revert."""
    return {_name(one) for one in actions if isinstance(one, Apply) and one.undoes}


def _name(action: Apply) -> Name:
    return action.manifest["kind"], action.manifest["metadata"]["name"]
