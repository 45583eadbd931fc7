"""One shared event loop thread for all operators with coroutine methods."""

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
    """Run a coroutine function on the loop and return its future; starts the loop on first use."""
    return asyncio.run_coroutine_threadsafe(function(*arguments), _loop())


def call_method(operator: Any, method: str, *arguments: Any) -> None:
    """Call an operator's method, if it exists, and wait for it to finish."""
    found = getattr(operator, method, None)
    if inspect.iscoroutinefunction(found):
        submit(found, *arguments).result()
    elif found is not None:
        found(*arguments)


def _loop() -> asyncio.AbstractEventLoop:
    global _running  # noqa: PLW0603 - one per process
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
    """Reset after a fork: the child inherits the loop's memory but not its thread."""
    global _running, _lock
    _running, _lock = None, threading.Lock()


atexit.register(_end)
os.register_at_fork(after_in_child=_forget)
