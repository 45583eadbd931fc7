"""Repeats an upload that failed: a store may be away for a while; the results are in their folder."""

import logging
import threading
import time
from collections.abc import Callable

from asysi.contract.errors import ConfigError
from asysi.store.multipart import StoppedError

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
log = logging.getLogger("asysi")


def until_done(
    work: Callable[[], object],
    stop: threading.Event,
    *,
    seconds: float | None = None,
    failed: Callable[[], object] = lambda: None,
    first_pause: float = _FIRST_PAUSE,
) -> bool:
    """Call `work` until it succeeds; pauses grow from one second to a minute.

    Args:
        work: raises ConfigError or OSError if the store fails; does only what is still to do.
        stop: ends the pauses.
        seconds: time after which the last error is raised; None: never.
        failed: called after each failure.
        first_pause: seconds before the second call.

    Returns:
        Whether it succeeded; False if `stop` was set first.

    Raises:
        ConfigError, OSError: the last error, once the time is up.
    """
    until = None if seconds is None else time.monotonic() + seconds
    pause = first_pause
    while not stop.is_set():
        try:
            work()
        except StoppedError:
            break
        except (ConfigError, OSError) as error:
            failed()
            if until is not None and time.monotonic() + pause > until:
                raise
            log.warning("%s; the results are in the output folder, tried again in %.0f s", error, pause)
            stop.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return True
    return False
