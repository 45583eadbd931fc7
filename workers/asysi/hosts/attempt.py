"""The attempt's number: taken where its files will lie, so that no two attempts ever write one file.

A Job counts the pods that have failed, and forgets: those that were put out, that a suspension ended, or that
an earlier Job of the experiment had. The output forgets none.
"""

import os
from pathlib import Path

from asysi.contract.identity import look
from asysi.contract.runtime import ATTEMPT_FILE, ATTEMPTS_FOLDER, Env
from asysi.files import write_atomic
from asysi.monitor.worker import Worker


def take_attempt(worker: Worker) -> int:
    """Give the worker, and the containers after it, the number of this attempt; return it.

    A number that the environment gives stands. Prepare run again in the same pod keeps the one it has.

    Raises:
        OSError: the output cannot be written.
    """
    if not os.environ.get(Env.ATTEMPT) and not (worker.workspace / ATTEMPT_FILE).is_file():
        worker.attempt = _next(worker.output)
        write_atomic(worker.workspace / ATTEMPT_FILE, str(worker.attempt))
    return worker.attempt


def _next(output: Path) -> int:
    """Make the folder of the next number, and return the number: whoever makes it has it for himself."""
    while True:
        number = look(output).attempts
        try:
            (output / ATTEMPTS_FOLDER / str(number)).mkdir(parents=True)
        except FileExistsError:
            continue
        return number
