"""Objects that somebody else changes each time they are put back: ever more patience, and who it is. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from asysi_operator.reconcile import Apply

FIRST_PATIENCE, LAST_PATIENCE = 1.0, 300.0
"""Seconds between the first two times that an object is put back, and at the most: doubled each time."""
SETTLED_SECONDS = 60.0
"""Seconds that an object must stay as it is wanted, beyond its patience, for all to be forgotten."""
CONTENDED = 3
"""Times that an object is put back until that is said: once is a mistake that somebody made."""
Name = tuple[str, str]
"""Kind and name."""


@dataclass
class _Contest:
    count: int = 0
    until: float = 0.0
    message: str = ""


@dataclass
class Contests:
    """What of one experiment's objects was put back lately. Times are monotonic seconds."""

    _known: dict[Name, _Contest] = field(default_factory=dict)

    def wait(self, action: Apply, now: float) -> float:
        """Return the seconds until an object may be put back, 0 for now or when nothing is put back."""
        known = self._known.get(_name(action)) if action.undoes else None
        return max(0.0, known.until - now) if known else 0.0

    def undone(self, action: Apply, now: float) -> None:
        """Take in that an object was put back, whether or not that changed anything."""
        if action.undoes is None:
            return
        contest = self._known.setdefault(_name(action), _Contest())
        contest.count += 1
        contest.until = now + min(LAST_PATIENCE, FIRST_PATIENCE * 2.0 ** min(contest.count - 1, 16))
        contest.message = f"{' '.join(_name(action))}: {action.undoes}"

    def settle(self, contested: Collection[Name], now: float) -> float | None:
        """Forget what has stayed as wanted; returns the seconds until there may be more to forget.

        Args:
            contested: objects that are not as they are wanted.
            now: the time.
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
        """Return what is contended and by whom, None when nothing is."""
        told = [one.message for one in self._known.values() if one.count >= CONTENDED]
        return "; ".join(sorted(told)) or None


def contested(actions: Iterable[object]) -> set[Name]:
    """Return the objects that a plan would put back."""
    return {_name(one) for one in actions if isinstance(one, Apply) and one.undoes}


def _name(action: Apply) -> Name:
    return action.manifest["kind"], action.manifest["metadata"]["name"]
