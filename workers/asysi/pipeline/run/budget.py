"""Usage and budget of a run."""

import threading
from collections.abc import Mapping


class SpendingLimit:
    """Sums the usage that operators report, by node and name, and compares it with limits.

    Args:
        limits: limits by name of reported usage (`cost`, `total_tokens`, …).
    """

    def __init__(self, limits: Mapping[str, float] | None = None) -> None:
        self.limits = dict(limits or {})
        self._lock = threading.Lock()
        self._spent: dict[str, dict[str, float]] = {}

    def restore(self, node: str, spent: Mapping[str, float]) -> None:
        """Set a node's usage before this run."""
        self._spent[node] = dict(spent)

    def spend(self, node: str, usage: Mapping[str, float]) -> None:
        """Add usage of a node."""
        with self._lock:
            spent = self._spent.setdefault(node, {})
            for name, value in usage.items():
                spent[name] = spent.get(name, 0) + value

    def of(self, node: str) -> dict[str, float]:
        """Return a node's usage, by name."""
        return dict(self._spent.get(node, {}))

    def spent(self) -> dict[str, float]:
        """Return the total usage of all nodes, by name."""
        total: dict[str, float] = {}
        with self._lock:
            for usage in self._spent.values():
                for name, value in usage.items():
                    total[name] = total.get(name, 0) + value
        return total

    def exhausted(self) -> str | None:
        """Describe the limits that are reached, or return None."""
        spent = self.spent()
        over = [
            f"{name} {spent.get(name, 0):g} of {limit:g}"
            for name, limit in self.limits.items()
            if spent.get(name, 0) >= limit
        ]
        return ", ".join(over) or None
