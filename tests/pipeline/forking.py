"""A run in a forked process that may be killed: `killing.py` and `paying.py` begin their runs with it."""

import os
import signal
import sys
import time
from collections.abc import Callable


def attempt(act: Callable[[], None], delay: float | None) -> int:
    """Act in a forked process, kill it after `delay` seconds, and return how it ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException as error:  # noqa: BLE001 - a process of its own
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
