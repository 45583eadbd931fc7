"""The archiver's loop: pull, take, append; every 1.5 s sync to storage and acknowledge durable rows."""

import logging
import time
from typing import Self

from asysi.archive.series import Series, resume
from asysi.archive.uploading import SegmentUploader, UploadMetrics
from asysi.bus.packet import ActivationPacket
from asysi.bus.states import StreamEnd
from asysi.bus.stream import AheadError, Consumer
from asysi.contract.errors import ConfigError
from asysi.contract.quantity import parse_bytes
from asysi.contract.runtime import ARCHIVE_FOLDER, POINTS_FILE, Container
from asysi.model.points import read_points
from asysi.monitor.metrics import counter
from asysi.monitor.worker import Worker

FLUSH_SECONDS = 1.5
BUFFER_BYTES = 64 << 20
"""Buffered bytes of unfinished chunks at which they are written, whatever the number of hook points."""
_BATCH = 16
_WAIT_SECONDS = 0.1
log = logging.getLogger("asysi")


class ArchiverWorker:
    """Writes the bus's packets to the segments of an attempt.

    A packet is taken from the bus before it is appended, so the files never contain an uncounted row.
    After kill -9, the rows in the files are durable and the other consumed rows are rolled back.

    Args:
        worker: the worker process.
        stream: the bus's consumer "archiver", just attached.
        series: the segments to write.
        uploader: uploads closed segments to `output.uri`; None if that is no store.
    """

    def __init__(
        self, worker: Worker, stream: Consumer, series: Series, uploader: SegmentUploader | None = None
    ) -> None:
        self._worker, self._stream, self._series = worker, stream, series
        self._uploader = uploader
        self._flushed = time.monotonic()
        self._records = counter(worker.registry, "asysi_archive_records_total")
        self._bytes = counter(worker.registry, "asysi_archive_bytes_total")
        self._segments = counter(worker.registry, "asysi_archive_segments_total")
        self._retired = counter(worker.registry, "asysi_archive_retired_rows_total")
        self._counted_bytes = 0
        worker.status = self.status

    @classmethod
    def resumed(cls, worker: Worker, stream: Consumer) -> Self:
        """Repair the segments of a killed predecessor, restore the counters, and return the worker.

        Raises:
            ConfigError: the archive contains rows of another run.
        """
        spec = worker.experiment.spec
        folder = worker.output / ARCHIVE_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        number, rows = resume(folder, worker.attempt, tensors=spec.archive.tensors)
        try:
            stream.resume(rows)
        except AheadError as error:
            raise ConfigError(
                f"{folder} holds {error.rows} rows of {error.point} that this run has not seen ({error}): "
                "it belongs to another run, choose another output folder"
            ) from error
        store = spec.output.store
        metrics = UploadMetrics(worker.registry)
        uploader = SegmentUploader(worker.output, store, metrics) if store else None
        series = Series(
            folder=folder,
            attempt=worker.attempt,
            metadata=_metadata(worker),
            points=_known_points(worker),
            tensors=spec.archive.tensors,
            compression=spec.archive.compression,
            rotate=parse_bytes(spec.archive.rotate),
            rotate_seconds=spec.archive.rotate_seconds,
            budget=None if spec.archive.max_size is None else parse_bytes(spec.archive.max_size),
            number=number,
            uploaded=(lambda: uploader.uploaded) if uploader else None,
        )
        return cls(worker, stream, series, uploader)

    def run(self) -> StreamEnd | None:
        """Archive until the stream has ended; return how it ended, or None on SIGTERM.

        Raises:
            OSError: the storage failed; there is no retry, and the segment stays torn.
            RevokedError: another archiver has attached.
        """
        stop, health = self._worker.stop, self._worker.health
        end: StreamEnd | None = None
        while not stop.terminated:
            packets = self._stream.pull(_BATCH, _WAIT_SECONDS)
            for packet in packets:
                self._stream.take()
                self._append(packet)
            health.beat()
            self._settle_segment()
            if not packets and (end := self._stream.ended()):
                break
        self._finish(end)
        return end

    def status(self) -> dict[str, object]:
        """Return the response for `/status`."""
        return {
            "segments": self._series.number,
            "packets": self._series.packets,
            "rows": self._series.rows,
            "bytes": self._series.size,
            "buffered": self._series.buffered,
            "retired": self._series.retired,
            **({"uploaded": len(self._uploader.uploaded)} if self._uploader else {}),
            "lag": self._stream.lag(),
        }

    def _append(self, packet: ActivationPacket) -> None:
        self._series.append(packet)
        self._records.labels("metrics").inc(len(packet.rows))
        if self._series.tensors:
            self._records.labels("tensor").inc(len(packet.rows))

    def _settle_segment(self) -> None:
        """Close a full segment; flush when due."""
        if self._series.full:
            self._close_segment()
        elif self._due():
            self._series.flush()
        else:
            return
        self._flushed = time.monotonic()
        self._declare()

    def _due(self) -> bool:
        late = time.monotonic() - self._flushed >= FLUSH_SECONDS
        return late or self._series.buffered >= BUFFER_BYTES or self._stream.pressed()

    def _close_segment(self) -> None:
        retired = self._series.retired
        if self._series.close():
            self._segments.inc()
            if self._uploader is not None:
                self._uploader.notify()
        self._retired.inc(self._series.retired - retired)

    def _declare(self) -> None:
        self._stream.acknowledge()
        self._bytes.inc(self._series.size - self._counted_bytes)
        self._counted_bytes = self._series.size

    def _finish(self, end: StreamEnd | None) -> None:
        self._close_segment()
        self._declare()
        if end is not None:
            self._stream.finish(end)
        if self._uploader is not None:
            self._uploader.close()  # finish continues: here, a slow store would delay the end of the stream
        log.info(
            "%s: %d rows in %d bytes, up to segment %d",
            end or "terminated",
            self._series.rows,
            self._series.size,
            self._series.number - 1,
        )


READER = str(Container.ARCHIVER)
"""The archiver's name among the bus's readers."""


def _metadata(worker: Worker) -> dict[str, object]:
    experiment = worker.experiment
    return {
        "experiment": experiment.metadata.name,
        "model": experiment.spec.model.model_dump(mode="json", by_alias=True, exclude_none=True),
        "spec": experiment.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True),
    }


def _known_points(worker: Worker) -> list[tuple[str, str | None, int]]:
    file = worker.workspace / POINTS_FILE
    return [(point.path, point.alias, point.width) for point in read_points(file)] if file.exists() else []
