"""The ceiling: the same copies and reads in the same processes, without any synchronisation.

Producer and readers walk the same number of chunks of one shared mapping, each at its own pace and
independently of each other. No protocol can deliver faster than the slower of the two.
"""

import mmap
import os
from pathlib import Path

import transport
from source import Source
from task import Task


def chunks_of(task: Task) -> list[memoryview]:
    """Map the chunks, populated, and return each as a buffer; the first process creates the file."""
    path = Path(task.folder) / "chunks"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.posix_fallocate(file, 0, task.chunks * task.size)
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        whole = memoryview(mmap.mmap(file, task.chunks * task.size, flags=flags))
    finally:
        os.close(file)
    return [whole[at : at + task.size] for at in range(0, len(whole), task.size)]


def messages(task: Task) -> int:
    """Return the number of messages for about `task.seconds`, at an estimated 0.6 µs and 10 GB/s."""
    if task.rate:
        return int(task.seconds * task.rate)
    return int(task.seconds / (0.6e-6 + task.size / 10e9))


class Sender(transport.Sender):
    def __init__(self, task: Task, source: Source, queues: list) -> None:
        self.places, self.whole, self.size, self.next = chunks_of(task), source.memory.whole, task.size, 0

    def push(self, index: int) -> bool:
        at = index * self.size
        self.places[self.next][:] = self.whole[at : at + self.size]
        self.next += 1
        if self.next == len(self.places):
            self.next = 0
        return True
