"""Lists of processors as in `taskset -c`: `0,2-3`."""

from collections.abc import Iterable

RANGE_LIMIT = 4096
"""Processors that one range may name; a longer one is not of a machine."""


def processors(text: str) -> frozenset[int]:
    """Return the processors in a list; nothing for one with a range that is too long to be true."""
    found: set[int] = set()
    for part in text.split(","):
        first, _dash, last = part.partition("-")
        if int(last or first) - int(first) > RANGE_LIMIT:
            return frozenset()
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def listed(cpus: Iterable[int]) -> str:
    """Return processors as a list; `processors` is its inverse."""
    runs: list[list[int]] = []
    for number in sorted(cpus):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
