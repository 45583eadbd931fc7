"""pyzmq over ipc://. Lossless: PUSH/PULL, one pair per reader. Drop: PUB/SUB, drops above the mark."""

from pathlib import Path

import transport
import zmq
from source import Source
from task import Task
from transport import PATIENCE, StalledError, Use


def address(task: Task, reader: int) -> str:
    return f"ipc://{Path(task.folder) / f'zmq-{reader}'}"


class Sender(transport.Sender):
    def __init__(self, task: Task, source: Source, queues: list) -> None:
        self.context = zmq.Context()
        drop = task.guarantee == "drop"
        self.sockets = []
        for reader in range(1 if drop else task.readers):
            socket = self.context.socket(zmq.PUB if drop else zmq.PUSH)
            # The high-water mark applies on each side: use half of it on each.
            socket.set(zmq.SNDHWM, max(1, task.chunks // 2))
            socket.set(zmq.SNDTIMEO, int(PATIENCE * 1000))
            socket.set(zmq.LINGER, 1000)
            socket.bind(address(task, reader))
            self.sockets.append(socket)
        self.whole, self.size = source.memory.whole, task.size
        # Send without a copy where pyzmq would not copy either: the queue is far smaller than the source.
        # Copy if messages are dropped: the producer may wrap around while a message is still queued.
        self.copy = drop or task.size < zmq.COPY_THRESHOLD

    def push(self, index: int) -> bool:
        at = index * self.size
        message = self.whole[at : at + self.size]
        try:
            for socket in self.sockets:
                socket.send(message, copy=self.copy)
        except zmq.Again as error:
            raise StalledError from error
        return True

    def close(self) -> None:
        self.context.destroy(linger=1000)


class Receiver(transport.Receiver):
    def __init__(self, task: Task, reader: int, queues: list) -> None:
        self.context = zmq.Context()
        drop = task.guarantee == "drop"
        self.socket = self.context.socket(zmq.SUB if drop else zmq.PULL)
        self.socket.set(zmq.RCVHWM, max(1, task.chunks // 2))
        if drop:
            self.socket.subscribe(b"")
        self.socket.connect(address(task, 0 if drop else reader))
        self.copy = task.size < zmq.COPY_THRESHOLD

    def pull(self, timeout: float, use: Use) -> int:
        if not self.socket.poll(timeout * 1000):
            return 0
        message = self.socket.recv(copy=self.copy)
        use(message if self.copy else message.buffer)
        return 1

    def close(self) -> None:
        self.context.destroy(linger=0)
