"""Allocates attempt numbers in the output folder, so that no two attempts write the same file.

A Job counts failed pods, but not those that were evicted or ended by a suspension, nor those of an earlier
Job of the experiment. The output folder records all of them.
"""

import os
from pathlib import Path

from asysi.contract.identity import inspect_output
from asysi.contract.runtime import ATTEMPT_FILE, ATTEMPTS_FOLDER, Env
from asysi.files import write_atomic
from asysi.monitor.worker import Worker


def take_attempt(worker: Worker) -> int:
    """Allocate the number of this attempt for the worker and the following containers, and return it.

    A number from the environment takes precedence. If prepare is rerun in the same pod, it keeps its number.

    Raises:
        OSError: the output folder is not writable.
    """
    if not os.environ.get(Env.ATTEMPT) and not (worker.workspace / ATTEMPT_FILE).is_file():
        worker.attempt = _next(worker.output)
        write_atomic(worker.workspace / ATTEMPT_FILE, str(worker.attempt))
    return worker.attempt


def _next(output: Path) -> int:
    """Create the folder of the next number and return the number; creating the folder is atomic."""
    while True:
        number = inspect_output(output).attempts
        try:
            (output / ATTEMPTS_FOLDER / str(number)).mkdir(parents=True)
        except FileExistsError:
            continue
        return number
