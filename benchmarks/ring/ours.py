"""The ring from Python. Readers pull batches; a lossless producer polls the readers' cursors."""

import os
import time
from pathlib import Path

import numpy as np
import transport
from source import Source
from task import Task
from transport import PATIENCE, StalledError, Use

from asysi.bus.packet import HEADER_DTYPE, Dtype
from asysi_ring import Control, Reader, Writer, create

ROOM_BEFORE_PAYLOAD = 512
"""Header and the record of one row, including padding."""


LOOKS = 50
"""Number of polls by a producer without room before it starts to sleep in between."""


class Sender(transport.Sender):
    def __init__(self, task: Task, source: Source, queues: list) -> None:
        folder = str(Path(task.folder) / "ring")
        names = [f"reader{i}" for i in range(task.readers)]
        held = task.pins * task.readers + 1
        create(
            folder,
            shards=1,
            chunks=task.chunks + held,
            chunk_bytes=task.size + ROOM_BEFORE_PAYLOAD,
            readers=names,
            accounts=1,
            policy="drop_new" if task.readers == 1 and task.guarantee == "lossless" else "overwrite",
            pins=task.pins,
        )
        self.writer, self.control, self.names = Writer(folder), Control(folder), names
        self.header = np.zeros(1, HEADER_DTYPE)
        self.header["account"] = self.writer.account("bench")
        self.header["width"] = task.size // 4
        self.address, self.size, self.depth = source.memory.address, source.size, task.chunks
        self.lossless = task.guarantee == "lossless"
        self.room = 0

    def push(self, index: int) -> bool:
        if self.lossless:
            if self.room == 0:
                self.wait()
            self.room -= 1
        return self.writer.publish_block(
            0, self.header, None, self.address + index * self.size, self.size, None, 1, Dtype.FLOAT32, 0
        )

    def wait(self) -> None:
        """Poll the slowest reader's cursor until there is room."""
        until, looked = time.monotonic() + PATIENCE, 0
        while True:
            slowest = min(self.control.cursors(name)[0] for name in self.names)
            self.room = self.depth - (self.writer.head() - slowest)
            if self.room > 0:
                return
            if time.monotonic() > until:
                raise StalledError
            looked += 1
            if looked < LOOKS:
                os.sched_yield()
            else:
                time.sleep(20e-6)

    def close(self) -> None:
        self.writer.close("complete")
        self.control.close()


class Receiver(transport.Receiver):
    def __init__(self, task: Task, reader: int, queues: list) -> None:
        self.reader = Reader(str(Path(task.folder) / "ring"), f"reader{reader}")
        self.size, self.limit = task.size, task.pins

    def pull(self, timeout: float, use: Use) -> int:
        views = self.reader.pull(self.limit, timeout)
        for view in views:
            use(memoryview(view)[-self.size :])  # a temporary: release() fails while an array is alive
            self.reader.consumed(view)
            view.release()
        return len(views)

    def close(self) -> None:
        self.reader.close()
