"""What a run has spent, and what it may spend."""

import threading
from collections.abc import Mapping


class SpendingLimit:
    """Adds up what operators report, by node and name, and compares the sum with limits.

    Args:
        limits: by name of what operators report (`cost`, `total_tokens`, …), how much may be spent.
    """

    def __init__(self, limits: Mapping[str, float] | None = None) -> None:
        self.limits = dict(limits or {})
        self._lock = threading.Lock()
        self._spent: dict[str, dict[str, float]] = {}

    def restore(self, node: str, spent: Mapping[str, float]) -> None:
        """Say what a node had spent before this run."""
        self._spent[node] = dict(spent)

    def spend(self, node: str, usage: Mapping[str, float]) -> None:
        """Add what a node has spent."""
        with self._lock:
            spent = self._spent.setdefault(node, {})
            for name, value in usage.items():
                spent[name] = spent.get(name, 0) + value

    def of(self, node: str) -> dict[str, float]:
        """Return what a node has spent, by name."""
        return dict(self._spent.get(node, {}))

    def spent(self) -> dict[str, float]:
        """Return what all nodes have spent together, by name."""
        total: dict[str, float] = {}
        with self._lock:
            for usage in self._spent.values():
                for name, value in usage.items():
                    total[name] = total.get(name, 0) + value
        return total

    def exhausted(self) -> str | None:
        """Return what has reached its limit, as text; None while nothing has."""
        spent = self.spent()
        over = [
            f"{name} {spent.get(name, 0):g} of {limit:g}"
            for name, limit in self.limits.items()
            if spent.get(name, 0) >= limit
        ]
        return ", ".join(over) or None
