"""The queue of results waiting to be written, and the thread that drains it."""

import logging
import threading
import time
from collections import deque

from asysi.pipeline.nodes.committer import Committer
from asysi.pipeline.nodes.config import WriterConfig
from asysi.pipeline.rows.blocks import Result

QUEUED_BYTES = 64 << 20
"""Maximum bytes waiting to be written, regardless of `queue_size`."""


_WORTH_SAYING = 0.001
"""Minimum wait in seconds that is logged."""
_log = logging.getLogger("asysi.pipeline")


class Writer:
    """Passes one node's results to a committer: in a separate thread with `async_mode`, otherwise directly.

    Args:
        node: name of the node.
        config: how to write.
        committer: writes and commits.
    """

    def __init__(self, node: str, config: WriterConfig, committer: Committer) -> None:
        self._node, self._config, self._committer = node, config, committer
        self._queue: deque[tuple[Result, bytes]] = deque()
        self._queued_rows = self._queued_bytes = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self.waited = 0.0
        """Seconds that computing has waited for the writer."""
        self._thread: threading.Thread | None = None
        if config.async_mode:
            self._thread = threading.Thread(target=self._run, name=f"{node}-writer", daemon=True)
            self._thread.start()

    def put(self, result: Result, source: bytes) -> None:
        """Add the next result in source order, with the source bytes that it covers.

        Blocks while the queue is full.

        Raises:
            BaseException: the error that stopped the writer.
        """
        if self._thread is None:
            self._committer.gather([(result, source)])
            self._committer.step(ending=False)
            return
        with self._changed:
            if self._is_full(result):
                self._wait_for_room(result)
            self._raise()
            self._queue.append((result, source))
            self._queued_rows += max(result.made, 1)
            self._queued_bytes += len(result.data)
            self._changed.notify_all()

    def close(self) -> None:
        """Write and commit everything.

        Raises:
            BaseException: the error that stopped the writer.
        """
        if self._thread is None:
            self._committer.step(ending=True)
        else:
            with self._changed:
                self._committer.ending = True
                self._changed.notify_all()
            self._thread.join()
            self._raise()

    def _is_full(self, result: Result) -> bool:
        if self._error is not None or not self._queue:
            return False
        return (
            self._queued_rows + result.made > self._config.queue_size
            or self._queued_bytes + len(result.data) > QUEUED_BYTES
        )

    def _wait_for_room(self, result: Result) -> None:
        began, rows = time.monotonic(), self._queued_rows
        while self._is_full(result):
            self._changed.wait(self._config.retry_interval)
        took = time.monotonic() - began
        self.waited += took
        if took >= _WORTH_SAYING:
            _log.info("[Backpressure] %s waited %.3f s for the disk: %d rows queued", self._node, took, rows)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            ending = False
            while not ending:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._queue or self._committer.ending, self._committer.pause()
                    )
                    taken, ending = list(self._queue), self._committer.ending
                    self._queue.clear()
                rows, size = sum(max(r.made, 1) for r, _ in taken), sum(len(r.data) for r, _ in taken)
                self._committer.gather(taken)
                self._committer.step(ending=ending)
                with self._changed:
                    self._queued_rows -= rows
                    self._queued_bytes -= size
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - re-raised in the computing thread
            with self._changed:
                self._error = error
                self._queue.clear()
                self._changed.notify_all()
