"""Reads both rings into a snapshot. The only module of finish that accesses them."""

from pathlib import Path

from asysi.bus.accounts import ConsumerAccounts, StreamAccounts, read_accounts
from asysi.bus.factory import create_data_bus
from asysi.bus.mailbox import CaptureWord, Gauge, HookGauge, Mailbox
from asysi.contract.runtime import BUS_RING, CAPTURE_RING
from asysi.contract.spec import Spec
from asysi.finish.ledger import AttemptCounts, finite
from asysi.finish.status import HostCounters, Snapshot, TrainerGauges


class FinishedRings:
    """Read-only view of an attempt's rings.

    Args:
        spec: of the experiment.
        shm: folder of the rings.

    Raises:
        StreamError: a ring is missing or has another version.
    """

    def __init__(self, spec: Spec, shm: Path) -> None:
        self._capture = create_data_bus(spec, shm, CAPTURE_RING).control()
        self._bus = create_data_bus(spec, shm, BUS_RING).control()

    def snapshot(self) -> Snapshot:
        """Return the state of both rings; the counters balance only once the stream has settled."""
        capture, bus = read_accounts(self._capture), read_accounts(self._bus)
        host, hook = _host(self._capture), capture.consumers["hook"]
        sae = bus.consumers.get("sae")
        return Snapshot(
            books=AttemptCounts(
                capture.produced,
                hook.consumed,
                bus.produced,
                {name: consumer.consumed for name, consumer in bus.consumers.items()},
                {point: _whole(row[HookGauge.NOT_FINITE]) for point, row in hook.gauges.items()},
                {point: _whole(row[HookGauge.SATURATED]) for point, row in hook.gauges.items()},
                {point: _whole(row[HookGauge.UNPAIRED]) for point, row in hook.gauges.items()},
            ),
            host=host,
            capture_state=capture.state,
            bus_state=bus.state,
            hook_state=hook.state,
            readers={name: consumer.state for name, consumer in bus.consumers.items()},
            lag={"hook": hook.lag, **{name: consumer.lag for name, consumer in bus.consumers.items()}},
            points=_points(sae) if sae else (),
            motion=_motion(host, capture, bus),
        )

    def close(self) -> None:
        """Close both rings."""
        self._capture.close()
        self._bus.close()


def _whole(number: float) -> int:
    return int(finite(number) or 0)


def _points(sae: ConsumerAccounts) -> tuple[TrainerGauges, ...]:
    return tuple(
        TrainerGauges(
            name,
            row[Gauge.FVU],
            row[Gauge.L0],
            row[Gauge.DEAD],
            row[Gauge.LOSS],
            row[Gauge.TRAINED],
            row[Gauge.NOT_FINITE],
            row[Gauge.OUTLIERS],
        )
        for name, row in sae.gauges.items()
    )


def _host(capture: Mailbox) -> HostCounters:
    word = capture.get
    return HostCounters(
        steps=word(CaptureWord.STEPS),
        steps_total=word(CaptureWord.STEPS_TOTAL),
        tokens=word(CaptureWord.TOKENS),
        tokens_total=word(CaptureWord.TOKENS_TOTAL),
        tokens_excluded=word(CaptureWord.TOKENS_EXCLUDED),
        passes_begun=word(CaptureWord.PASS),
        steps_dropped=word(CaptureWord.STEPS_DROPPED),
        capture_errors=word(CaptureWord.CAPTURE_ERRORS),
        rate=capture.get_float(CaptureWord.RATE),
        capture_ns=word(CaptureWord.CAPTURE_NS),
        forward_ns=word(CaptureWord.FORWARD_NS),
        started_ns=word(CaptureWord.STARTED_NS),
        steps_before=word(CaptureWord.STEPS_BEFORE),
        tokens_before=word(CaptureWord.TOKENS_BEFORE),
        interrupted=bool(word(CaptureWord.INTERRUPTED)),
    )


def _motion(host: HostCounters, capture: StreamAccounts, bus: StreamAccounts) -> tuple[int, ...]:
    consumers = bus.consumers.values()
    cursors = [cursor for consumer in consumers for cursor in consumer.cursors]
    durable = [rows.durable for consumer in consumers for rows in consumer.consumed.values()]
    sae = bus.consumers.get("sae")
    trained = [_whole(row[Gauge.TRAINED]) for row in sae.gauges.values()] if sae else []
    marks = (capture.heads, capture.consumers["hook"].cursors, bus.heads, cursors, durable, trained)
    return (host.steps, *(mark for some in marks for mark in some))
