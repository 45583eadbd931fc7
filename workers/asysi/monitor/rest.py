"""A sidecar whose work is done: it is there, healthy, and touches nothing until it is asked to go.

Kubernetes starts a sidecar again whatever it ended with, until the pod ends: one that left would count as
restarted, and its log would be the empty one of its successor. What its stream has come to stands in the
ring's control file, so one that is started again all the same comes straight here.
"""

import gc
import logging
import time
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
"""The ring that each sidecar reads, under its own name."""
_TICK = 0.2
log = logging.getLogger("asysi")


def has_ended(worker: Worker) -> bool:
    """Whether the container's reader has seen the end of this attempt's stream; False where no ring is."""
    if worker.container not in RINGS:
        return False
    from asysi.bus.ring import CppShardedSPMCBus  # noqa: PLC0415 - the frame also runs where no ring is built

    try:
        with CppShardedSPMCBus(worker.shm / RINGS[worker.container]).control() as control:
            return ReaderState(control.reader_state(str(worker.container))).final
    except (StreamError, ValueError):
        return False


def rest(worker: Worker) -> int:
    """Be alive and ready until SIGTERM; returns 0, because nothing is left to checkpoint.

    What the worker held is freed, if nobody else holds it: its last answer to /status stays.
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
