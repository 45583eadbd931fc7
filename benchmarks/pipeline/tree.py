"""Cost of a command and all its descendants: total processor time, and peak memory."""

import ctypes
import json
import os
import resource
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER: orphans are reparented to this process, so that their CPU time is counted."""
_EVERY = 0.1


@dataclass(frozen=True)
class Cost:
    """The last line the command printed, as JSON; processor seconds; peak of the summed PSS in bytes."""

    said: dict[str, Any]
    processor: float
    memory: int


class _Watch(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.ended = 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(_EVERY):
            self.peak = max(self.peak, sum(map(_pss, psutil.Process().children(recursive=True))))


def measure(command: list[str], timeout: float, *, alone: bool = True) -> Cost:
    """Run a command until it and all its descendants end; `alone`: this process has no other children.

    Raises:
        RuntimeError: it failed.
    """
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    before = _spent()
    watch = _Watch()
    watch.start()
    done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    if alone:
        _reap(time.monotonic() + 20)
    watch.ended.set()
    watch.join()
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode()[-2000:]}")
    said = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return Cost(said, _spent() - before, watch.peak)


def _reap(deadline: float) -> None:
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.05)
        except ChildProcessError:
            return
    for child in psutil.Process().children(recursive=True):
        child.kill()
    _reap(time.monotonic() + 5)


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _pss(process: psutil.Process) -> int:
    """Return the proportional set size of a process: shared memory is divided among its users."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)
