"""The response of /status: the control files, summed up."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from asysi.bus.accounts import total_consumed, total_produced
from asysi.bus.states import ProducerState, ReaderState
from asysi.contract.telemetry import (
    Balance,
    CaptureCounts,
    ModelProgress,
    PointStatus,
    ReaderStatus,
    Rereading,
    RunStatus,
)
from asysi.finish.budget import ReadProgress
from asysi.finish.ledger import (
    AttemptCounts,
    build_ledger,
    finite,
    points_of,
)

PACE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class HostCounters:
    """The counters in the capture ring's mailbox."""

    steps: int = 0
    steps_total: int = 0
    """0 if unknown."""
    tokens: int = 0
    tokens_total: int = 0
    tokens_excluded: int = 0
    passes_begun: int = 0
    """Current pass over the data, from 0."""
    steps_dropped: int = 0
    capture_errors: int = 0
    rate: float = 0.0
    """Current sampling rate, 0..1."""
    capture_ns: int = 0
    forward_ns: int = 0
    started_ns: int = 0
    """CLOCK_MONOTONIC at the first step, 0 before it."""
    interrupted: bool = False
    steps_before: int = 0
    """Steps of the run completed by earlier attempts."""
    tokens_before: int = 0
    """Content tokens of these steps."""


@dataclass(frozen=True, slots=True)
class TrainerGauges:
    """The SAE worker's gauges for one hook point."""

    path: str
    fvu: float
    l0: float
    dead: float
    loss: float
    trained: float
    not_finite: float = 0.0
    """Rows not trained on because they hold NaN or infinity."""
    outliers: float = 0.0
    """Rows not trained on because of `data.tokens.maxNormMultiple`."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of both rings at one point in time."""

    books: AttemptCounts = field(default_factory=AttemptCounts)
    host: HostCounters = field(default_factory=HostCounters)
    capture_state: ProducerState = ProducerState.ABSENT
    bus_state: ProducerState = ProducerState.ABSENT
    hook_state: ReaderState = ReaderState.ABSENT
    readers: Mapping[str, ReaderState] = field(default_factory=dict)
    """State of each bus consumer."""
    lag: Mapping[str, float] = field(default_factory=dict)
    """Largest unread share of a shard, 0..1, by reader, including the hook."""
    points: tuple[TrainerGauges, ...] = ()
    motion: tuple[int, ...] = ()
    """Counters that change while there is any progress."""


def settled(snapshot: Snapshot) -> bool:
    """Return whether the bus was closed in band and every consumer has finalised its files."""
    return snapshot.bus_state.end is not None and all(state.final for state in snapshot.readers.values())


def complete(snapshot: Snapshot) -> bool:
    """Return whether the stream ended normally: both rings closed as complete, every consumer finalised."""
    closed = snapshot.capture_state is snapshot.bus_state is ProducerState.COMPLETE
    return closed and all(state is ReaderState.FINALISED for state in snapshot.readers.values())


def phase(snapshot: Snapshot) -> str:
    """Return the phase of the attempt: starting, running, draining, finishing, analysing or failed."""
    over = ProducerState.ATTEMPT_OVER in {snapshot.bus_state, snapshot.capture_state}
    if over or snapshot.capture_state is ProducerState.GONE:
        return "failed"
    if settled(snapshot):
        return "analysing"
    if snapshot.bus_state is ProducerState.COMPLETE:
        return "finishing"
    if snapshot.capture_state is ProducerState.COMPLETE:
        return "draining"
    return "running" if snapshot.host.steps else "starting"


class TokensPerSecond:
    """Tokens per second over the last PACE_SECONDS."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.last = 0.0
        """The last value returned by `of`."""
        self._seen: deque[tuple[float, int]] = deque(maxlen=256)

    def of(self, tokens: int) -> float:
        """Return tokens per second, given the tokens read so far."""
        now = self._clock()
        self._seen.append((now, tokens))
        while len(self._seen) > 2 and now - self._seen[0][0] > PACE_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        self.last = (tokens - before) / (now - since) if now > since else 0.0
        return self.last


def status_response(
    snapshot: Snapshot,
    *,
    tokens_per_second: float = 0.0,
    said: str | None = None,
    conditions: Mapping[str, Mapping[str, str]] | None = None,
    reading: ReadProgress | None = None,
) -> dict[str, object]:
    """Return the response of /status; counts are summed over hook points, unknown numbers are null.

    Progress covers the whole run including earlier attempts; everything else is about this attempt.

    Args:
        snapshot: the state of both rings.
        tokens_per_second: the host's throughput.
        said: overrides the phase, for example once the report is written.
        conditions: both verdicts once they are known: status, reason and message by type.
        reading: how far finish is with what it reads again, None while it reads nothing.
    """
    host, books = snapshot.host, snapshot.books
    made = total_produced(books.capture.values())
    return RunStatus(
        phase=said or phase(snapshot),
        progress=ModelProgress(
            steps=host.steps_before + host.steps,
            steps_total=host.steps_total,
            tokens=host.tokens_before + host.tokens,
            tokens_total=host.tokens_total,
            passes_begun=host.passes_begun,
            tokens_per_second=round(tokens_per_second, 1),
        ),
        rereading=_rereading(reading),
        rate=host.rate,
        capture=CaptureCounts(
            seen=made.seen,
            published=made.published,
            sampled_out=made.sampled_out,
            dropped=dict(made.dropped),
            steps_dropped=host.steps_dropped,
            errors=host.capture_errors,
        ),
        consumers={name: _consumer(name, snapshot) for name in ["hook", *snapshot.readers]},
        points=[_point(point) for point in snapshot.points],
        ledger=Balance(
            balanced=build_ledger(books, attempt=0, complete=False).balanced, points=len(points_of(books))
        ),
        conditions={kind: dict(one) for kind, one in (conditions or {}).items()},
    ).as_json()


def _rereading(at: ReadProgress | None) -> Rereading:
    if at is None:
        return Rereading()
    left = None if at.seconds_left is None else round(at.seconds_left, 1)
    return Rereading(what=at.what, tokens=at.tokens, tokens_total=at.tokens_total, seconds_left=left)


def _consumer(name: str, snapshot: Snapshot) -> ReaderStatus:
    rows = snapshot.books.hook if name == "hook" else snapshot.books.consumers.get(name, {})
    used = total_consumed(rows.values())
    return ReaderStatus(
        lag=round(snapshot.lag.get(name, 0.0), 4),
        durable=used.durable,
        lapped=used.lapped,
        rolled_back=used.rolled_back,
        state=snapshot.hook_state if name == "hook" else snapshot.readers[name],
    )


def _point(point: TrainerGauges) -> PointStatus:
    trained = int(point.trained) if finite(point.trained) is not None else 0
    return PointStatus(path=point.path, fvu=point.fvu, l0=point.l0, dead=point.dead, trained=trained)
