"""The process frame of every worker: environment, signals, endpoints, termination message and exit code."""

import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from asysi.contract.errors import ConfigError, no_room
from asysi.contract.runtime import Container, Exit
from asysi.files import is_full
from asysi.monitor.folder import claim_output
from asysi.monitor.rest import has_ended, idle_until_terminated
from asysi.monitor.worker import StopSignal, Worker, leave_last_words

log = logging.getLogger("asysi")


def run_worker(container: Container, main: Callable[[Worker], int]) -> NoReturn:
    """Run `main` as the process of `container` and exit with its exit code.

    A ConfigError results in exit code 2 with its messages as termination message, any other exception in 1
    with a traceback in the log. After SIGTERM, exit code 0 becomes 143 unless the stream had already ended
    and everything was written. A sidecar whose stream has ended idles until SIGTERM and exits with 0.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {container} %(levelname)s %(message)s"
    )
    logging.raiseExceptions = False  # do not print tracebacks if the log cannot be written
    faulthandler.enable()  # also print a traceback on crashes in native code
    worker: Worker | None = None
    try:
        worker = Worker.from_environment(container)
        _listen(worker.stop)
        claim_output(worker)
        _serve(worker)
        code = _work(worker, main)
    except ConfigError as error:
        for problem in error.problems:
            log.error("%s", problem)  # noqa: TRY400 - a message for users, no traceback
        code = Exit.CONFIG
        leave_last_words(str(error))
    except Exception as error:  # last resort: report the error and exit
        code = Exit.FAILED
        if worker is not None and is_full(error):
            said = no_room(worker.output)
            log.error("%s", said)  # noqa: TRY400 - a message for users, no traceback
        else:
            log.exception("%s failed", container)
            said = f"{type(error).__name__}: {error}"
        leave_last_words(said)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Exit the process with an exit code, even if its log can no longer be written.

    The interpreter gives signals their default effect while it ends: one that arrives then would end the
    process with a code of its own, as if the work that is done had been cut short.
    """
    for late in (signal.SIGINT, signal.SIGTERM):
        signal.signal(late, signal.SIG_IGN)
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        os._exit(int(code))  # the interpreter would retry and exit with 120
    sys.exit(int(code))


def _work(worker: Worker, main: Callable[[Worker], int]) -> int:
    if has_ended(worker):
        return idle_until_terminated(worker)
    code = main(worker)
    cut_short = worker.stop.terminated and code == Exit.OK and not has_ended(worker)
    return Exit.TERMINATED if cut_short else code


def _listen(stop: StopSignal) -> None:
    def on_term(_signal: int, _frame: FrameType | None) -> None:
        stop.terminated = True

    def on_int(_signal: int, _frame: FrameType | None) -> None:
        stop.interrupted = True

    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGINT, on_int)


def _serve(worker: Worker) -> None:
    if worker.port:
        from asysi.monitor.endpoints import serve  # noqa: PLC0415 - not needed where nothing listens

        serve(worker)
