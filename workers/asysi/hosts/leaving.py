"""Work of a GPU host after its ring is closed: it reads the report's documents and leaves the rows."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from asysi.contract.runtime import REREAD_FILE, REREAD_LOCK, REREADER
from asysi.files import held
from asysi.hosts.frame import Host
from asysi.model.loading import LoadedModel
from asysi.monitor.worker import Worker

log = logging.getLogger("asysi")


class Leaving:
    """Whether rows are left, and how."""

    def __init__(self, worker: Worker, *, wanted: bool) -> None:
        self._worker, self._wanted = worker, wanted

    def leave(self, loaded: LoadedModel, host: Host) -> None:
        """Read, and leave rows and tokens in the workspace, if wanted; call it after the ring is closed.

        A failure only costs time: finish then reads the documents on its own CPUs.
        """
        worker = self._worker
        if not self._wanted or worker.stop.terminated:
            return
        module, _, name = REREADER.partition(":")
        try:
            getattr(import_module(module), name)(
                worker.experiment, worker.output, worker.workspace, attempt=worker.attempt, loaded=loaded,
                points=host.points, device=host.device, beat=worker.health.beat,
            )  # fmt: skip
        except Exception:  # whatever the error, the run itself is complete
            log.exception("no rows are left for the report: finish reads the documents itself")


@contextmanager
def announced(worker: Worker) -> Iterator[Leaving]:
    """Hold the lock that tells finish to wait for rows; entered before the ring is attached.

    Without a GPU no rows are left: finish reads them just as fast itself.
    """
    spec = worker.experiment.spec
    if not spec.resources.host.gpus or (spec.sae is None and not spec.archive.enabled):
        yield Leaving(worker, wanted=False)
        return
    (worker.workspace / REREAD_FILE).unlink(missing_ok=True)
    with held(worker.workspace / REREAD_LOCK):
        yield Leaving(worker, wanted=True)
