"""Output files of an export: take columns and write one file atomically."""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from asysi.contract.errors import ConfigError
from asysi.files import sync

Format = Literal["parquet", "arrow", "safetensors", "npz"]
SUFFIX: dict[str, str] = {name: f".{name}" for name in ("parquet", "arrow", "safetensors", "npz")}
Columns = dict[str, NDArray[Any]]
"""Column name → [n] or [n, width]; every batch of a file has the same columns, types and width."""


class RowSink(Protocol):
    """A file being written."""

    def write(self, columns: Columns) -> None:
        """Append a batch of rows."""

    def close(self) -> None:
        """Write the end of the file."""

    def release(self) -> None:
        """Release all resources, whether closed or not."""


def require(output_format: Format) -> None:
    """Raise ConfigError if the format needs a package that is not installed."""
    if output_format in {"parquet", "arrow"} and find_spec("pyarrow") is None:
        raise ConfigError(
            f"{output_format} needs pyarrow: pip install 'asysi[export]', or export npz or safetensors"
        )


@contextmanager
def atomic_sink(
    path: Path, output_format: Format, metadata: dict[str, str]
) -> Iterator[Callable[[Columns], None]]:
    """Yield a function that appends batches; the file appears atomically at the end, if there was a batch."""
    fresh = path.with_name(f".{path.name}.part")
    sinks: list[RowSink] = []

    def write(columns: Columns) -> None:
        if not sinks:
            sinks.append(_SINKS[output_format](fresh, columns, metadata))
        sinks[0].write(columns)

    try:
        yield write
        if sinks:
            sinks[0].close()
            _sync(fresh)
            fresh.replace(path)
            sync(path.parent)
    finally:
        for sink in sinks:
            sink.release()
        fresh.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


class _Arrow:
    """Parquet or Arrow IPC file; activations are fixed-size lists."""

    def __init__(self, path: Path, columns: Columns, metadata: dict[str, str], *, parquet: bool) -> None:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        from pyarrow import parquet as pq  # noqa: PLC0415

        schema = _batch(columns).schema.with_metadata(metadata)
        self._writer: Any = (
            pq.ParquetWriter(path, schema, compression="zstd") if parquet else pa.ipc.new_file(path, schema)
        )

    def write(self, columns: Columns) -> None:
        self._writer.write_batch(_batch(columns))

    def close(self) -> None:
        self._writer.close()

    def release(self) -> None:
        with suppress(Exception):  # an unfinished file is removed anyway
            self._writer.close()


def _batch(columns: Columns) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    return pa.RecordBatch.from_arrays([_arrow(column) for column in columns.values()], names=list(columns))


def _arrow(column: NDArray[Any]) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    if column.ndim == 1:
        return pa.array(np.ascontiguousarray(column))
    return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])


class _Spooled:
    """Formats that need a column's length first: columns are spooled to temporary files."""

    def __init__(self, path: Path, columns: Columns, metadata: dict[str, str]) -> None:
        self._path, self._metadata, self._rows = path, metadata, 0
        self._like = {name: column[:0] for name, column in columns.items()}
        self._open = ExitStack()
        self._spools: dict[str, IO[bytes]] = {}
        for name in columns:
            spool = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - released below
            self._spools[name] = self._open.enter_context(spool)

    def write(self, columns: Columns) -> None:
        self._rows += len(next(iter(columns.values())))
        for name, column in columns.items():
            self._spools[name].write(np.ascontiguousarray(column).data)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a whole column."""
        return (self._rows, *self._like[name].shape[1:])

    def pour(self, name: str, file: IO[bytes]) -> None:
        """Copy a column into `file`."""
        spool = self._spools[name]
        spool.seek(0)
        shutil.copyfileobj(spool, file, 1 << 20)

    def release(self) -> None:
        self._open.close()


class _Npz(_Spooled):
    """NumPy's archive of arrays, uncompressed."""

    def close(self) -> None:
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_STORED) as archive:
            for name, like in self._like.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    header = {"descr": like.dtype.str, "fortran_order": False, "shape": self.shape(name)}
                    np.lib.format.write_array_header_2_0(file, header)
                    self.pour(name, file)


_SAFETENSORS = {
    "<f4": "F32", "<f2": "F16", "<u8": "U64", "<u4": "U32", "<i4": "I32", "<u2": "U16", "|b1": "BOOL",
}  # fmt: skip


class _Safetensors(_Spooled):
    """safetensors: length of a JSON table, the table, the columns; widest type first, for alignment."""

    def close(self) -> None:
        names = sorted(self._like, key=lambda name: -self._like[name].itemsize)
        table: dict[str, Any] = {"__metadata__": self._metadata}
        at = 0
        for name in names:
            like = self._like[name]
            size = int(np.prod(self.shape(name))) * like.itemsize
            table[name] = {
                "dtype": _SAFETENSORS[like.dtype.str],
                "shape": self.shape(name),
                "data_offsets": [at, at + size],
            }
            at += size
        text = json.dumps(table).encode()
        text += b" " * (-len(text) % 8)
        with self._path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                self.pour(name, file)


def _parquet(path: Path, columns: Columns, metadata: dict[str, str]) -> RowSink:
    return _Arrow(path, columns, metadata, parquet=True)


def _ipc(path: Path, columns: Columns, metadata: dict[str, str]) -> RowSink:
    return _Arrow(path, columns, metadata, parquet=False)


_SINKS: dict[Format, Callable[[Path, Columns, dict[str, str]], RowSink]] = {
    "parquet": _parquet,
    "arrow": _ipc,
    "safetensors": _Safetensors,
    "npz": _Npz,
}
