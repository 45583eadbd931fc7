"""One event loop for all operators whose methods are coroutines: one thread for their calls, not one each."""

import asyncio
import atexit
import inspect
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_lock = threading.Lock()
_running: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None


def submit(function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
    """Start a coroutine function on the loop and return its future; the loop starts when first needed."""
    return asyncio.run_coroutine_threadsafe(function(*arguments), _loop())


def call_method(operator: Any, method: str, *arguments: Any) -> None:
    """Call a method of an operator, if it has it, and wait for its end."""
    found = getattr(operator, method, None)
    if inspect.iscoroutinefunction(found):
        submit(found, *arguments).result()
    elif found is not None:
        found(*arguments)


def _loop() -> asyncio.AbstractEventLoop:
    global _running  # noqa: PLW0603 - one a process
    with _lock:
        if _running is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="pipeline-loop", daemon=True)
            thread.start()
            _running = loop, thread
        return _running[0]


def _end() -> None:
    global _running  # noqa: PLW0603
    if _running is not None:
        loop, thread = _running
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        if not thread.is_alive():
            loop.close()
        _running = None


def _forget() -> None:
    """A forked process has the loop's memory, but not its thread."""
    global _running, _lock
    _running, _lock = None, threading.Lock()


atexit.register(_end)
os.register_at_fork(after_in_child=_forget)
