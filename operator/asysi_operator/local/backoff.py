"""How long a crashed sidecar waits: the crash-loop back-off of Kubernetes (10 s to 5 min), made short."""

FIRST = 0.2
"""Seconds after the first crash; each further one doubles it."""
LONGEST = 5.0
HEALTHY = 10.0
"""Seconds of life after which the next crash counts as the first."""
PATIENCE = 10
"""Crashes in a row after which the run is given up; a cluster would go on until a deadline."""


def crashes_after(before: int, lived: float) -> int:
    """Return the crashes in a row, given those before and how many seconds the process lived."""
    return 1 if lived >= HEALTHY else before + 1


def delay(crashes: int) -> float:
    """Return the seconds to wait after so many crashes in a row (>= 1)."""
    return min(LONGEST, FIRST * 2.0 ** (crashes - 1))
