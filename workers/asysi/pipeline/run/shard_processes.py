"""Runs all shards of a pipeline on one machine, one process per shard."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Exit
from asysi.pipeline.nodes.fork_pool import die_with
from asysi.pipeline.run.progress import line, table
from asysi.pipeline.run.run_state import read_image
from asysi.pipeline.run.signals import cancel_on_signal

_LINES = 10.0
"""Seconds between progress lines."""


def run_all(count: int, one: Callable[[int], int], folder: Path, *, live: bool) -> int:
    """Run `one(index)` for each shard in its own process, and return the worst exit code.

    The first SIGINT or SIGTERM ends all of them cleanly, a second SIGINT at once. A failing shard ends the
    others cleanly. They never outlive this process.

    Args:
        count: number of shards.
        one: runs a shard and returns its exit code.
        folder: results folder that contains those of the shards.
        live: show a live table on the terminal instead of periodic lines.
    """
    context = multiprocessing.get_context("fork")
    parent = os.getpid()
    crew = [context.Process(target=_shard, args=(one, index, parent)) for index in range(count)]
    for process in crew:
        process.start()

    told = threading.Event()

    def cancel(_name: str = "") -> None:
        if not told.is_set():  # a second SIGINT would end them at once
            told.set()
            _tell(crew, signal.SIGINT)

    with (
        cancel_on_signal(cancel, lambda: _tell(crew, signal.SIGKILL)),
        _shown(folder, crew) if live else nullcontext(),
    ):
        _wait(crew, folder, cancel, live=live)
    codes = [process.exitcode or 0 for process in crew]
    for index, code in enumerate(codes):
        if code < 0:
            sys.stderr.write(f"shard {index}/{count} was killed by signal {-code}: resume continues there\n")
    return _worst(codes)


def _wait(crew: list[ForkProcess], folder: Path, cancel: Callable[[], None], *, live: bool) -> None:
    following = time.monotonic() + _LINES
    while any(process.is_alive() for process in crew):
        time.sleep(0.05)
        if any(process.exitcode not in {None, 0} for process in crew):
            cancel()
        if not live and time.monotonic() >= following:
            following += _LINES
            for image in _images(folder, len(crew)):
                for node in image["nodes"]:
                    sys.stderr.write(f"{line(image, node)}\n")


def _tell(crew: list[ForkProcess], number: int) -> None:
    for process in crew:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)


def _shown(folder: Path, crew: list[ForkProcess]) -> Any:
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.live import Live  # noqa: PLC0415

    def picture() -> Any:
        images = _images(folder, len(crew))
        return table(images) if images else ""

    return Live(get_renderable=picture, console=Console(stderr=True), refresh_per_second=2)


def _images(folder: Path, count: int) -> list[dict[str, Any]]:
    found = []
    for file in sorted(folder.glob(f"shard-*-of-{count:05d}")):
        with suppress(ConfigError):  # not created yet
            found.append(read_image(file))
    return found


def _worst(codes: list[int]) -> int:
    """Return the overall exit code: bad configuration before failure before interruption."""
    codes = [code if code >= 0 else Exit.FAILED for code in codes]
    return next((code for code in (Exit.CONFIG, Exit.FAILED, Exit.INTERRUPTED) if code in codes), max(codes))


def _shard(one: Callable[[int], int], index: int, parent: int) -> None:
    os.setpgid(0, 0)  # only the parent receives the terminal's Ctrl-C and forwards it
    die_with(parent)
    try:
        code = one(index)
    except ConfigError as error:
        sys.stderr.write("".join(f"shard {index}: {problem}\n" for problem in error.problems))
        code = Exit.CONFIG
    except KeyboardInterrupt:  # before its handler was installed
        code = Exit.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - reported with its exit code
        sys.stderr.write(f"shard {index}: {type(error).__name__}: {error}\n")
        code = Exit.FAILED
    sys.stderr.flush()
    os._exit(code)
