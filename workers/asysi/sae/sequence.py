"""Log of consumed packets, which a replay needs to reproduce bit-identical autoencoders."""

Ranges = dict[str, list[list[int]]]
"""By "attempt/shard": [first, last] sequence numbers, both included, in the order of consumption."""


class SequenceLog:
    """The consumed packets as ranges: sequence numbers of a shard have no gaps except for lapped packets."""

    def __init__(self, ranges: Ranges | None = None) -> None:
        self.ranges: Ranges = {key: [list(pair) for pair in pairs] for key, pairs in (ranges or {}).items()}

    def add(self, attempt: int, shard: int, sequence: int) -> None:
        """Record a packet."""
        pairs = self.ranges.setdefault(f"{attempt}/{shard}", [])
        if pairs and pairs[-1][1] + 1 == sequence:
            pairs[-1][1] = sequence
        else:
            pairs.append([sequence, sequence])
