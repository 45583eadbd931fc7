"""What a contestant is: a way to push a message, and a way to be handed them."""

from collections.abc import Callable

from source import Source
from task import Task

Use = Callable[[object], None]
"""What a reader does with a message, given as a buffer that is valid during the call."""
PATIENCE = 5.0
"""Seconds that a lossless push waits."""


class StalledError(Exception):
    """A lossless push found no room for too long."""


class Sender:
    """The producer's end, opened before any reader's.

    `queues` are those of this contestant that were made before the fork.
    """

    def __init__(self, task: Task, source: Source, queues: list) -> None:
        raise NotImplementedError

    def push(self, index: int) -> bool:
        """Hand over message `index` of the source. False: it was dropped, known at once. Lossless waits."""
        raise NotImplementedError

    def finish(self) -> None:
        """Wake a reader that cannot wake by itself."""

    def helpers_cpu(self) -> float:
        """Return the CPU seconds that other processes spent on the messages."""
        return 0.0

    def close(self) -> None:
        pass


class Receiver:
    """One reader's end."""

    def __init__(self, task: Task, reader: int, queues: list) -> None:
        raise NotImplementedError

    def pull(self, timeout: float, use: Use) -> int:
        """Use what is there, waiting `timeout` seconds for the first; returns how many. 0 s: look once."""
        raise NotImplementedError

    def close(self) -> None:
        pass
