"""`python -m asysi.archive`: the archiver container."""

from asysi.archive.worker import READER, ArchiverWorker
from asysi.contract.runtime import BUS_RING, Container, Exit
from asysi.monitor.process import run_worker
from asysi.monitor.rest import rest
from asysi.monitor.worker import Worker
from asysi_ring import Control, Reader


def main(worker: Worker) -> int:
    """Write the bus's packets to `.mscan` segments until the stream ends, then wait for the pod's end."""
    folder = str(worker.shm / BUS_RING)
    with Control(folder) as control, Reader(folder, READER) as reader:
        archiver = ArchiverWorker.resumed(worker, reader, control)
        worker.health.ready()
        end = archiver.run()
        del archiver
        return rest(worker) if end else Exit.TERMINATED


if __name__ == "__main__":
    run_worker(Container.ARCHIVER, main)
