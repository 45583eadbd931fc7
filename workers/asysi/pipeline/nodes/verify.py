"""Verifies sources and outputs against the ledger and their seals."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asysi.pipeline.ledger.ledger import Range
from asysi.pipeline.rows import values
from asysi.pipeline.rows.ids import FIELD
from asysi.pipeline.streams.data_streams import IDataStream
from asysi.pipeline.streams.row_log import FileLog, Log
from asysi.pipeline.streams.seal import START_OVER, ChangedError, SealError, prefix_digest
from asysi.pipeline.streams.source import CHUNK


def check_log(node: str, log: FileLog, last: Range, ranges: Iterator[Range]) -> Any:
    """Return the running digest of the committed part of an output.

    Raises:
        SealError: it differs from what was committed; the message locates the rows.
    """
    size = log.path.stat().st_size if log.path.exists() else 0
    if size < last.out_end:
        raise SealError(
            f"{log.path} was cut: node {node} has committed {last.out_rows} rows in {last.out_end} "
            f"bytes, but only {size} bytes"
            f" are left. Restore it, or {START_OVER}"
        )
    with log.path.open("rb", buffering=CHUNK) as stream:
        digest = prefix_digest(stream, last.out_end)
    if last.out_digest is not None and digest.hexdigest() != last.out_digest:
        raise SealError(
            f"{log.path} was changed after node {node} had committed it{_where(log.path, ranges)}. Restore"
            f" it, or {START_OVER}"
        )
    return digest


def _where(path: Path, ranges: Iterator[Range]) -> str:
    """Describe the first committed range whose rows have changed."""
    with path.open("rb", buffering=CHUNK) as stream:
        digest, at, rows = prefix_digest(io.BytesIO(), 0), 0, 0
        for done in ranges:
            digest.update(stream.read(done.out_end - at))
            if digest.hexdigest() != done.out_digest:
                within = f"its rows {rows} to {done.out_rows} (bytes {at} to {done.out_end})"
                return f": the first change is in {within}"
            at, rows = done.out_end, done.out_rows
    return ""


def verify_seal(bus: IDataStream, advice: str | None) -> None:
    """Compare a stream with its seal.

    Raises:
        SealError: they differ; the message ends with the advice.
    """
    try:
        bus.verify()
    except ChangedError as error:
        raise SealError(f"{error.facts}. {advice or error.advice}") from None
    except FileNotFoundError:
        raise SealError(f"{bus.uri} is gone, and its seal is still there. {advice or 'Restore it'}") from None


def check_written(bus: IDataStream) -> None:
    """Compare a stream with what the previous node wrote to it.

    Raises:
        SealError: they differ.
    """
    expected, log = written_digest(bus), bus.log()
    if expected is None or not isinstance(log, FileLog):
        return
    size = log.path.stat().st_size if log.path.exists() else 0
    with log.path.open("rb", buffering=0) as stream:
        found = prefix_digest(stream, size).hexdigest()
    if found != expected:
        raise SealError(
            f"{bus.uri} was changed after it had been sealed: its digest is {found}, not {expected}. Restore"
            f" it, or {START_OVER}"
        )


def written_digest(bus: IDataStream) -> str | None:
    """Return the digest of what a node of this run wrote to a stream, or None if unknown."""
    log = bus.log() if bus.bound else None
    return log.digest.hexdigest() if isinstance(log, FileLog) and log.digest is not None else None


def first_and_last_id(log: Log) -> tuple[str | None, str | None]:
    """Return the ids of the first and last row."""
    if not log.size or log.volatile:
        return None, None
    head = b""
    while b"\n" not in head and len(head) < log.size:
        head += log.read(len(head), CHUNK)
    step = CHUNK
    tail = log.read(max(0, log.size - step), step)
    while tail.count(b"\n") < 2 and step < log.size:
        step *= 2
        tail = log.read(max(0, log.size - step), step)
    first, last = head.partition(b"\n")[0], tail.rstrip(b"\n").rpartition(b"\n")[2]
    return str(values.loads(first)[FIELD]), str(values.loads(last)[FIELD])


def committed_rows(log: Log, size: int) -> Iterator[dict[str, Any]]:
    """Yield the rows in the first `size` bytes of a log."""
    at, rest = 0, b""
    while at < size:
        data = log.read(at, min(CHUNK, size - at))
        at += len(data)
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        yield from map(values.loads, lines)
