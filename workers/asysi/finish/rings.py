"""Reads both rings' control files into a snapshot. The only module of finish that touches them."""

from pathlib import Path
from typing import Any

from asysi.bus.mailbox import CaptureWord, Gauge, HookGauge
from asysi.bus.states import DropReason, ProducerState, ReaderState
from asysi.contract.runtime import BUS_RING, CAPTURE_RING
from asysi.finish.ledger import Books, Consumed, Produced, finite
from asysi.finish.status import Host, Point, Snapshot
from asysi_ring import Control


class Rings:
    """Looks at an attempt's rings without taking part.

    Args:
        shm: folder of the rings.

    Raises:
        RingError: a control file is missing or of another version.
    """

    def __init__(self, shm: Path) -> None:
        self._capture = Control(str(shm / CAPTURE_RING))
        self._bus = Control(str(shm / BUS_RING))

    def snapshot(self) -> Snapshot:
        """Return both rings at one moment; the books balance only once nothing moves any more."""
        capture, bus = self._capture, self._bus
        readers = bus.readers()
        seen, handed = _accounts(capture), _accounts(bus)
        hook = _consumed(capture, "hook", seen)
        consumers = {name: _consumed(bus, name, handed) for name in readers}
        return Snapshot(
            books=Books(
                _produced(capture, seen), hook, _produced(bus, handed), consumers, _not_finite(capture, seen)
            ),
            host=_host(capture),
            capture_state=ProducerState(capture.writer_state()),
            bus_state=ProducerState(bus.writer_state()),
            hook_state=ReaderState(capture.reader_state("hook")),
            readers={name: ReaderState(bus.reader_state(name)) for name in readers},
            lag={"hook": capture.lag("hook"), **{name: bus.lag(name) for name in readers}},
            points=tuple(_points(bus, handed)) if "sae" in readers else (),
            motion=_motion(capture, bus),
        )

    def close(self) -> None:
        """Let both control files go."""
        self._capture.close()
        self._bus.close()


def _accounts(ring: Control) -> list[str]:
    return list(ring.accounts())


def _produced(ring: Control, names: list[str]) -> dict[str, Produced]:
    return {name: _made(row) for name, row in zip(names, ring.produced(), strict=False)}


def _made(row: dict[str, Any]) -> Produced:
    dropped = {reason.word: int(row["dropped"][reason]) for reason in DropReason if row["dropped"][reason]}
    return Produced(int(row["seen"]), int(row["published"]), int(row["sampled_out"]), dropped)


def _consumed(ring: Control, reader: str, names: list[str]) -> dict[str, Consumed]:
    rows = zip(names, ring.consumed(reader), strict=False)
    return {name: Consumed(row["durable"], row["lapped"], row["rolled_back"]) for name, row in rows}


def _not_finite(capture: Control, names: list[str]) -> dict[str, int]:
    rows = zip(names, capture.gauges("hook"), strict=False)
    return {name: int(finite(gauges[HookGauge.NOT_FINITE]) or 0) for name, gauges in rows}


def _points(bus: Control, names: list[str]) -> list[Point]:
    return [
        Point(
            name,
            row[Gauge.FVU],
            row[Gauge.L0],
            row[Gauge.DEAD],
            row[Gauge.LOSS],
            row[Gauge.TRAINED],
            row[Gauge.NOT_FINITE],
            row[Gauge.OUTLIERS],
        )
        for name, row in zip(names, bus.gauges("sae"), strict=False)
    ]


def _host(capture: Control) -> Host:
    word = capture.get
    return Host(
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


def _motion(capture: Control, bus: Control) -> tuple[int, ...]:
    cursors = [cursor for name in bus.readers() for cursor in bus.cursors(name)]
    durable = [row["durable"] for name in bus.readers() for row in bus.consumed(name)]
    trained = (
        [int(finite(row[Gauge.TRAINED]) or 0) for row in bus.gauges("sae")] if "sae" in bus.readers() else []
    )
    marks = (capture.heads(), capture.cursors("hook"), bus.heads(), cursors, durable, trained)
    return (capture.get(CaptureWord.STEPS), *(mark for some in marks for mark in some))
