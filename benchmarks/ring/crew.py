"""One producer and two readers in Python that live for the whole comparison.

Reads one task per line, and answers with a line of JSON. Samples of paced tasks are written to the task's
folder: push.u64, arrived-N.u64, read-N.u64, in nanoseconds.
"""

import json
import multiprocessing
import os
import sys
import time
import traceback
from array import array
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty

import ceiling
import faster_fifo
import measure
from board import Board
from source import Memory, Source
from task import CHUNKS, Task
from transport import Receiver, Sender

MODULES = {
    "counters": "counters",
    "asysi": "ours",
    "iceoryx2": "peers.iceoryx",
    "pyzmq": "peers.zeromq",
    "faster-fifo": "peers.fifo",
    "mp.Queue": "peers.mpqueue",
    "redis": "peers.redisstream",
    "zenoh": "peers.zenohshm",
}
READERS = 2
START_AFTER = 0.02
"""Seconds from the last reader's readiness to the first push."""


def main() -> None:
    context = multiprocessing.get_context("fork")
    memory = Memory()
    for size in CHUNKS:
        memory.digests(size)
    queues = {size: make_queues(context, size) for size in CHUNKS}
    lines = [context.Pipe() for _ in range(1 + READERS)]
    for role, (_, end) in enumerate(lines):
        context.Process(target=member, args=(role, end, memory, queues), daemon=True).start()
    ends = [end for end, _ in lines]
    for line in sys.stdin:
        task = Task.parse(line)
        try:
            answer = conduct(task, ends[: 1 + task.readers])
        except (RuntimeError, EOFError) as error:
            answer = {"error": str(error) or "a member of the crew died"}
        print(json.dumps(answer), flush=True)


def make_queues(context, size: int) -> dict[str, list]:
    """Create the queues that can only be inherited through a fork; faster-fifo adds 8 bytes per message."""
    depth = CHUNKS[size]
    return {
        "faster-fifo": [
            faster_fifo.Queue(depth * (size + 8) + 64, loads=bytes, dumps=lambda message: message)
            for _ in range(READERS)
        ],
        # Semaphores count the messages, the pipe behind them is the kernel's.
        "mp.Queue": [context.Queue(depth) for _ in range(READERS)],
    }


def conduct(task: Task, ends: list[Connection]) -> dict:
    """Let all members open, producer first; start them; collect their reports."""
    board = Board(task.folder)
    board.reset()
    for end in ends:
        end.send(task)
        heard(end)  # open
    if task.contestant not in ("ceiling", "counters", "asysi"):
        time.sleep(0.1)  # peers connect in the background
    board.start(time.monotonic_ns() + int(START_AFTER * 1e9))
    sent, *received = [heard(end) for end in ends]
    for end in ends:  # all have finished: close
        end.send("close")
    for end in ends:
        heard(end)
    return {**sent, "readers": received}


def heard(end: Connection) -> dict:
    if not end.poll(90):
        raise RuntimeError("no answer in 90 s")
    answer = end.recv()
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer


def member(role: int, end: Connection, memory: Memory, queues: dict) -> None:
    sources = {size: Source(memory, size) for size in CHUNKS}
    sources[min(CHUNKS)].touch()
    while True:
        task = end.recv()
        own = queues[task.size].get(task.contestant, [])
        try:
            Work(role, end, task, sources[task.size], own).do()
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
            traceback.print_exc()
            end.send({"error": f"{type(error).__name__}: {error}"})
            os._exit(1)


@dataclass
class Work:
    """One member's part in one task."""

    role: int
    """0 is the producer, then the readers."""
    end: Connection
    task: Task
    source: Source
    queues: list

    def do(self) -> None:
        board = Board(self.task.folder)
        port, answer = self.produce(board) if self.role == 0 else self.consume(board)
        self.end.send(self.without_samples(answer))
        self.end.recv()
        if port is not None:
            port.close()
        if self.role == 0:
            self.source.memory.unstamp(self.task.size)
        for queue in self.queues:
            empty(queue)
        self.end.send({})

    def produce(self, board: Board) -> tuple[Sender, dict]:
        task, source = self.task, self.source
        alone = task.contestant == "ceiling"
        module = ceiling if alone else import_module(MODULES[task.contestant])
        sender = module.Sender(task, source, self.queues)
        self.end.send({})
        start = board.wait_for_start()
        if alone and not task.rate:
            sent = measure.copy_alone(sender, source, ceiling.messages(task), start)
        else:
            sent = measure.send(task, sender, source, start)
        board.sent = sent.pushed
        sender.finish()
        sent.cpu_s += sender.helpers_cpu()
        return sender, vars(sent)

    def consume(self, board: Board) -> tuple[Receiver | None, dict]:
        task = self.task
        if task.contestant == "ceiling":
            places = ceiling.chunks_of(task)
            self.end.send({})
            return None, vars(measure.read_alone(task, places, ceiling.messages(task), board))
        receiver = import_module(MODULES[task.contestant]).Receiver(task, self.role - 1, self.queues)
        self.end.send({})
        return receiver, vars(measure.receive(task, receiver, self.source, board))

    def without_samples(self, answer: dict) -> dict:
        """Write the samples to files, and return the rest."""
        suffix = "" if self.role == 0 else f"-{self.role - 1}"
        samples = {name: value for name, value in answer.items() if isinstance(value, array)}
        for name, values in samples.items():
            with (Path(self.task.folder) / f"{name.removesuffix('_ns')}{suffix}.u64").open("wb") as file:
                values.tofile(file)
        return {name: value for name, value in answer.items() if name not in samples}


def empty(queue) -> None:
    """Empty a queue, because it outlives its task and the next one must find it empty."""
    while True:
        try:
            queue.get(timeout=0.01)
        except Empty:
            return


if __name__ == "__main__":
    main()
