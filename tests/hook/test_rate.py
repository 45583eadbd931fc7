"""The controller of the sampling rate, alone and against a simulated bus."""

import math
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asysi.hook.rate import (
    GRACE_SECONDS,
    ConsumerInterval,
    Flow,
    Limits,
    Queue,
    RateState,
    correction,
    crowding_of,
    decide,
    relief,
    wait_of,
)

LIMITS = Limits(most=1.0, least=0.01)
EXAMPLES = int(os.environ.get("ASYSI_RATE_EXAMPLES", "12"))
"""Runs of each property on the virtual clock; `make rate-bounds` makes 500."""
ROWS = st.floats(0, 1e9)
SHARE = st.floats(0, 1)
QUEUES = st.builds(Queue, rows=ROWS, unread=ROWS, turnover=st.floats(0, 100))
AWAY = st.sampled_from([0.0, 0.5, GRACE_SECONDS + 1, math.inf])
CONSUMERS = st.dictionaries(
    st.sampled_from(["sae", "archiver", "hook"]),
    st.builds(ConsumerInterval, queues=st.lists(QUEUES, min_size=2, max_size=2), peak=SHARE, away=AWAY),
)


def busy(rows, lag=0.4, away=0.0):
    """Return a consumer that did `rows` in a second, in two shards that turn over once a second."""
    half = Queue(rows=rows / 2, unread=rows / 2 * lag, turnover=1.0)
    return ConsumerInterval([half, half], away=away)


def alone(rows, unread, peak, turnover=0.05):
    """Return a consumer of a ring with one shard."""
    return ConsumerInterval([Queue(rows, unread, turnover)], peak)


@given(
    seconds=st.floats(1e-3, 1e3),
    offered=st.floats(1, 1e9),
    consumers=CONSUMERS,
    limits=st.tuples(st.floats(0.001, 0.1), st.floats(0.1, 1)).map(lambda pair: Limits(pair[1], pair[0])),
)
def test_the_rate_stays_within_the_specs_bounds(seconds, offered, consumers, limits):
    """Whatever consumers do, the rate lies between minRate and rate."""
    pace = RateState(rate=limits.most)
    for _ in range(5):
        pace = decide(pace, limits, seconds, offered, consumers)
        assert limits.least <= pace.rate <= limits.most


PAIR_OF_ROWS, PAIR_OF_SHARES = st.tuples(ROWS, ROWS), st.tuples(SHARE, SHARE)


@given(rows=st.floats(1, 1e6), offered=st.floats(1, 1e9), unread=PAIR_OF_ROWS, peak=PAIR_OF_SHARES)
def test_more_lag_never_means_a_higher_rate(rows, offered, unread, peak):
    """With all else equal the consumer that has more before it is given no more."""
    less, more = (
        decide(
            RateState(rate=1.0), LIMITS, 0.25, offered, {"sae": alone(rows, pick(unread), pick(peak))}
        ).rate
        for pick in (min, max)
    )
    assert less >= more


def test_the_slowest_consumer_counts():
    """A fast consumer beside a slow one changes nothing."""
    slow = decide(RateState(rate=1.0), LIMITS, 1.0, 1000, {"sae": busy(100)})
    both = decide(RateState(rate=1.0), LIMITS, 1.0, 1000, {"sae": busy(100), "archiver": busy(900, lag=0.0)})
    assert both.rate == slow.rate == pytest.approx(0.1)


def test_the_fullest_shard_counts():
    """A shard that runs full beside an empty one is lag all the same."""
    full, empty = Queue(rows=50, unread=40, turnover=1.0), Queue(rows=50, unread=0, turnover=1.0)
    decided = decide(RateState(rate=1.0), LIMITS, 1.0, 1000, {"sae": ConsumerInterval([full, empty])})
    assert decided.rate == pytest.approx(0.1 * relief(0.8))


def test_a_consumer_that_is_gone_is_waited_for_a_while_and_its_pace_is_remembered():
    """Within the grace the rate stays bearable for it; then the others go on; back, its pace is known."""
    both = {"sae": busy(100), "archiver": busy(500)}
    before = decide(RateState(rate=1.0), LIMITS, 1.0, 1000, both)
    soon = decide(before, LIMITS, 1.0, 1000, both | {"sae": busy(0, away=1.0)})
    late = decide(soon, LIMITS, 1.0, 1000, both | {"sae": busy(0, away=GRACE_SECONDS + 1)})
    back = decide(late, LIMITS, 1.0, 1000, both)
    assert [pace.rate for pace in (before, soon, late, back)] == pytest.approx([0.1, 0.1, 0.5, 0.1])


