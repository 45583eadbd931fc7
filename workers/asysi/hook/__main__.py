"""`python -m asysi.hook`: the hook container."""

from contextlib import ExitStack
from pathlib import Path

from asysi.bus.quantization import WIRE
from asysi.bus.ring import CppShardedSPMCBus
from asysi.bus.states import ProducerState, StreamEnd
from asysi.bus.stream import Consumer, Producer, StreamControl
from asysi.contract.quantity import parse_bytes
from asysi.contract.runtime import BUS_RING, CAPTURE_RING, RANGES_FILE, TIMELINE_FILE, Container, Exit
from asysi.hook.finite import NonFiniteCounter, Saturated
from asysi.hook.loop import Hook, status
from asysi.hook.means import ChannelMeans
from asysi.hook.pacer import Pacer
from asysi.hook.pairs import PairWindow, Unpaired
from asysi.hook.ranges import Ranges
from asysi.hook.rate import Limits
from asysi.hook.relay import Relay
from asysi.hook.statistics import Statistics
from asysi.hook.timeline import Timeline
from asysi.hook.totals import HOOK, read_totals
from asysi.monitor.metrics import histogram
from asysi.monitor.process import run_worker
from asysi.monitor.rest import idle_until_terminated
from asysi.monitor.worker import Worker

STATISTICS_FILE = Path("statistics.json")
MEANS_FILE = Path("means.safetensors")


def main(worker: Worker) -> int:
    """Relay packets from the capture ring to the bus until the stream ends, then wait for the pod to end."""
    capture_ring, bus_ring = (CppShardedSPMCBus(worker.shm / folder) for folder in (CAPTURE_RING, BUS_RING))
    with ExitStack() as open_rings:
        capture = open_rings.enter_context(capture_ring.control())
        bus = open_rings.enter_context(bus_ring.control())
        captured = open_rings.enter_context(capture_ring.consumer(HOOK))
        if ended := ProducerState(bus.writer_state()).end:  # the predecessor was killed just before exiting
            captured.finish(ended)
            return idle_until_terminated(worker)
        threads = min(256, max(1, int(worker.experiment.spec.resources.hook.cpus)))
        published = open_rings.enter_context(bus_ring.producer(threads))
        captured.acknowledge()  # packets taken before a restart are on the bus
        hook = _assemble(worker, captured, published, capture, bus)
        worker.status = status(capture, bus, hook.pacer)
        worker.health.ready()
        end = hook.run(worker.health, worker.stop)
        if capture.writer_state() == ProducerState.GONE and end:
            _close_for_the_dead(capture_ring)
        hook.finish(end)
        del hook
        return idle_until_terminated(worker) if end else Exit.TERMINATED


def _assemble(
    worker: Worker, captured: Consumer, published: Producer, capture: StreamControl, bus: StreamControl
) -> Hook:
    spec = worker.experiment.spec
    statistics = Statistics(worker.output / STATISTICS_FILE)
    latency = histogram(worker.registry, "asysi_relay_latency_seconds")
    gauges = dict(zip(capture.accounts(), capture.gauges(HOOK), strict=False))
    not_finite = NonFiniteCounter(captured, gauges)
    saturated = Saturated(captured, published, gauges)
    totals = read_totals(capture, bus)
    sampling = spec.capture.sampling
    wanted = WIRE[spec.capture.quantization]
    ranges = Ranges(worker.output / RANGES_FILE) if wanted.by_channel else None
    observers = (statistics.observe, not_finite.observe, saturated.observe)
    paired = {"activations", "gradients"} <= set(spec.capture.kinds)
    means = ChannelMeans(worker.output / MEANS_FILE) if paired else None
    pairs = None
    if means is not None:  # capture.size holds a whole step, so the window does
        pairs = PairWindow(parse_bytes(spec.capture.size), means, Unpaired(captured, gauges).count)
    return Hook(
        captured=captured,
        published=published,
        capture=capture,
        bus=bus,
        relay=Relay(published, wanted, observers, latency.observe, ranges, pairs=pairs),
        pacer=Pacer(capture, bus, Limits(most=sampling.rate, least=sampling.min_rate), totals),
        statistics=statistics,
        timeline=Timeline(worker.output / TIMELINE_FILE, worker.attempt),
        totals=totals,
        means=means,
    )


def _close_for_the_dead(capture_ring: CppShardedSPMCBus) -> None:
    """Take over from a host that died: book its open claim and mark the attempt as over in the ring."""
    capture_ring.producer().end(StreamEnd.ATTEMPT_OVER)


if __name__ == "__main__":
    run_worker(Container.HOOK, main)
