"""Uploads the closed segments of an archive while the next ones are written."""

import logging
import threading
from collections.abc import Set
from pathlib import Path

from prometheus_client import CollectorRegistry

from asysi.archive.errors import MScanError
from asysi.archive.segment import open_segment, parse_segment_name, segment_order
from asysi.contract.runtime import ARCHIVE_FOLDER
from asysi.monitor.metrics import counter
from asysi.store.results import UploadRecord, upload_segments
from asysi.store.retrying import until_done

_LEAVE_SECONDS = 10.0
"""How long to wait for a request that is being sent when the archiver stops."""
log = logging.getLogger("asysi")


def segments_to_upload(output: Path, there: Set[str]) -> tuple[list[Path], list[Path]]:
    """Return the segments that a store lacks, in order of writing: closed ones, and those without a footer.

    Args:
        output: the output folder.
        there: names of the segments that the store holds.
    """
    names = (output / ARCHIVE_FOLDER).glob("attempt-*-segment-*.mscan")
    missing = [path for path in names if parse_segment_name(path.name) and path.name not in there]
    closed = [path for path in sorted(missing, key=segment_order) if _is_closed(path)]
    return closed, [path for path in missing if path not in closed]


def _is_closed(path: Path) -> bool:
    try:
        open_segment(path)
    except (MScanError, FileNotFoundError):
        return False
    return True


class UploadMetrics:
    """Counters of uploads. They are there without a store too, and stay zero."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.bytes = counter(registry, "asysi_archive_uploaded_bytes_total")
        self.failures = counter(registry, "asysi_archive_upload_failures_total")


class SegmentUploader:
    """A thread that uploads closed segments, and tries again after failures.

    Nothing waits for it: rows are durable once they are in a local segment. A segment that the disk budget
    deletes before it was uploaded is lost, and counted.

    Args:
        output: the output folder.
        address: its address in the store.
        metrics: counters of the worker.
    """

    def __init__(self, output: Path, address: str, metrics: UploadMetrics) -> None:
        self._output, self._address = output, address
        self._record = UploadRecord(output, address)
        self._bytes, self._failures = metrics.bytes, metrics.failures
        self._due, self._stop = threading.Event(), threading.Event()
        self._due.set()  # for what an earlier process left
        self._thread = threading.Thread(target=self._run, name="mscan-uploader", daemon=True)
        self._thread.start()

    @property
    def uploaded(self) -> frozenset[str]:
        """Names of the segments that the store holds."""
        return self._record.segments()

    def notify(self) -> None:
        """Report that a segment was closed."""
        self._due.set()

    def close(self) -> None:
        """Stop after the request that is being sent; the next process continues the segment."""
        self._stop.set()
        self._due.set()
        self._thread.join(_LEAVE_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._due.wait()
            self._due.clear()
            try:
                until_done(self._upload, self._stop, failed=self._failures.inc)
            except Exception:  # the archive goes on; finish uploads the rest, or says why it cannot
                self._failures.inc()
                log.exception("segments are no longer uploaded during the run")
                return

    def _upload(self) -> None:
        closed, _open = segments_to_upload(self._output, self.uploaded)
        upload_segments(
            self._output,
            self._address,
            closed,
            stop=self._stop.is_set,
            progress=self._bytes.inc,
        )
