"""CPU lists in the format of `taskset -c`: `0,2-3`."""

from collections.abc import Iterable

RANGE_LIMIT = 4096
"""Maximum length of a range; no machine has more CPUs."""


def parse_cpu_list(text: str) -> frozenset[int]:
    """Return the CPUs in a list; empty if a range is implausibly long."""
    found: set[int] = set()
    for part in text.split(","):
        first, _dash, last = part.partition("-")
        if int(last or first) - int(first) > RANGE_LIMIT:
            return frozenset()
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Return CPUs as a list; the inverse of `parse_cpu_list`."""
    runs: list[list[int]] = []
    for number in sorted(cpus):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
