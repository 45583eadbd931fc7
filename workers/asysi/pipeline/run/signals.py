"""Ctrl-C: once ends a run cleanly, twice at once."""

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
    """Call `cancel` at the first SIGINT or SIGTERM; at the second SIGINT call `at_once` and end the process.

    Only the main thread can hear signals; in another one this does nothing.
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
