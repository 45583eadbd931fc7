"""Crash-loop back-off of sidecars, as in Kubernetes (10 s to 5 min) but shorter."""

FIRST = 0.2
"""Seconds to wait after the first crash; doubled with each further one."""
LONGEST = 5.0
HEALTHY = 10.0
"""Seconds of uptime after which the next crash counts as the first."""
MAX_CRASHES = 10
"""Consecutive crashes after which the run fails; a cluster would retry until a deadline."""


def crashes_after(before: int, lived: float) -> int:
    """Return the number of consecutive crashes, given the number before and the uptime in seconds."""
    return 1 if lived >= HEALTHY else before + 1


def delay(crashes: int) -> float:
    """Return the seconds to wait after `crashes` consecutive crashes (>= 1)."""
    return min(LONGEST, FIRST * 2.0 ** (crashes - 1))
