"""The size of a stream, as planned from the spec, whatever carries it."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

CAPTURE_CHUNK = 1 << 20
"""Maximum bytes of a captured packet."""
BUS_CHUNK = 1 << 18
"""Maximum bytes of a packet on the bus."""
PINS = 16
"""Chunks of a shard that one reader can hold at once; the bus keeps them apart from what can be unread."""


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """The geometry of a stream. A chunk holds one packet."""

    folder: PurePosixPath
    """Its name: path of a ring relative to ASYSI_SHM."""
    shards: int
    chunks: int
    """Chunks per shard."""
    chunk_bytes: int
    readers: tuple[str, ...]
    accounts: int
    policy: Literal["drop_new", "overwrite"]

    @property
    def depth(self) -> int:
        """Maximum number of unread chunks per shard; a ring needs at least 1."""
        return self.chunks if self.policy == "drop_new" else self.chunks - len(self.readers) * PINS - 1

    @property
    def smallest(self) -> int:
        """Minimum size in bytes of a bus with these shards and readers."""
        return self.shards * (len(self.readers) * PINS + 2) * self.chunk_bytes
