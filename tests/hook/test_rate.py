"""The controller of the sampling rate, alone and against a simulated bus."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.hook.rate import (
    GRACE_SECONDS,
    ConsumerInterval,
    Flow,
    Limits,
    Queue,
    RateState,
    decide,
    lag_of,
    push,
)

LIMITS = Limits(most=1.0, least=0.01)
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
    assert (
        decide(RateState(rate=1.0), LIMITS, 1.0, 1000, {"sae": ConsumerInterval([full, empty])}).rate < 0.05
    )


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


def test_a_pause_is_no_pace():
    """A consumer that stops for a second with room in its ring changes nothing; without it does."""
    pace = decide(RateState(rate=1.0), LIMITS, 1.0, 1000, {"sae": alone(1000, 0, 0.0)})
    assert decide(pace, LIMITS, 1.0, 1000, {"sae": alone(0, 800, 0.3)}).rate == 1.0
    assert decide(pace, LIMITS, 1.0, 1000, {"sae": alone(0, 800, 0.6)}).rate < 1.0


def test_a_floor_at_which_nothing_is_kept_is_left_again():
    """A consumer that is given nothing is no reason to stay low: the rate doubles every two seconds."""
    pace = RateState(rate=0.01, offered=1000.0, flows={"sae": [Flow(0.0, 0.0)]})
    for _ in range(8):
        pace = decide(pace, LIMITS, 0.25, 250, {"sae": alone(0, 0, 0.0)})
    assert pace.rate == pytest.approx(0.02)


def test_the_push_is_neutral_in_the_middle_and_nothing_near_the_end():
    """Without lag the rate may double, at 0.4 it stands, from 0.8 on it falls to the floor."""
    assert [push(lag) for lag in (0.0, 0.4, 0.8, math.inf)] == [2.0, 1.0, 0.0, 0.0]


def test_the_lag_is_the_wait_over_the_time_in_the_ring():
    """Ten seconds of work in a ring that turns over in twenty are a lag of a half; a full ring is more."""
    flows = [Flow(pace=100.0, turnover=0.05)]
    assert lag_of(alone(100, 1000, 0.5), flows) == pytest.approx(0.5)
    assert lag_of(alone(100, 0, 0.3), flows) == 0.0
    assert lag_of(alone(100, 0, 1.0), flows) == pytest.approx(0.6)


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


def simulate(
    offered: float,
    capacity: Callable[[float], float],
    *,
    depth: int = 512,
    step: float = 0.15,
    away: Callable[[float], float] = lambda _: 0.0,
    settled: float = 60.0,
    seconds: float = 120.0,
) -> Outcome:
    """Run host → ring → consumer: six hook points, `offered` rows a second in steps of `step` seconds."""
    tick, points, chunk_rows = 0.01, 6, 330
    pace, ring = RateState(rate=1.0), Ring(depth)
    budget = work = arrived = decided = peak = unread = 0.0
    published, kept, consumed, lapped = 0, 0.0, 0.0, 0.0
    rates = []
    steps = round(step / tick)
    for number in range(1, round(seconds / tick)):
        now = number * tick
        if number % steps == 0:
            arrived += offered * step
            for _ in range(points):
                ring.publish(offered * step * pace.rate / points, chunk_rows)
            kept += offered * step * pace.rate * (now > settled)
        lapped, ring.lapped = lapped + ring.lapped * (now > settled), 0.0
        budget += capacity(now) * tick
        while ring.packets and budget >= ring.packets[0]:
            rows = ring.take()
            budget, work, consumed = budget - rows, work + rows, consumed + rows * (now > settled)
        budget = min(budget, ring.packets[0] if ring.packets else 0.0)  # an idle consumer saves nothing up
        peak = max(peak, ring.lag)
        if now - decided >= 0.25 and arrived:
            turnover = (ring.published - published) / depth
            queue = Queue(work, max(0.0, unread - work), turnover)
            consumer = ConsumerInterval([queue], peak, away(now))
            pace = decide(pace, LIMITS, now - decided, arrived, {"sae": consumer})
            work, arrived, decided, published, peak = 0.0, 0.0, now, ring.published, ring.lag
            unread = ring.rows
            if now > settled:
                rates.append(pace.rate)
    span = seconds - settled
    return Outcome(lapped, kept / span, consumed / span, rates)


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
