"""The controller of the sampling rate, alone and against a simulated bus."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.hook.rate import Consumer, Limits, Pace, decide, push, standing

LIMITS = Limits(most=1.0, least=0.01)
ROWS = st.floats(0, 1e9)
SHARE = st.floats(0, 1)
CONSUMERS = st.dictionaries(
    st.sampled_from(["sae", "archiver", "hook"]),
    st.builds(Consumer, rows=ROWS, lag=SHARE, present=st.booleans()),
)


@given(
    seconds=st.floats(1e-3, 1e3),
    offered=st.floats(1, 1e9),
    consumers=CONSUMERS,
    limits=st.tuples(st.floats(0.001, 0.1), st.floats(0.1, 1)).map(lambda pair: Limits(pair[1], pair[0])),
)
def test_the_rate_stays_within_the_specs_bounds(seconds, offered, consumers, limits):
    """Whatever consumers do, the rate lies between minRate and rate."""
    pace = Pace(rate=limits.most)
    for _ in range(5):
        pace = decide(pace, limits, seconds, offered, consumers)
        assert limits.least <= pace.rate <= limits.most
        assert math.isfinite(pace.rate)


@given(rows=ROWS, offered=st.floats(1, 1e9), low=SHARE, high=SHARE)
def test_more_lag_never_means_a_higher_rate(rows, offered, low, high):
    """With all else equal the consumer that lags more is given no more."""
    low, high = sorted((low, high))
    rates = [
        decide(Pace(rate=1.0), LIMITS, 0.25, offered, {"sae": Consumer(rows, lag, True)}).rate
        for lag in (low, high)
    ]
    assert rates[0] >= rates[1]


def test_the_slowest_consumer_counts():
    """A fast consumer beside a slow one changes nothing."""
    slow, fast = Consumer(100, 0.4, True), Consumer(900, 0.0, True)
    alone = decide(Pace(rate=1.0), LIMITS, 1.0, 1000, {"sae": slow})
    both = decide(Pace(rate=1.0), LIMITS, 1.0, 1000, {"sae": slow, "archiver": fast})
    assert both.rate == alone.rate == pytest.approx(0.1)


def test_nobody_waits_for_a_consumer_that_is_gone_and_its_pace_is_remembered():
    """A gone consumer leaves the rate to the others; its pace stands as it was when it comes back."""
    both = {"sae": Consumer(100, 0.4, True), "archiver": Consumer(500, 0.4, True)}
    before = decide(Pace(rate=1.0), LIMITS, 1.0, 1000, both)
    away = before
    for _ in range(50):
        away = decide(away, LIMITS, 1.0, 1000, both | {"sae": Consumer(0, 1.0, False)})
    assert away.rate == pytest.approx(0.5)
    assert away.consumed["sae"] == before.consumed["sae"] == pytest.approx(100)


def test_the_rate_holds_when_everybody_is_gone():
    """Without a consumer to follow there is no reason to change the rate."""
    before = replace(Pace(rate=0.3), offered=1000.0, consumed={"sae": 300.0})
    assert decide(before, LIMITS, 1.0, 1000, {"sae": Consumer(0, 1.0, False)}).rate == 0.3


def test_the_push_is_neutral_in_the_middle_and_nothing_near_the_end():
    """Without lag the rate may double, at 0.4 it stands, from 0.8 on it falls to the floor."""
    assert (push(0.0), push(0.4), push(0.8), push(1.0)) == (2.0, 1.0, 0.0, 0.0)


def test_a_burst_that_is_worked_off_is_no_lag():
    """A queue that was empty in between counts as none, unless its height came near the end of the ring."""
    assert standing(0.0, 0.4) == 0.0
    assert standing(0.0, 0.8) == pytest.approx(0.4)
    assert standing(0.5, 0.6) == 0.5


# -- against a simulated bus


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
    depth: float = 174_000,
    step: float = 0.03,
    present: Callable[[float], bool] = lambda _: True,
    settled: float = 60.0,
    seconds: float = 120.0,
) -> Outcome:
    """Run host → ring → consumer: rows a second, ring depth in rows, steps and settling in seconds."""
    tick, pace = 0.01, Pace(rate=1.0)
    outcome = Outcome(0.0, 0.0, 0.0, [])
    queue, since_step, consumed, arrived, decided = 0.0, 0.0, 0.0, 0.0, 0.0
    lags = [0.0]
    for number in range(1, round(seconds / tick)):
        now = number * tick
        since_step += tick
        if since_step >= step:
            arrived += offered * since_step
            kept = offered * since_step * pace.rate
            since_step, queue = 0.0, queue + kept
            lapped = queue - depth / 2 if queue > depth else 0.0
            queue -= lapped
            if now > settled:
                outcome.kept += kept / (seconds - settled)
                outcome.lapped += lapped
        done = min(queue, capacity(now) * tick)
        queue, consumed = queue - done, consumed + done
        if now > settled:
            outcome.consumed += done / (seconds - settled)
        lags.append(queue / depth)
        if now - decided >= 0.25 and arrived:
            consumer = Consumer(consumed, standing(min(lags), max(lags)), present(now))
            pace = decide(pace, LIMITS, now - decided, arrived, {"sae": consumer})
            consumed, arrived, decided, lags = 0.0, 0.0, now, [queue / depth]
            if now > settled:
                outcome.rates.append(pace.rate)
    return outcome


@pytest.mark.parametrize("depth", [10_000, 50_000, 174_000])
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
    """After settling nothing is lapped, 0.8 of the consumer's capacity is kept at least, the rate is calm."""
    run = simulate(offered, lambda _: capacity, depth=depth)
    assert run.lapped == 0
    assert run.kept >= 0.8 * min(offered, capacity)
    assert max(run.rates) <= 1.2 * min(run.rates)


def test_a_host_whose_steps_are_slow_and_large_does_not_lap_either():
    """Steps of two seconds, each a quarter of the ring, settle like small ones."""
    run = simulate(25_000, lambda _: 12_000, step=2.0)
    assert run.lapped == 0
    assert run.kept >= 0.8 * 12_000


@pytest.mark.parametrize(("before", "after"), [(20_000, 3_000), (2_000, 20_000)])
def test_a_consumer_that_changes_its_pace_is_followed(before, after):
    """A capacity that jumps at 40 s is followed within 20 s."""
    run = simulate(25_000, lambda now: before if now < 40 else after)
    assert run.lapped == 0
    assert run.kept >= 0.8 * after


@pytest.mark.parametrize("known", [True, False], ids=["its lock is free", "it hangs"])
def test_five_seconds_without_the_consumer_do_not_push_the_rate_to_the_floor_for_good(known):
    """Ten seconds after a restart, or a hang, of five seconds, the rate is what it was."""
    run = simulate(
        25_000,
        lambda now: 0 if 40 < now < 45 else 12_000,
        present=lambda now: not (known and 40 < now < 45),
        settled=55.0,
    )
    assert run.lapped == 0
    assert min(run.rates) >= 0.8 * 12_000 / 25_000


def test_pauses_for_checkpoints_cost_no_work():
    """A consumer that pauses for a second every fifteen is kept busy all the rest of the time."""
    run = simulate(25_000, lambda now: 0 if now % 15 < 1 else 12_000)
    assert run.lapped == 0
    assert run.consumed >= 0.95 * 12_000 * 14 / 15
