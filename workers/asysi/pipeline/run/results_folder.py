"""A pipeline's results folder: locked by one run at a time, and cleared of an earlier run's files."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.pipeline.run.blueprint_checks import changes
from asysi.pipeline.run.run_state import RUNTIME, alive, read_image
from asysi.pipeline.streams.data_streams import IDataStream
from asysi.pipeline.streams.seal import START_OVER

LEDGER = "ledger.sqlite"


@contextmanager
def locked(folder: Path, pipeline_id: str) -> Iterator[None]:
    """Lock a results folder, because two runs of one pipeline would corrupt each other.

    Raises:
        ConfigError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        process = alive(read_image(folder)) if (folder / RUNTIME).exists() else None
        raise ConfigError(
            f"the pipeline {pipeline_id} is running already{f' (process {process})' if process else ''} in "
            f"{folder}: wait"
            " for it, cancel it, or give this one another pipeline_id"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def clear_previous_run(
    folder: Path,
    pipeline_id: str,
    outputs: Sequence[IDataStream],
    image: Callable[[], Mapping[str, Any]],
    *,
    overwrite: bool,
) -> None:
    """Remove an earlier run's files from a results folder and its outputs, if allowed.

    Args:
        folder: the results folder.
        pipeline_id: the pipeline that will run there.
        outputs: outputs of its nodes.
        image: returns its image.
        overwrite: whether rows may be removed.

    Raises:
        ConfigError: there are rows that may not be removed, or the folder belongs to another pipeline.
    """
    used = folder / LEDGER
    taken = [bus for bus in outputs if bus.exists()]
    if (folder / RUNTIME).exists():
        before = _image_before(folder, pipeline_id, overwrite)
        _refuse_other(folder, pipeline_id, before, image if used.exists() and not overwrite else None)
    if taken and not overwrite:
        raise ConfigError(
            *(f"{bus.uri} already exists: delete it, name another output, or {START_OVER}" for bus in taken)
        )
    for bus in taken:
        bus.remove()
    if used.exists():
        for name in (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm", "answers.sqlite"):
            (folder / name).unlink(missing_ok=name != LEDGER)
        for part in ("spool", "dead_letters", "redrive"):
            shutil.rmtree(folder / part, ignore_errors=True)


def _image_before(folder: Path, pipeline_id: str, overwrite: bool) -> Mapping[str, Any]:
    """Return the image of the previous run; an unreadable one may be overwritten."""
    try:
        return read_image(folder)
    except ConfigError:
        if not overwrite:
            raise
        return {"pipeline_id": pipeline_id, "status": "unknown"}


def _refuse_other(
    folder: Path, pipeline_id: str, before: Mapping[str, Any], now: Callable[[], Mapping[str, Any]] | None
) -> None:
    """Reject a folder of another pipeline, and one whose rows would be lost (`now` is then the new image)."""
    if before["pipeline_id"] != pipeline_id:
        raise ConfigError(
            f"{folder} holds the pipeline {before['pipeline_id']}: give {pipeline_id} a results_dir of"
            " its own"
        )
    if now is not None:
        found = changes(before, now())
        differs = f"This blueprint differs: {'; '.join(found)}. " if found else ""
        raise ConfigError(
            f"the pipeline {pipeline_id} has run before (it is {before['status']}). {differs}"
            f"`resume` (in Python resume({pipeline_id!r})) continues it; otherwise give this one"
            f" another pipelineId, or {START_OVER}"
        )
