"""The hook worker's loop: drains the capture ring, adjusts the rate, writes the timeline, ends in band."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from safetensors import SafetensorError

from asysi.bus.states import ProducerState, StreamEnd
from asysi.bus.stream import Consumer, Producer, StreamControl
from asysi.hook.means import ChannelMeans
from asysi.hook.pacer import Pacer
from asysi.hook.relay import Relay
from asysi.hook.statistics import Statistics
from asysi.hook.timeline import Timeline, timeline_entry
from asysi.hook.totals import StreamTotals, read_totals
from asysi.monitor.health import Health
from asysi.monitor.worker import StopSignal

PACE_SECONDS = 0.25
LINE_SECONDS = 1.0
STATISTICS_SECONDS = 10.0
_BATCH = 16
_WAIT_SECONDS = 0.1
log = logging.getLogger("asysi")


@dataclass
class PeriodicTimer:
    """A periodic timer that does not catch up on missed intervals."""

    seconds: float
    last: float

    def due(self, now: float) -> bool:
        """Return whether the interval has passed; if so, start the next one."""
        if now - self.last < self.seconds:
            return False
        self.last = now
        return True


@dataclass
class Hook:
    """The loop and its collaborators."""

    captured: Consumer
    """Consumer of the capture stream."""
    published: Producer
    """Producer of the bus."""
    capture: StreamControl
    bus: StreamControl
    relay: Relay
    pacer: Pacer
    statistics: Statistics
    timeline: Timeline
    totals: StreamTotals
    """Totals at the last line of the timeline."""
    means: ChannelMeans | None = None
    """Means of the activations, where gradients are captured too."""
    tick: Callable[[], None] = lambda: None
    """Called in every round of the loop."""
    mute: bool = False
    """Whether a failure to write statistics or the timeline was already logged."""

    def run(self, health: Health, stop: StopSignal) -> StreamEnd | None:
        """Drain until the stream ends; return how it ended, or None if SIGTERM arrived first."""
        now = monotonic()
        pace, line, statistics = (
            PeriodicTimer(s, now) for s in (PACE_SECONDS, LINE_SECONDS, STATISTICS_SECONDS)
        )
        host_gone = False
        while not stop.terminated:
            moved = self._drain(stop)
            self.tick()
            health.beat()
            now = monotonic()
            if pace.due(now):
                self._steer(line.due(now))
            if statistics.due(now):
                self._write_statistics()
            if moved:
                continue
            if end := self.captured.ended():
                return end
            # Check twice, with a pull in between, to drain what the host published before it died.
            if host_gone:
                return StreamEnd.ATTEMPT_OVER
            host_gone = self.capture.writer_state() == ProducerState.GONE
        return None

    def _drain(self, stop: StopSignal) -> bool:
        """Relay the available packets to the bus; return whether there were any."""
        packets = self.captured.pull(_BATCH, _WAIT_SECONDS)
        self.pacer.observe()
        if not packets:
            return False
        packets.reverse()
        while packets and not stop.terminated:
            self.relay.forward(packets.pop())  # keep no reference: acknowledging frees its memory
            self.captured.take()
            self.captured.acknowledge()
        return True

    def _steer(self, write_line: bool) -> None:
        totals = read_totals(self.capture, self.bus)
        self.timeline.restarts.observe(totals)
        self.pacer.decide(totals)
        if write_line:
            self._write_line(totals)

    def _write_line(self, totals: StreamTotals) -> None:
        line = timeline_entry(self.totals, totals, self.pacer.pace.rate)
        self._describe(lambda: self.timeline.append(line))
        self.totals = totals

    def _write_statistics(self) -> None:
        self._describe(self.statistics.write)
        if self.means is not None:
            self._describe(self.means.write)

    def _describe(self, write: Callable[[], None]) -> None:
        """Call `write`, which writes descriptive files only: a storage failure must not stop the stream."""
        try:
            write()
        except (OSError, SafetensorError) as error:
            if not self.mute:
                log.warning("cannot write statistics or timeline: %s", error)
            self.mute = True

    def finish(self, end: StreamEnd | None) -> None:
        """Write the last line and the statistics, and propagate the end to the bus."""
        self._write_line(read_totals(self.capture, self.bus))
        self.timeline.close()
        self._write_statistics()
        if end is None:
            return
        self.published.end(end)
        self.captured.finish(end)
        log.info("the stream has ended: %s", end)


def status(capture: StreamControl, bus: StreamControl, pacer: Pacer) -> Callable[[], dict[str, object]]:
    """Return the function that builds the response of /status: total rows and the rate."""

    def answer() -> dict[str, object]:
        totals = read_totals(capture, bus)
        return {
            "container": "hook",
            "rate": pacer.pace.rate,
            "steps": totals.steps,
            "rows": {
                "seen": totals.capture.seen,
                "sampledOut": totals.capture.sampled_out,
                "captured": sum(totals.capture.published),
                "dropped": dict(totals.capture.dropped),
                "published": sum(totals.bus.published),
                "droppedAtBus": dict(totals.bus.dropped),
            },
            "consumers": {
                name: {
                    "state": consumer.state,
                    "lag": consumer.lag,
                    "durable": consumer.durable,
                    "lapped": consumer.lapped,
                    "rolledBack": consumer.rolled_back,
                }
                for ring in (totals.capture, totals.bus)
                for name, consumer in ring.consumers.items()
            },
        }

    return answer
