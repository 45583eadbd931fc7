"""iceoryx2: publish-subscribe of byte slices, copied in by memmove; one event per message wakes readers.

Lossless: safe overflow off, the publisher retries until delivered. Drop: safe overflow, the oldest is lost.
"""

import ctypes

import iceoryx2 as iox
import transport
from source import Source
from task import Task
from transport import Use

iox.set_log_level(iox.LogLevel.Fatal)
Bytes = iox.Slice[ctypes.c_uint8]


class Port:
    """Shared by both ends: a node, the service, and its event."""

    def __init__(self, task: Task) -> None:
        name = iox.ServiceName.new(task.folder)
        self.node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
        self.service = (
            self.node.service_builder(name)
            .publish_subscribe(Bytes)
            .enable_safe_overflow(task.guarantee == "drop")
            .subscriber_max_buffer_size(task.chunks)
            .subscriber_max_borrowed_samples(2)
            .history_size(0)
            .max_publishers(1)
            .max_subscribers(task.readers)
            .open_or_create()
        )
        self.event = self.node.service_builder(name).event().open_or_create()


class Sender(transport.Sender):
    def __init__(self, task: Task, source: Source, queues: list) -> None:
        self.port, self.size, self.address = Port(task), task.size, source.memory.address
        strategy = iox.BackpressureStrategy
        self.publisher = (
            self.port.service.publisher_builder()
            .initial_max_slice_len(task.size)
            .backpressure_strategy(
                strategy.DiscardData if task.guarantee == "drop" else strategy.RetryUntilDelivered
            )
            .create()
        )
        sleepers = task.waiting == "block"
        self.notifier = self.port.event.notifier_builder().create() if sleepers else None

    def push(self, index: int) -> bool:
        sample = self.publisher.loan_slice_uninit(self.size)
        ctypes.memmove(sample.payload_ptr, self.address + index * self.size, self.size)
        sample.assume_init().send()
        if self.notifier is not None:
            self.notifier.notify()
        return True

    def close(self) -> None:
        self.publisher.delete()
        if self.notifier is not None:
            self.notifier.delete()
        del self.port


class Receiver(transport.Receiver):
    def __init__(self, task: Task, reader: int, queues: list) -> None:
        self.port, self.size = Port(task), task.size
        self.subscriber = self.port.service.subscriber_builder().create()
        self.listener = self.port.event.listener_builder().create() if task.waiting == "block" else None
        self.array = ctypes.c_uint8 * task.size

    def pull(self, timeout: float, use: Use) -> int:
        count = self.drain(use)
        if count or timeout == 0 or self.listener is None:
            return count
        self.listener.timed_wait(iox.Duration.from_micros(int(timeout * 1e6)))
        return self.drain(use)

    def drain(self, use: Use) -> int:
        count = 0
        while (sample := self.subscriber.receive()) is not None:
            use(memoryview(self.array.from_address(sample.payload_ptr)))
            sample.delete()
            count += 1
            if count == 64:
                break
        return count

    def close(self) -> None:
        self.subscriber.delete()
        if self.listener is not None:
            self.listener.delete()
        del self.port
