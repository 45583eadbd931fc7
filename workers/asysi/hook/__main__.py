"""`python -m asysi.hook`: the hook container."""

from contextlib import ExitStack, closing

from asysi.bus.factory import create_data_bus
from asysi.bus.states import ProducerState, StreamEnd
from asysi.bus.stream import DataBus
from asysi.contract.runtime import BUS_RING, CAPTURE_RING, Container, Exit
from asysi.hook.assembly import assemble
from asysi.hook.loop import status
from asysi.hook.totals import HOOK
from asysi.monitor.process import run_worker
from asysi.monitor.rest import idle_until_terminated
from asysi.monitor.worker import Worker


def main(worker: Worker) -> int:
    """Relay packets from the capture ring to the bus until the stream ends, then wait for the pod to end."""
    capture_ring, bus_ring = (
        create_data_bus(worker.experiment.spec, worker.shm, stream) for stream in (CAPTURE_RING, BUS_RING)
    )
    with ExitStack() as open_rings:
        capture = open_rings.enter_context(closing(capture_ring.control()))
        bus = open_rings.enter_context(closing(bus_ring.control()))
        captured = open_rings.enter_context(closing(capture_ring.consumer(HOOK)))
        if ended := ProducerState(bus.writer_state()).end:  # the predecessor was killed just before exiting
            captured.finish(ended)
            return idle_until_terminated(worker)
        threads = min(256, max(1, int(worker.experiment.spec.resources.hook.cpus)))
        published = open_rings.enter_context(closing(bus_ring.producer(threads)))
        captured.acknowledge()  # packets taken before a restart are on the bus
        hook = assemble(worker, captured, published, capture, bus)
        worker.status = status(capture, bus, hook.pacer)
        worker.health.ready()
        end = hook.run(worker.health, worker.stop)
        if capture.writer_state() == ProducerState.GONE and end:
            _close_for_the_dead(capture_ring)
        hook.finish(end)
        del hook
        return idle_until_terminated(worker) if end else Exit.TERMINATED


def _close_for_the_dead(capture_ring: DataBus) -> None:
    """Take over from a host that died: book its open claim and mark the attempt as over in the ring."""
    capture_ring.producer().end(StreamEnd.ATTEMPT_OVER)


if __name__ == "__main__":
    run_worker(Container.HOOK, main)
