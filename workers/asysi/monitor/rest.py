"""A sidecar whose work is done: it stays alive and healthy, and idles until it is terminated.

Kubernetes restarts a sidecar regardless of its exit code until the pod ends: a sidecar that exits would count
as restarted, and its log would be replaced by the empty log of the new container. The state of its stream is
stored in the ring's control file, so a sidecar that is restarted anyway idles immediately.
"""

import gc
import logging
import time
from contextlib import closing
from pathlib import PurePosixPath

from asysi.bus.states import ReaderState
from asysi.bus.stream import StreamError
from asysi.contract.runtime import BUS_RING, CAPTURE_RING, Container, Exit
from asysi.monitor.worker import Worker

RINGS: dict[Container, PurePosixPath] = {
    Container.HOOK: CAPTURE_RING,
    Container.SAE: BUS_RING,
    Container.ARCHIVER: BUS_RING,
}
"""The ring that each sidecar reads, with its container name as reader name."""
_TICK = 0.2
log = logging.getLogger("asysi")


def has_ended(worker: Worker) -> bool:
    """Return whether the container's reader has finished this attempt's stream; False without a ring."""
    if worker.container not in RINGS:
        return False
    from asysi.bus.factory import create_data_bus  # noqa: PLC0415 - few workers have a stream

    try:
        bus = create_data_bus(worker.experiment.spec, worker.shm, RINGS[worker.container])
        with closing(bus.control()) as control:
            return ReaderState(control.reader_state(str(worker.container))).final
    except (StreamError, ValueError):
        return False


def idle_until_terminated(worker: Worker) -> int:
    """Stay alive and ready until SIGTERM; returns 0, because nothing is left to checkpoint.

    Releases the worker's memory unless other references exist; /status keeps returning its last response.
    """
    answer = worker.status()
    worker.status = lambda: answer
    gc.collect()
    log.info(
        "the stream of attempt %d has ended and everything is written: waiting for the pod's end",
        worker.attempt,
    )
    worker.health.ready()
    while not worker.stop.terminated:
        worker.health.beat()
        time.sleep(_TICK)
    return Exit.OK
