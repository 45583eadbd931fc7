"""The minimum for a lossless handover: the copies and reads of the ceiling, plus one counter per process.

It has no headers, pins, ledger or crash safety, and never sleeps. The difference to the ceiling is the cost
of moving bytes from one processor to another on this machine.
"""

import mmap
import os
import time
from pathlib import Path

import ceiling
import transport
from source import Source
from task import Task
from transport import PATIENCE, StalledError, Use

APART = 16
"""Words from one counter to the next: two cache lines."""


def counters_of(task: Task) -> memoryview:
    """Map the counters, the producer's first."""
    file = os.open(Path(task.folder) / "counters", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(file, 0, mmap.PAGESIZE)
    words = memoryview(mmap.mmap(file, mmap.PAGESIZE)).cast("Q")
    os.close(file)
    return words


class Sender(ceiling.Sender):
    def __init__(self, task: Task, source: Source, queues: list) -> None:
        super().__init__(task, source, queues)
        self.words, self.places_of_readers = counters_of(task), [APART * (1 + i) for i in range(task.readers)]
        self.sent, self.limit = 0, task.chunks

    def push(self, index: int) -> bool:
        if self.sent == self.limit:
            self.wait()
        super().push(index)
        self.sent += 1
        self.words[0] = self.sent
        return True

    def wait(self) -> None:
        until = time.monotonic() + PATIENCE
        while self.sent == self.limit:
            slowest = min(self.words[place] for place in self.places_of_readers)
            self.limit = slowest + len(self.places)
            os.sched_yield()
            if time.monotonic() > until:
                raise StalledError


class Receiver(transport.Receiver):
    def __init__(self, task: Task, reader: int, queues: list) -> None:
        self.places, self.words, self.own = ceiling.chunks_of(task), counters_of(task), APART * (1 + reader)
        self.read = 0

    def pull(self, timeout: float, use: Use) -> int:
        there = self.words[0] - self.read
        if not there:
            os.sched_yield()
        for _ in range(there):
            use(self.places[self.read % len(self.places)])
            self.read += 1
            self.words[self.own] = self.read
        return there
