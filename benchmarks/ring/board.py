"""A few shared 64-bit words for a crew at work: when to start, how much was sent."""

import mmap
import os
import time
from pathlib import Path

OPEN = (1 << 64) - 1


class Board:
    """Eight 64-bit words in `folder`."""

    def __init__(self, folder: str) -> None:
        file = os.open(Path(folder) / "board", os.O_RDWR | os.O_CREAT)
        os.ftruncate(file, mmap.PAGESIZE)
        self.words = memoryview(mmap.mmap(file, mmap.PAGESIZE)).cast("Q")
        os.close(file)

    def reset(self) -> None:
        self.words[0] = OPEN
        self.words[1] = 0

    @property
    def sent(self) -> int:
        """Total number of messages sent, OPEN as long as more may come."""
        return self.words[0]

    @sent.setter
    def sent(self, count: int) -> None:
        self.words[0] = count

    def start(self, at_ns: int) -> None:
        self.words[1] = at_ns

    def wait_for_start(self) -> int:
        """Wait until shortly before the start; return its CLOCK_MONOTONIC time in ns."""
        until = time.monotonic() + 30
        while not self.words[1]:
            if time.monotonic() > until:
                raise TimeoutError("nobody gave the start")
            time.sleep(1e-3)
        return self.words[1]
