"""Puts the hook's loop together from an experiment's spec."""

from collections.abc import Callable

from asysi.bus.quantization import WIRE
from asysi.bus.stream import Consumer, Producer, StreamControl
from asysi.contract.quantity import parse_bytes
from asysi.contract.runtime import MEANS_FILE, RANGES_FILE, STATISTICS_FILE, TIMELINE_FILE
from asysi.hook.finite import NonFiniteCounter, Saturated
from asysi.hook.loop import Hook
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
from asysi.monitor.worker import Worker


def assemble(  # noqa: PLR0917 - its collaborators
    worker: Worker,
    captured: Consumer,
    published: Producer,
    capture: StreamControl,
    bus: StreamControl,
    tick: Callable[[], None] = lambda: None,
) -> Hook:
    """Return the loop of an experiment, with its files in the worker's output.

    Args:
        worker: whose registry gets the latency of the relay.
        captured: consumer of the capture stream.
        published: producer of the bus.
        capture: control of the capture stream.
        bus: control of the bus.
        tick: called in every round of the loop.
    """
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
        tick=tick,
    )
