"""eclipse-zenoh, peer to peer over a unix socket, payloads in its shared memory.

Its Python interface takes a bytearray and returns bytes: one copy in and one copy out that the Rust interface
would not make. Lossless: congestion control BLOCK. Drop: DROP.
"""

import time
from pathlib import Path
from typing import ClassVar

import transport
import zenoh
from source import Source
from task import STAMP_BYTES, Task
from transport import Use
from zenoh.shm import BlockOn, GarbageCollect, ShmProvider


def session(task: Task, *, listens: bool) -> zenoh.Session:
    config = zenoh.Config()
    config.insert_json5("mode", '"peer"')
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("transport/shared_memory/enabled", "true")
    end = f"unixsock-stream/{Path(task.folder) / 'zenoh.sock'}"
    config.insert_json5("listen/endpoints", f'["{end}"]' if listens else "[]")
    if not listens:
        config.insert_json5("connect/endpoints", f'["{end}"]')
    return zenoh.open(config)


class Sender(transport.Sender):
    _buffers: ClassVar[dict[int, list[bytearray]]] = {}
    """The source as bytearrays, the only accepted type."""

    def __init__(self, task: Task, source: Source, queues: list) -> None:
        self.session = session(task, listens=True)
        control = zenoh.CongestionControl
        self.publisher = self.session.declare_publisher(
            "bench", congestion_control=control.DROP if task.guarantee == "drop" else control.BLOCK
        )
        self.provider = ShmProvider.default_backend(task.size * (task.chunks + 8) + (1 << 20))
        self.policy = BlockOn(GarbageCollect())
        self.size, self.whole = task.size, source.memory.whole
        if task.size not in self._buffers:
            self._buffers[task.size] = [
                bytearray(self.whole[at : at + task.size]) for at in range(0, len(self.whole), task.size)
            ]
        self.buffers = self._buffers[task.size]

    def push(self, index: int) -> bool:
        at, buffer = index * self.size, self.buffers[index]
        buffer[:STAMP_BYTES] = self.whole[at : at + STAMP_BYTES]
        shared = self.provider.alloc(self.size, self.policy)
        shared[0 : self.size] = buffer
        self.publisher.put(zenoh.ZBytes(shared))
        return True

    def finish(self) -> None:
        for _ in range(3):  # one may be dropped
            self.publisher.put(b"")
            time.sleep(0.05)

    def close(self) -> None:
        self.publisher.undeclare()
        self.session.close()


class Receiver(transport.Receiver):
    def __init__(self, task: Task, reader: int, queues: list) -> None:
        self.session = session(task, listens=False)
        ring = task.guarantee == "drop"
        handler = (zenoh.handlers.RingChannel if ring else zenoh.handlers.FifoChannel)(task.chunks)
        self.subscriber = self.session.declare_subscriber("bench", handler)

    def pull(self, timeout: float, use: Use) -> int:
        # Its blocking call has no timeout: an empty message ends it.
        sample = self.subscriber.recv() if timeout else self.subscriber.try_recv()
        if sample is None or len(sample.payload) == 0:
            return 0
        use(sample.payload.to_bytes())
        return 1

    def close(self) -> None:
        self.subscriber.undeclare()
        self.session.close()
