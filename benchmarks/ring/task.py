"""One measurement, with the same one-line text form for Python and C++."""

from dataclasses import astuple, dataclass
from typing import Self

KIB, MIB = 1 << 10, 1 << 20
SIZES = (4 * KIB, 64 * KIB, MIB)
SOURCE_BYTES = 256 * MIB
"""Messages cycle through this much memory, so that the source is never cached."""
STAMP_BYTES = 16
"""A message begins with its number and the time at which it was due, 64 bits each; the rest never changes."""
CHUNKS = {size: 32 * MIB // size for size in SIZES}
"""Messages that fit between producer and reader, for every contestant: 32 MiB."""
PINS = {4 * KIB: 32, 64 * KIB: 16, MIB: 4}
"""Maximum number of messages that one reader may hold at once."""


@dataclass(frozen=True)
class Task:
    """A task for a crew of one producer and its readers."""

    contestant: str
    kind: str
    """throughput: as fast as possible, readers use every byte. view: readers read only the number.
    latency: paced."""
    size: int
    """Bytes of a message."""
    readers: int
    guarantee: str
    """lossless: the producer waits for the slowest reader. drop: it never waits, and losses are counted."""
    waiting: str
    """block: readers sleep in the kernel. spin: readers poll."""
    seconds: float
    rate: float
    """Messages per second, 0 for as fast as possible."""
    folder: str
    """Folder for this task's sockets, rings and samples; created for each task."""

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
