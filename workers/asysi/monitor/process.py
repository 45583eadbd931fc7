"""The frame that every worker runs in: environment, signals, endpoints, last words and exit code."""

import faulthandler
import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Container, Exit
from asysi.monitor.folder import enter
from asysi.monitor.rest import has_ended, rest
from asysi.monitor.worker import Stop, Worker, leave_last_words

log = logging.getLogger("asysi")


def run_worker(container: Container, main: Callable[[Worker], int]) -> NoReturn:
    """Run `main` as the process of `container` and leave with its exit code.

    A ConfigError ends in exit code 2 with its sentences as last words, any other exception in 1 with a
    traceback in the log. After SIGTERM an exit code 0 becomes 143, unless the stream had ended before and
    everything was written. A sidecar whose stream has ended does nothing until SIGTERM, and leaves with 0.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {container} %(levelname)s %(message)s"
    )
    faulthandler.enable()  # a crash in native code leaves a traceback too
    worker: Worker | None = None
    try:
        worker = Worker.from_environment(container)
        _listen(worker.stop)
        enter(worker)
        _serve(worker)
        code = _work(worker, main)
    except ConfigError as error:
        for problem in error.problems:
            log.error("%s", problem)  # noqa: TRY400 - a sentence for a person, no traceback
        code = Exit.CONFIG
        leave_last_words(str(error))
    except Exception as error:  # the process ends here, with everything it knows
        log.exception("%s failed", container)
        code = Exit.FAILED
        leave_last_words(f"{type(error).__name__}: {error}")
    logging.shutdown()
    sys.stdout.flush()
    sys.exit(int(code))


def _work(worker: Worker, main: Callable[[Worker], int]) -> int:
    if has_ended(worker):
        return rest(worker)
    code = main(worker)
    cut_short = worker.stop.terminated and code == Exit.OK and not has_ended(worker)
    return Exit.TERMINATED if cut_short else code


def _listen(stop: Stop) -> None:
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
