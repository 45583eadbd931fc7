"""Which shard of the bus a hook point uses."""

from zlib import crc32


def shard_of(point: str, shards: int) -> int:
    """Return the hook point's shard, 0 to `shards` - 1: the same in every process, release and attempt."""
    return crc32(point.encode()) % shards
