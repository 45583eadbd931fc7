"""faster-fifo: one queue per reader, bytes without pickle. Lossless puts wait; drop gives up at once."""

from queue import Empty, Full

import transport
from source import Source
from task import Task
from transport import PATIENCE, StalledError, Use


class Sender(transport.Sender):
    def __init__(self, task: Task, source: Source, queues: list) -> None:
        self.queues, self.whole, self.size = queues[: task.readers], source.memory.whole, task.size
        self.lossless = task.guarantee == "lossless"

    def push(self, index: int) -> bool:
        at = index * self.size
        message = bytes(self.whole[at : at + self.size])
        delivered = True
        for queue in self.queues:
            try:
                queue.put(message, block=self.lossless, timeout=PATIENCE)
            except Full as error:
                if self.lossless:
                    raise StalledError from error
                delivered = False
        return delivered


class Receiver(transport.Receiver):
    def __init__(self, task: Task, reader: int, queues: list) -> None:
        self.queue, self.limit = queues[reader], task.pins

    def pull(self, timeout: float, use: Use) -> int:
        try:
            messages = self.queue.get_many(block=timeout > 0, timeout=timeout, max_messages_to_get=self.limit)
        except Empty:
            return 0
        for message in messages:
            use(message)
        return len(messages)
