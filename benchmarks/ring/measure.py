"""The timed loops, the same for every contestant."""

import os
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from board import OPEN, Board
from source import STAMP, Source
from task import STAMP_BYTES, Task
from transport import Receiver, Sender
from xxhash import xxh3_64_intdigest

NAP = 0.05
"""Seconds that a blocking reader waits before it checks whether the task has ended."""
SILENCE = 0.25
"""Seconds without a message after which the rest counts as lost."""
LIMIT = 60.0
"""Maximum seconds per task."""


@dataclass
class Sent:
    """Result of the producer."""

    pushed: int
    refused: int
    """Messages reported as dropped by the push itself."""
    started_ns: int
    ended_ns: int
    cpu_s: float
    push_ns: array = field(default_factory=lambda: array("Q"))
    """Duration of each push of a paced task."""


@dataclass
class Received:
    """Result of one reader."""

    messages: int = 0
    lost: int = 0
    """Missing message numbers, including those after the last received one."""
    wrong: int = 0
    """Messages with a wrong checksum, or out of order."""
    ended_ns: int = 0
    cpu_s: float = 0.0
    arrived_ns: array = field(default_factory=lambda: array("Q"))
    """Time from when a message was due until the reader had it, for a paced task."""
    read_ns: array = field(default_factory=lambda: array("Q"))
    """Time from when a message was due until the reader had used every byte of it."""


# -- the producer


def send(task: Task, sender: Sender, source: Source, start_ns: int) -> Sent:
    return (
        _send_paced(task, sender, source, start_ns)
        if task.rate
        else _send_all(task, sender, source, start_ns)
    )


def _send_all(task: Task, sender: Sender, source: Source, start_ns: int) -> Sent:
    whole, size, count, push, stamp = (
        source.memory.whole,
        source.size,
        source.count,
        sender.push,
        STAMP.pack_into,
    )
    number = index = refused = 0
    until = start_ns + int(task.seconds * 1e9)
    _yield_until(start_ns)
    cpu = time.process_time()
    while time.monotonic_ns() < until:
        for _ in range(16):
            stamp(whole, index * size, number, 0)
            if not push(index):
                refused += 1
            number += 1
            index += 1
            if index == count:
                index = 0
    return Sent(number, refused, start_ns, time.monotonic_ns(), time.process_time() - cpu)


def _send_paced(task: Task, sender: Sender, source: Source, start_ns: int) -> Sent:
    """Open loop: a message is due at its time, no matter what happened to the previous ones."""
    whole, size, push, stamp = source.memory.whole, source.size, sender.push, STAMP.pack_into
    period, refused, costs, now = 1e9 / task.rate, 0, array("Q"), time.monotonic_ns
    cpu = time.process_time()
    for number in range(int(task.seconds * task.rate)):
        index = number % source.count
        due = start_ns + int(number * period)
        stamp(whole, index * size, number, due)
        _yield_until(due)
        before = now()
        if not push(index):
            refused += 1
        costs.append(now() - before)
    return Sent(len(costs), refused, start_ns, now(), time.process_time() - cpu, costs)


def _yield_until(due_ns: int) -> None:
    """Wait without sleeping, but yield the processor and the GIL to a contestant's own threads."""
    while time.monotonic_ns() < due_ns:
        time.sleep(0)
        os.sched_yield()


# -- a reader


def receive(task: Task, receiver: Receiver, source: Source, board: Board) -> Received:
    seen = Received()
    use = _use(task, source, seen)
    pull, timeout = receiver.pull, 0.0 if task.waiting == "spin" else NAP
    board.wait_for_start()
    cpu, limit = time.process_time(), time.monotonic() + LIMIT
    quiet_since = None
    while seen.messages + seen.lost < board.sent:
        if pull(timeout, use):
            quiet_since = None
            continue
        if board.sent == OPEN and time.monotonic() < limit:
            continue
        quiet_since = quiet_since or time.monotonic()
        if time.monotonic() > quiet_since + SILENCE or time.monotonic() > limit:
            break
    seen.cpu_s = time.process_time() - cpu
    seen.lost = board.sent - seen.messages
    return seen


def _use(task: Task, source: Source, seen: Received) -> Callable[[object], None]:
    unpack, now, count = STAMP.unpack_from, time.monotonic_ns, source.count
    digests = source.digests
    arrived, read = seen.arrived_ns.append, seen.read_ns.append
    next_number = 0

    def account(number: int) -> None:
        nonlocal next_number
        if number < next_number:
            seen.wrong += 1
        else:
            seen.lost += number - next_number
        next_number = number + 1
        seen.messages += 1

    def look(message) -> None:
        account(unpack(message)[0])
        seen.ended_ns = now()

    def touch(message) -> None:
        number, _ = unpack(message)
        if xxh3_64_intdigest(memoryview(message)[STAMP_BYTES:]) != digests[number % count]:
            seen.wrong += 1
        account(number)
        seen.ended_ns = now()

    def touch_and_time(message) -> None:
        came = now()
        number, due = unpack(message)
        right = xxh3_64_intdigest(memoryview(message)[STAMP_BYTES:]) == digests[number % count]
        used = now()
        arrived(came - due)
        read(used - due)
        if not right:
            seen.wrong += 1
        account(number)
        seen.ended_ns = used

    return {"view": look, "throughput": touch, "latency": touch_and_time}[task.kind]


# -- the ceiling's reader: independent of the producer


def read_alone(task: Task, places: list[memoryview], messages: int, board: Board) -> Received:
    """Read `messages` chunks: all at once, or each in the middle of its period."""
    unpack, seen = STAMP.unpack_from, Received()
    start = board.wait_for_start()
    _yield_until(start)
    cpu = time.process_time()
    for number in range(messages):
        if task.rate:
            _yield_until(start + int((number + 0.5) * 1e9 / task.rate))
        message = places[number % len(places)]
        unpack(message)
        if task.kind != "view":
            xxh3_64_intdigest(message[STAMP_BYTES:])
    seen.messages, seen.ended_ns = messages, time.monotonic_ns()
    seen.cpu_s = time.process_time() - cpu
    return seen


def copy_alone(sender: Sender, source: Source, messages: int, start_ns: int) -> Sent:
    """Copy `messages` messages as fast as possible."""
    whole, size, count, push, stamp = (
        source.memory.whole,
        source.size,
        source.count,
        sender.push,
        STAMP.pack_into,
    )
    _yield_until(start_ns)
    cpu = time.process_time()
    index = 0
    for number in range(messages):
        stamp(whole, index * size, number, 0)
        push(index)
        index += 1
        if index == count:
            index = 0
    return Sent(messages, 0, start_ns, time.monotonic_ns(), time.process_time() - cpu)
