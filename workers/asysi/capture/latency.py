"""A histogram of durations that costs one list increment per value."""

from collections.abc import Sequence

_FINE = 3  # 2**3 buckets per octave: a bucket is at most 12.5% wide
_SIZE = (65 - _FINE) << _FINE


class LatencyHistogram:
    """Durations in nanoseconds (0 .. 2**63), in buckets at most 12.5 % wide, allocated once."""

    def __init__(self) -> None:
        self._buckets = [0] * _SIZE
        self.sum_ns = 0

    def add(self, nanoseconds: int) -> None:
        """Count one duration."""
        shift = nanoseconds.bit_length() - _FINE - 1
        at = nanoseconds if shift < 0 else (shift << _FINE) + (nanoseconds >> shift)
        self._buckets[at] += 1
        self.sum_ns += nanoseconds

    @property
    def count(self) -> int:
        """Number of durations."""
        return sum(self._buckets)

    def quantile(self, share: float) -> int:
        """Return the upper bound in nanoseconds of the quantile's bucket (0..1); 0 if empty."""
        wanted = share * self.count
        passed = 0
        for at, count in enumerate(self._buckets):
            passed += count
            if count and passed >= wanted:
                return _upper_edge(at)
        return 0

    def cumulative(self, bounds: Sequence[int]) -> list[int]:
        """Return how many durations are <= each of `bounds` (ascending nanoseconds), to bucket precision."""
        result: list[int] = []
        passed, at = 0, 0
        for bound in bounds:
            while at < _SIZE and _upper_edge(at) <= bound:
                passed += self._buckets[at]
                at += 1
            result.append(passed)
        return result


def _upper_edge(at: int) -> int:
    """Return the largest duration that falls into bucket `at`."""
    if at < 1 << _FINE:
        return at
    shift = (at >> _FINE) - 1
    return (((at & ((1 << _FINE) - 1)) + (1 << _FINE) + 1) << shift) - 1