def test_the_rate_holds_when_nobody_is_there():
    """Without a consumer to follow there is no reason to change the rate."""
    for consumers in ({}, {"sae": busy(0, away=math.inf)}):
        assert decide(RateState(rate=0.3), LIMITS, 1.0, 1000, consumers).rate == 0.3


def test_a_consumer_that_has_not_begun_has_no_pace_yet():
    """While there is room the rate stands; when the ring fills up and still nothing is read, it falls."""
    assert decide(RateState(rate=0.7), LIMITS, 1.0, 1000, {"sae": alone(0, 50, 0.2)}).rate == 0.7
    assert decide(RateState(rate=0.7), LIMITS, 1.0, 1000, {"sae": alone(0, 500, 0.5)}).rate == LIMITS.least


def test_a_pause_changes_little():
    """A second in which nothing is read, with room in the ring, costs less than a fifth of the rate."""
    state = RateState(rate=0.5)
    for _ in range(40):
        state = decide(state, LIMITS, 0.25, 500, {"sae": alone(250, 1400, 0.3)})
    before = state.rate
    for _ in range(4):
        state = decide(state, LIMITS, 0.25, 500, {"sae": alone(0, 1500, 0.35)})
    assert before == pytest.approx(0.5)
    assert before > state.rate > 0.8 * before


def test_a_floor_at_which_nothing_is_kept_is_left_again():
    """A consumer that is given nothing is no reason to stay low: the rate doubles every two seconds."""
    pace = RateState(rate=0.01, offered=1000.0, flows={"sae": [Flow(0.0, 0.0)]})
    for _ in range(8):
        pace = decide(pace, LIMITS, 0.25, 250, {"sae": alone(0, 0, 0.0)})
    assert pace.rate == pytest.approx(0.02)


def test_a_backlog_below_the_target_raises_the_rate_and_one_above_it_does_not_lower_it():
    """Without work the factor is 1.4, with enough of it 1, however much more there is."""
    factors = [correction(wait, 1.0) for wait in (0.0, 0.5, 1.0, 30.0, math.inf)]
    assert factors == pytest.approx([1.4, 1.2, 1.0, 1.0, 1.0])


def test_a_ring_that_runs_full_lowers_the_rate_but_not_to_nothing():
    """Up to two fifths nothing happens, up to three fifths little, and a full ring still gets a quarter."""
    assert [relief(crowding) for crowding in (0.0, 0.4, 0.6, 1.0, math.inf)] == pytest.approx(
        [1.0, 1.0, 0.9, 0.25, 0.25]
    )
    falls = [relief(crowding / 100) for crowding in range(150)]
    assert falls == sorted(falls, reverse=True)


def test_the_crowding_is_the_wait_over_the_time_in_the_ring():
    """Ten seconds of work in a ring that turns over in twenty are a crowding of a half; a full ring is 1."""
    flows = [Flow(pace=100.0, turnover=0.05)]
    assert wait_of(alone(100, 1000, 0.5), flows) == pytest.approx(10)
    assert crowding_of(alone(100, 1000, 0.3), flows) == pytest.approx(0.5)
    assert crowding_of(alone(100, 0, 0.3), flows) == 0.3
    assert crowding_of(alone(100, 0, 1.0), flows) == 1.0


def test_an_idle_consumer_is_as_fast_as_it_was():
    """What it takes while it has nothing queued is what it is given, and does not lower its known pace."""
    state = decide(RateState(rate=0.5), LIMITS, 1.0, 1000, {"sae": alone(500, 200, 0.2)})
    state = decide(state, LIMITS, 1.0, 1000, {"sae": alone(100, 0, 0.0)})
    assert state.flows["sae"][0].pace == 500
    state = decide(state, LIMITS, 1.0, 1000, {"sae": alone(800, 0, 0.0)})
    assert 500 < state.flows["sae"][0].pace <= 800


# -- against a simulated bus


