"""Rows that a GPU host writes for the report, while the model is still loaded there.

The host holds a lock from before it closes its ring until the rows are written. While the lock is held,
finish knows that rows are coming; once the host is gone, it knows that they are not.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from asysi.contract.runtime import REREAD_FILE, REREAD_LOCK
from asysi.contract.spec import ScanExperiment
from asysi.files import is_held, write_atomically
from asysi.finish.budget import ReadProgress, ReadWatch
from asysi.finish.reread_tokens import PointRows, RereadTokens
from asysi.finish.rereading import Extent, Reread, read_for_report
from asysi.model.loading import LoadedModel
from asysi.model.points import HookPoint

FORMAT = "asysi-reread-1"
GRACE = 60.0
"""Seconds beyond `finish.maxSeconds` that finish waits for a host that is still reading."""
_POLL = 0.1
_OF_A_POINT: dict[str, type[np.generic]] = {"values": np.float32, "token": np.int64, "call": np.int64}
_OF_THE_TOKENS: dict[str, type[np.generic]] = {
    "tokens": np.int64,
    "document": np.int64,
    "content": np.bool_,
    "rows": np.uint64,
    "held_out": np.bool_,
}
_DAMAGE = (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading a file raises that is not what `write_rows` wrote."""
log = logging.getLogger("asysi")


class _Beating:
    """Forwards heartbeats only: the status of the host describes its steps."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self.beat = beat

    def show(self, progress: ReadProgress | None) -> None:
        """Do nothing."""


def leave(
    experiment: ScanExperiment,
    output: Path,
    workspace: Path,
    *,
    attempt: int,
    loaded: LoadedModel,
    points: list[HookPoint],
    device: str,
    beat: Callable[[], None],
) -> None:
    """Read the report's documents on the host's device, and write rows and tokens into the workspace.

    Args:
        experiment: defines what is read, and the budget.
        output: the output folder, which holds the rows of a pipeline.
        workspace: folder shared by host and finish.
        attempt: number of this attempt.
        loaded: the model as it ran.
        points: hook points matched by prepare.
        device: device of the model.
        beat: called after every forward pass.

    Raises:
        Exception: any exception from reading or writing.
    """
    again = read_for_report(
        experiment, output, loaded, points, watch=_Beating(beat), device=device, in_host=True
    )
    write_rows(workspace / REREAD_FILE, again, attempt)
    log.info("left %d tokens for the report, read in %.1f s", again.extent.tokens, again.extent.seconds)


def await_rows(
    workspace: Path,
    attempt: int,
    seconds: float,
    watch: ReadWatch,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Reread | None, str]:
    """Wait while the host reads; return the rows it left, or None and the reason why there are none.

    Args:
        workspace: folder shared by host and finish.
        attempt: number of this attempt; rows of another attempt are ignored.
        seconds: maximum time to wait once the stream has ended.
        watch: receives a heartbeat while waiting.
        clock: monotonic clock in seconds.
        sleep: sleeps for a number of seconds.
    """
    until = clock() + seconds
    while is_held(workspace / REREAD_LOCK):
        if clock() > until:
            return None, f"the host was still reading after {seconds:.0f} s"
        watch.beat()
        sleep(_POLL)
    try:
        found = read_rows_left(workspace / REREAD_FILE, attempt)
    except _DAMAGE as error:
        return None, f"what the host left cannot be read: {error}"
    return found, "" if found is not None else "the host left none, see its log"


def write_rows(file: Path, again: Reread, attempt: int) -> None:
    """Write the rows atomically."""
    sheet, points = again.sheet, again.activations
    pieces = json.dumps(again.pieces).encode()
    tensors: dict[str, NDArray[Any]] = {
        **{name: getattr(sheet, name) for name in _OF_THE_TOKENS},
        "weight": again.weight,
        "pieces": np.frombuffer(pieces, np.uint8),
    }
    for number, rows in enumerate(points.values()):
        tensors |= {f"{number}.{name}": getattr(rows, name) for name in _OF_A_POINT}
    words = {
        "attempt": attempt,
        "joined": again.joined,
        "extent": asdict(again.extent),
        "points": [
            {"path": path, "not_finite": rows.not_finite, "dropped": dict(rows.dropped)}
            for path, rows in points.items()
        ],
    }
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "words": json.dumps(words)}
    write_atomically(file, lambda temporary: save_file(contiguous, temporary, metadata))


def read_rows_left(file: Path, attempt: int) -> Reread | None:
    """Return what `write_rows` wrote, None when there is no file, or one of another attempt.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError: it is something
            else, or its parts do not fit.
    """
    if not file.exists():
        return None
    with safe_open(file, framework="numpy") as content:
        metadata = content.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{file} is not of format {FORMAT}")
        words = json.loads(metadata["words"])
        if words["attempt"] != attempt:
            return None
        tensor = content.get_tensor
        sheet = RereadTokens(**{name: tensor(name) for name in _OF_THE_TOKENS})
        points = {
            str(one["path"]): PointRows(
                **{name: tensor(f"{number}.{name}") for name in _OF_A_POINT},
                not_finite=int(one["not_finite"]),
                dropped={str(reason): int(rows) for reason, rows in one["dropped"].items()},
            )
            for number, one in enumerate(words["points"])
        }
        pieces = [str(piece) for piece in json.loads(tensor("pieces").tobytes())]
        again = Reread(
            sheet, points, pieces, tensor("weight"), Extent(**words["extent"]), bool(words["joined"])
        )
    _refuse_what_does_not_fit(again)
    return again


def _refuse_what_does_not_fit(again: Reread) -> None:
    sheet, count = again.sheet, len(again.sheet.tokens)
    _refuse_other_types(sheet, _OF_THE_TOKENS)
    _refuse_other_types(again, {"weight": np.float64})
    for rows in again.activations.values():
        _refuse_other_types(rows, _OF_A_POINT)
    documents = len(sheet.rows)
    whole = {len(sheet.document), len(sheet.content), len(again.pieces), len(again.weight)} == {count}
    if not (whole and len(sheet.held_out) == documents and _ascending(sheet.document, documents)):
        raise ValueError("its tokens do not fit one another")
    for path, rows in again.activations.items():
        whole = len(rows.values) == len(rows.token) == len(rows.call)
        if not (whole and rows.values.ndim == 2 and _ascending(rows.token, count)):
            raise ValueError(f"its rows of {path} do not fit its tokens")
        if not np.isfinite(rows.values).all():
            raise ValueError(f"its rows of {path} are not finite")


def _refuse_other_types(holder: object, types: Mapping[str, type[np.generic]]) -> None:
    for name, wanted in types.items():
        if (found := getattr(holder, name).dtype) != wanted:
            raise ValueError(f"its {name} is {found}, not {np.dtype(wanted)}")


def _ascending(numbers: NDArray[np.int64], below: int) -> bool:
    """Return whether numbers are non-decreasing, >= 0, and below a bound."""
    if not len(numbers):
        return True
    return bool((np.diff(numbers) >= 0).all() and numbers[0] >= 0 and numbers[-1] < below)
