"""`python -m asysi.hook`: the hook container."""

from contextlib import ExitStack
from pathlib import Path

from asysi.bus.packet import Quantization
from asysi.bus.states import ProducerState, StreamEnd
from asysi.contract.runtime import BUS_RING, CAPTURE_RING, TIMELINE_FILE, Container, Exit
from asysi.hook.books import HOOK, read_books
from asysi.hook.finite import NotFinite
from asysi.hook.loop import Hook, status
from asysi.hook.pacer import Pacer
from asysi.hook.rate import Limits
from asysi.hook.relay import Relay
from asysi.hook.statistics import Statistics
from asysi.hook.timeline import Timeline
from asysi.monitor.metrics import histogram
from asysi.monitor.process import run_worker
from asysi.monitor.rest import rest
from asysi.monitor.worker import Worker
from asysi_ring import Control, Reader, Writer

STATISTICS_FILE = Path("statistics.json")


def main(worker: Worker) -> int:
    """Carry the capture ring's packets to the bus until the stream ends, then wait for the pod's end."""
    capture_folder, bus_folder = str(worker.shm / CAPTURE_RING), str(worker.shm / BUS_RING)
    with ExitStack() as open_rings:
        capture = open_rings.enter_context(Control(capture_folder))
        bus = open_rings.enter_context(Control(bus_folder))
        reader = open_rings.enter_context(Reader(capture_folder, HOOK))
        if ended := ProducerState(bus.writer_state()).end:  # a predecessor was killed after its last act
            reader.finalise(ended.reader_state)
            return rest(worker)
        writer = open_rings.enter_context(Writer(bus_folder))
        reader.mark_durable()  # what was consumed before a restart is on the bus
        hook = _assemble(worker, reader, writer, capture, bus)
        worker.status = status(capture, bus, hook.pacer)
        worker.health.ready()
        end = hook.run(worker.health, worker.stop)
        if capture.writer_state() == ProducerState.GONE and end:
            _close_for_the_dead(capture_folder)
        hook.finish(end)
        del hook
        return rest(worker) if end else Exit.TERMINATED


def _assemble(worker: Worker, reader: Reader, writer: Writer, capture: Control, bus: Control) -> Hook:
    spec = worker.experiment.spec
    statistics = Statistics(worker.output / STATISTICS_FILE)
    latency = histogram(worker.registry, "asysi_relay_latency_seconds")
    not_finite = NotFinite(reader, capture)
    books = read_books(capture, bus)
    sampling = spec.capture.sampling
    wanted = Quantization[spec.capture.quantization.upper()]
    return Hook(
        reader=reader,
        writer=writer,
        capture=capture,
        bus=bus,
        relay=Relay(capture, writer, wanted, (statistics.look, not_finite.look), latency.observe),
        pacer=Pacer(capture, bus, Limits(most=sampling.rate, least=sampling.min_rate), books),
        statistics=statistics,
        timeline=Timeline(worker.output / TIMELINE_FILE, worker.attempt),
        books=books,
    )


def _close_for_the_dead(capture_folder: str) -> None:
    """Take over from a host that died: its open claim is booked, the ring says that the attempt is over."""
    with Writer(capture_folder) as heir:
        heir.close(StreamEnd.ATTEMPT_OVER)


if __name__ == "__main__":
    run_worker(Container.HOOK, main)