@dataclass
class Ring:
    """A bus of `depth` chunks: the rows of each packet."""

    depth: int
    packets: deque[float] = field(default_factory=deque)
    rows: float = 0.0
    published: int = 0
    lapped: float = 0.0

    def publish(self, rows: float, chunk_rows: float) -> None:
        """Add `rows` in as few packets as hold them; a reader that is passed goes on in the middle."""
        for _ in range(count := math.ceil(rows / chunk_rows)):
            self.packets.append(rows / count)
            self.rows += rows / count
            self.published += 1
        if len(self.packets) > self.depth:
            while len(self.packets) > self.depth / 2:
                self.lapped += self.take()

    def take(self) -> float:
        """Remove the oldest packet; return its rows."""
        rows = self.packets.popleft()
        self.rows -= rows
        return rows

    @property
    def lag(self) -> float:
        """Share of the depth that is unread."""
        return len(self.packets) / self.depth


@dataclass
class Outcome:
    """What a simulated run came to after settling."""

    lapped: float
    kept: float
    """Rows a second."""
    consumed: float
    rates: list[float]
    at: list[float]
    """When each rate was decided."""
    crowding: list[float]
    """Unread share of the ring at that time."""


def simulate(
    offered: float,
    capacity: Callable[[float], float],
    *,
    depth: int = 512,
    step: float = 0.15,
    away: Callable[[float], float] = lambda _: 0.0,
    settled: float = 60.0,
    seconds: float = 120.0,
    grain: float = 0.0,
) -> Outcome:
    """Run host → ring → consumer: six hook points, `offered` rows a second in steps of `step` seconds.

    The consumer reads packet by packet, or when it has time for `grain` rows.
    """
    tick, points, chunk_rows = 0.01, 6, 330
    pace, ring = RateState(rate=1.0), Ring(depth)
    budget = work = arrived = decided = peak = unread = 0.0
    published, kept, consumed, lapped = 0, 0.0, 0.0, 0.0
    rates, at, crowding = [], [], []
    taken = had = 0.0
    steps, gone_since = max(1, round(step / tick)), None
    for number in range(1, round(seconds / tick)):
        now = number * tick
        if number % steps == 0:
            arrived += offered * step
            for _ in range(points):
                ring.publish(offered * step * pace.rate / points, chunk_rows)
            kept += offered * step * pace.rate * (now > settled)
        lapped, ring.lapped = lapped + ring.lapped * (now > settled), 0.0
        budget += capacity(now) * tick
        if budget >= grain:
            while ring.packets and budget >= ring.packets[0]:
                rows = ring.take()
                budget, work, consumed = budget - rows, work + rows, consumed + rows * (now > settled)
                taken += rows
            budget = min(budget, ring.packets[0] if ring.packets else 0.0)  # idle, it saves nothing up
        peak = max(peak, ring.lag)
        if away(now) and gone_since is None:
            gone_since, had = now, taken
        if now - decided >= 0.25 and arrived:
            turnover = (ring.published - published) / depth
            queue = Queue(work, max(0.0, unread - work), turnover)
            consumer = ConsumerInterval([queue], peak, 0.0 if gone_since is None else now - gone_since + tick)
            if taken != had and not away(now):
                gone_since = None  # as the pacer sees it: back once it has read again
            pace = decide(pace, LIMITS, now - decided, arrived, {"sae": consumer})
            work, arrived, decided, published, peak = 0.0, 0.0, now, ring.published, ring.lag
            unread = ring.rows
            if now > settled:
                rates.append(pace.rate)
                at.append(now)
                crowding.append(ring.lag)
    span = seconds - settled
    return Outcome(lapped, kept / span, consumed / span, rates, at, crowding)


@pytest.mark.parametrize("depth", [64, 512])
@pytest.mark.parametrize(
    ("offered", "capacity"),
    [
        (25_000, 5_000),
        (25_000, 12_000),
        (25_000, 24_000),
        (200_000, 20_000),
        (25_000, 30_000),
        (25_000, 500_000),
    ],
)
def test_a_steady_run_loses_nothing_and_keeps_what_the_consumer_can_do(offered, capacity, depth):
    """After settling nothing is lapped, the consumer has all the work it can do, and the rate is calm."""
    run = simulate(offered, lambda _: capacity, depth=depth)
    assert run.lapped == 0
    assert run.kept >= 0.95 * min(offered, capacity)
    assert max(run.rates) <= 2 * min(run.rates)


def test_a_host_whose_steps_are_slow_and_large_does_not_lap_either():
    """Steps of two seconds, each nearly a third of the ring, settle like small ones."""
    run = simulate(25_000, lambda _: 12_000, step=2.0)
    assert run.lapped == 0
    assert run.kept >= 0.9 * 12_000


