"""Ctrl-C handling: once ends a run cleanly, twice at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_INTERRUPTED = 130


@contextmanager
def cancel_on_signal(
    cancel: Callable[[str], None], at_once: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Call `cancel` on the first SIGINT or SIGTERM; on a second SIGINT call `at_once` and end the process.

    Does nothing outside the main thread, which is the only one that can handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, second)
        cancel(signal.Signals(number).name)

    def second(_number: int, _frame: Any) -> None:
        at_once()
        os._exit(_INTERRUPTED)

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
