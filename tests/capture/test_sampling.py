import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asysi.capture.latency import LatencyHistogram
from asysi.capture.sampling import keep_mask, keep_step, uniform

SEEDS = st.integers(0, 2**31 - 1)
STEPS = st.integers(0, 2**40)
RATES = st.floats(0, 1)
GRID = np.arange(512, dtype=np.uint64)


def mix(value):
    """The same hash in Python's unbounded integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


@given(SEEDS, STEPS, st.integers(0, 2**32))
def test_hash_is_integer_arithmetic(seed, step, token):
    """The number of a token is exact 64-bit arithmetic, so it is the same on every platform."""
    stride = 0x9E3779B97F4A7C15
    key = mix(mix((seed * stride + 1) % 2**64) ^ ((step * stride + 1) % 2**64))
    expected = (mix((token * stride + key) % 2**64) >> 11) / 2**53
    assert uniform(seed, step, np.array([token], np.uint64))[0] == expected


@given(SEEDS, STEPS, RATES, RATES)
def test_kept_at_a_rate_is_kept_at_higher_ones(seed, step, one, other):
    """A token kept at some rate is kept at every higher rate, and so is a step."""
    low, high = sorted([one, other])
    assert not (keep_mask(seed, step, GRID, low) & ~keep_mask(seed, step, GRID, high)).any()
    assert keep_step(seed, step, high) or not keep_step(seed, step, low)


@given(SEEDS, STEPS, RATES)
def test_a_tokens_fate_is_its_own(seed, step, rate):
    """Whether a token is kept does not depend on which other tokens are asked about."""
    chosen = GRID[::7]
    assert (keep_mask(seed, step, GRID, rate)[::7] == keep_mask(seed, step, chosen, rate)).all()


@given(SEEDS, STEPS)
def test_bounds_keep_all_and_nothing(seed, step):
    """Rate 1 keeps every token and rate 0 none."""
    assert keep_mask(seed, step, GRID, 1.0).all()
    assert not keep_mask(seed, step, GRID, 0.0).any()


def test_rate_is_the_share_kept():
    """Over many steps the share kept is the rate, and steps are kept independently of each other."""
    kept = np.array([keep_mask(3, step, GRID, 0.25) for step in range(200)])
    assert abs(kept.mean() - 0.25) < 0.005
    assert abs(np.corrcoef(kept[:-1].ravel(), kept[1:].ravel())[0, 1]) < 0.02


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=50), st.floats(0, 1))
def test_latency_quantile_is_within_an_eighth(durations, share):
    """A quantile lies at or above the true one, by an eighth at most."""
    histogram = LatencyHistogram()
    for duration in durations:
        histogram.add(duration)
    true = sorted(durations)[max(0, int(np.ceil(share * len(durations))) - 1)]
    assert true <= histogram.quantile(share) <= max(true + 1, true * 1.125)
    assert histogram.count == len(durations)
    assert histogram.sum_ns == sum(durations)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=50))
def test_latency_counts_are_cumulative(durations):
    """What lies below a bound is never counted above it, to a bucket."""
    histogram = LatencyHistogram()
    for duration in durations:
        histogram.add(duration)
    bounds = [10**3, 10**6, 10**9, 2**41]
    for bound, count in zip(bounds, histogram.cumulative(bounds), strict=True):
        assert sum(d * 1.125 + 1 <= bound for d in durations) <= count <= sum(d <= bound for d in durations)