@pytest.mark.parametrize(("before", "after"), [(20_000, 3_000), (2_000, 20_000)])
def test_a_consumer_that_changes_its_pace_is_followed(before, after):
    """A capacity that jumps at 40 s is followed 20 s later."""
    run = simulate(25_000, lambda now: before if now < 40 else after)
    assert run.lapped == 0
    assert run.kept >= 0.9 * after


@pytest.mark.parametrize("known", [True, False], ids=["its lock is free", "it hangs"])
def test_five_seconds_without_the_consumer_do_not_push_the_rate_to_the_floor_for_good(known):
    """A restart, or a hang, of five seconds laps nothing, and ten seconds later the rate is what it was."""
    run = simulate(
        25_000,
        lambda now: 0 if 40 < now < 45 else 12_000,
        away=lambda now: now - 40 if known and 40 < now < 45 else 0.0,
        settled=39.0,
    )
    assert run.lapped == 0
    assert min(run.rates[-4 * 65 :]) >= 0.7 * 12_000 / 25_000
    assert run.consumed * 81 >= 0.97 * 76 * 12_000


def test_pauses_for_checkpoints_cost_no_work():
    """A consumer that pauses for a second every fifteen is kept busy all the rest of the time."""
    run = simulate(25_000, lambda now: 0 if now % 15 < 1 else 12_000)
    assert run.lapped == 0
    assert run.consumed >= 0.97 * 12_000 * 14 / 15


# -- the bounds, for consumers of any speed

DEPTHS = st.sampled_from([64, 256, 512, 2048])
OFFERED = st.floats(5_000, 200_000)
SHARES = st.floats(0.15, 1.5)
"""Capacity of a consumer over the offered rows."""
STEPS = st.floats(0.05, 0.6)


@settings(max_examples=EXAMPLES, deadline=None)
@given(offered=OFFERED, share=SHARES, step=STEPS, depth=DEPTHS)
def test_with_a_constant_consumer_the_rate_is_constant(offered, share, step, depth):
    """From ten seconds after the start on, the rate stays within 15% of its mean, and no work is lost."""
    assume(fits(offered, share, step, depth))
    run = simulate(offered, lambda _: share * offered, depth=depth, step=step, settled=10.0, seconds=70.0)
    mean = sum(run.rates) / len(run.rates)
    assert min(run.rates) >= 0.85 * mean
    assert max(run.rates) <= 1.15 * mean
    assert run.consumed >= 0.9 * min(offered, share * offered)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    offered=OFFERED, share=st.floats(0.15, 0.9), step=STEPS, depth=DEPTHS,
    absence=st.tuples(st.floats(0.5, 8), st.floats(0, 5)),
)  # fmt: skip
def test_a_consumer_that_dies_and_returns_finds_its_rate_again(offered, share, step, depth, absence):
    """Five seconds after its ring is three fifths full at most, the rate is what it was; never near 0."""
    assume(fits(offered, share, step, depth))
    dead, loading = absence
    back = 40 + dead + loading
    run = simulate(
        offered,
        lambda now: 0.0 if 40 < now < back else share * offered,
        away=lambda now: float(40 < now < 40 + dead),
        depth=depth, step=step, settled=10.0, seconds=back + 90.0,
    )  # fmt: skip
    before = [rate for rate, now in zip(run.rates, run.at, strict=True) if 20 < now < 40]
    mean = sum(before) / len(before)
    caught_up = next(
        now for now, crowding in zip(run.at, run.crowding, strict=True) if now > back and crowding <= 0.6
    )
    after = [rate for rate, now in zip(run.rates, run.at, strict=True) if now > caught_up + 5]
    assert after
    assert 0.85 * mean <= min(after)
    assert max(after) <= 1.15 * mean
    assert min(run.rates) >= 0.1 * mean


def fits(offered: float, share: float, step: float, depth: int) -> bool:
    """Return whether the ring holds six steps and four seconds at the rate that the consumer can sustain."""
    packets = math.ceil(min(1.0, share) * offered * step / 6 / 330) * 6
    return packets * max(6, 4 / step) <= depth


def test_a_consumer_that_reads_large_batches_gets_a_calm_rate():
    """Batches of 4,096 rows, one every 0.8 s, do not show in the rate."""
    run = simulate(25_000, lambda _: 5_000, grain=4096, settled=10.0)
    mean = sum(run.rates) / len(run.rates)
    assert 0.85 * mean <= min(run.rates) <= max(run.rates) <= 1.15 * mean
