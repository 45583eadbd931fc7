"""The messages: 256 MiB, created before the crew forks, with the expected digest of each."""

import ctypes
import mmap
from functools import cached_property
from struct import Struct

import numpy as np
import xxhash
from task import CHUNKS, SOURCE_BYTES, STAMP_BYTES

STAMP = Struct("<QQ")


class Memory:
    """The bytes behind every Source, shared by the crew's processes."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, SOURCE_BYTES)
        words = np.frombuffer(self._map, np.uint64)
        words[:] = np.random.default_rng(0).integers(0, 1 << 63, len(words), np.uint64)
        self.unstamp(min(CHUNKS))
        self.whole = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._digests: dict[int, list[int]] = {}

    def unstamp(self, size: int) -> None:
        """Remove the stamps, which lie within the messages of the other sizes."""
        words = np.frombuffer(self._map, np.uint64).reshape(-1, size // 8)
        words[:, : STAMP_BYTES // 8] = 0

    def digests(self, size: int) -> list[int]:
        """Return XXH3 of each message of `size` bytes, without its stamp."""
        if size not in self._digests:
            self._digests[size] = [
                xxhash.xxh3_64_intdigest(self.whole[at + STAMP_BYTES : at + size])
                for at in range(0, SOURCE_BYTES, size)
            ]
        return self._digests[size]


class Source:
    """The same memory as messages of one size; a sender stamps them in place."""

    def __init__(self, memory: Memory, size: int) -> None:
        self.memory, self.size, self.count = memory, size, SOURCE_BYTES // size

    @cached_property
    def digests(self) -> list[int]:
        return self.memory.digests(self.size)

    def touch(self) -> None:
        """Map every page into this process, so that no measurement pays for it."""
        np.frombuffer(self.memory.whole, np.uint8)[:: mmap.PAGESIZE].sum()
