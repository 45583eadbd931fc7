"""Finished rows, one per line, from which an interrupted analysis resumes."""

import json
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from asysi.weights.reading.tensors import Tensor
from asysi.weights.tables.columns import NAMES, Row


class FinishedRows:
    """A file of rows, each stored under the key of the settings it was computed with. Thread-safe.

    A partial line left by a killed process is skipped; the next row starts on a new line.
    """

    def __init__(self, path: Path | None, settings: str) -> None:
        self._path, self._settings, self._lock = path, settings, threading.Lock()
        self._rows: dict[str, list[Row]] = {}
        self._stream: Any = None
        if path is not None:
            for row in _read(path, settings):
                self._rows.setdefault(row["param_name"], []).append(row)

    def __enter__(self) -> Self:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
            self._stream = self._path.open("a", encoding="utf-8")
            if torn and self._stream.tell():
                self._stream.write("\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def may_have(self, tensor: Tensor) -> bool:
        """Return whether the hash is worth computing: a row with the tensor's name, type and shape exists."""
        return any(_fits(row, tensor) for row in self._rows.get(tensor.name, ()))

    def row(self, tensor: Tensor, tensor_hash: str) -> Row | None:
        """Return the row for exactly these bytes."""
        rows = self._rows.get(tensor.name, ())
        return next((row for row in rows if _fits(row, tensor) and row["tensor_hash"] == tensor_hash), None)

    def add(self, row: Row) -> None:
        """Append a row; it is kept even if the process is killed."""
        if self._path is None:
            return
        line = json.dumps({"settings": self._settings, "row": row}, allow_nan=False)
        with self._lock:
            if self._stream is not None:
                self._stream.write(f"{line}\n")
                self._stream.flush()


def _fits(row: Row, tensor: Tensor) -> bool:
    return bool(
        row["dtype"] == tensor.stored and row["form"] == tensor.form and row["shape"] == str(tensor.shape)
    )


def _read(path: Path, settings: str) -> list[Row]:
    rows: list[Row] = []
    try:
        stream = path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return rows
    with stream:
        for line in stream:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if (
                isinstance(found, dict)
                and found.get("settings") == settings
                and isinstance(found.get("row"), dict)
            ):
                row = found["row"]
                if row.keys() == set(NAMES):
                    rows.append(row)
    return rows
