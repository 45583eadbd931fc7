"""One thing to measure, the same line of words for Python and for C++."""

from dataclasses import astuple, dataclass
from typing import Self

KIB, MIB = 1 << 10, 1 << 20
SIZES = (4 * KIB, 64 * KIB, MIB)
SOURCE_BYTES = 256 * MIB
"""Messages cycle over this much memory, so that no source is warm."""
STAMP_BYTES = 16
"""A message begins with its number and the time at which it was due, 64 bits each; the rest never changes."""
CHUNKS = {size: 32 * MIB // size for size in SIZES}
"""Messages that fit between producer and reader, for everybody: 32 MiB."""
PINS = {4 * KIB: 32, 64 * KIB: 16, MIB: 4}
"""Messages of those that one reader may hold at once."""


@dataclass(frozen=True)
class Task:
    """What a crew of one producer and its readers does for a moment."""

    contestant: str
    kind: str
    """throughput: as fast as it goes, readers use every byte. view: they look at the number only.
    latency: paced."""
    size: int
    """Bytes of a message."""
    readers: int
    guarantee: str
    """lossless: the producer waits for the slowest. drop: it never waits, and what is lost is counted."""
    waiting: str
    """block: readers sleep in the kernel. spin: they ask again and again."""
    seconds: float
    rate: float
    """Messages a second, 0 for as fast as it goes."""
    folder: str
    """Where this task's sockets, rings and samples go; made anew for it."""

    @property
    def chunks(self) -> int:
        return CHUNKS[self.size]

    @property
    def pins(self) -> int:
        return PINS[self.size]

    def line(self) -> str:
        return " ".join(map(str, (*astuple(self), self.chunks, self.pins)))

    @classmethod
    def parse(cls, line: str) -> Self:
        words = line.split()
        return cls(
            words[0],
            words[1],
            int(words[2]),
            int(words[3]),
            words[4],
            words[5],
            float(words[6]),
            float(words[7]),
            words[8],
        )
