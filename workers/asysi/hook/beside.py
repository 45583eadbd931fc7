"""The hook's work in CONSUMER mode: a thread beside the model, in the host's process."""

import logging
import threading
import time

from asysi.bus.capture_queue import HOOK, CaptureQueueBus
from asysi.bus.stream import StreamError
from asysi.hook.assembly import assemble
from asysi.hook.loop import Hook
from asysi.monitor.health import Health
from asysi.monitor.worker import StopSignal, Worker

NOTE_SECONDS = 0.1
"""How often others are told of the host's progress."""
DRAIN_SECONDS = 60.0
"""Time for what is captured to reach the bus once the model is through."""
log = logging.getLogger("asysi")


class HookThread:
    """Drains the capture queue into the bus, quantised, and sets the sampling rate.

    Must be created on a thread that lives as long as the host: its connection holds the place at the bus.

    Args:
        worker: the host.
        captured: the capture stream, to which the host is attached.

    Raises:
        StreamError: there is no bus, or another host publishes to it.
    """

    def __init__(self, worker: Worker, captured: CaptureQueueBus) -> None:
        self._captured, self._published = captured, captured.bus.producer()
        self._noted = 0.0
        self._hook: Hook = assemble(
            worker, captured.consumer(HOOK), self._published, captured.control(), captured.bus.control(),
            self._tick,
        )  # fmt: skip
        self._note()  # a host that dies before the thread's first round has been here
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="hook", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what ended the thread before its time, if anything did."""
        if self._failure is not None:
            raise self._failure

    def join(self) -> None:
        """Wait until everything captured is on the bus, and the bus is ended.

        Raises:
            StreamError: it took longer than DRAIN_SECONDS, or the bus is gone.
        """
        self._thread.join(DRAIN_SECONDS)
        self.check()
        if self._thread.is_alive():
            raise StreamError(f"captured rows did not reach the bus within {DRAIN_SECONDS:.0f} s")

    def _run(self) -> None:
        try:
            end = self._hook.run(Health(), StopSignal())
            self._note()  # before the end: whoever sees it finds the final counters
            self._hook.finish(end)
        except Exception as error:  # the host raises it at its next step
            log.exception("the hook thread failed")
            self._failure = error

    def _tick(self) -> None:
        if time.monotonic() - self._noted >= NOTE_SECONDS:
            self._note()

    def _note(self) -> None:
        self._noted = time.monotonic()
        self._published.set_note(self._captured.note())
