"""`python -m asysi.archive`: the archiver container."""

from contextlib import closing

from asysi.archive.worker import READER, ArchiverWorker
from asysi.bus.factory import create_data_bus
from asysi.contract.runtime import Container, Exit
from asysi.monitor.process import run_worker
from asysi.monitor.rest import idle_until_terminated
from asysi.monitor.worker import Worker


def main(worker: Worker) -> int:
    """Write the bus's packets to `.mscan` segments until the stream ends, then wait until the pod ends."""
    with closing(create_data_bus(worker.experiment.spec, worker.shm).consumer(READER)) as stream:
        archiver = ArchiverWorker.resumed(worker, stream)
        worker.health.ready()
        end = archiver.run()
        del archiver
        return idle_until_terminated(worker) if end else Exit.TERMINATED


if __name__ == "__main__":
    run_worker(Container.ARCHIVER, main)
