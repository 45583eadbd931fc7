"""Interface of a contestant: a sender that pushes messages, and a receiver that pulls them."""

from collections.abc import Callable

from source import Source
from task import Task

Use = Callable[[object], None]
"""Called by a reader with each message, as a buffer that is valid only during the call."""
PATIENCE = 5.0
"""Maximum seconds that a lossless push waits."""


class StalledError(Exception):
    """A lossless push waited too long for room."""


class Sender:
    """The producer's end, opened before any reader's.

    `queues` are this contestant's queues, created before the fork.
    """

    def __init__(self, task: Task, source: Source, queues: list) -> None:
        raise NotImplementedError

    def push(self, index: int) -> bool:
        """Push message `index` of the source; False if it was dropped at once. Lossless pushes wait."""
        raise NotImplementedError

    def finish(self) -> None:
        """Wake a reader that cannot wake up on its own."""

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
        """Use all available messages and return their number; wait `timeout` s for the first, 0: poll."""
        raise NotImplementedError

    def close(self) -> None:
        pass
