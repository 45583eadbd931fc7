"""`--stats basic`: the statistics that need no count of every pattern, by sums."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file

from asysi.weights.reading.checkpoint import open_checkpoint
from asysi.weights.run.export_checks import check_table
from asysi.weights.statistics.analysis import CheckpointOrigin, Settings, analyze
from asysi.weights.statistics.streaming_statistics import tally

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TYPES = [BFLOAT16, np.dtype("f4"), np.dtype("f2"), np.dtype("f8"), np.dtype(ml_dtypes.float8_e4m3fn)]
EXACT = ("elements", "finite", "nans", "infinities", "zeros", "near_zeros", "minimum", "maximum")


def summaries(x, step=1 << 19, epsilon=1e-8):
    found = []
    for basic in (True, False):
        counts = tally(x.dtype, epsilon, basic=basic)
        for start in range(0, x.size, step):
            counts.add(x[start : start + step])
        found.append(counts.summary())
    return found


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("mean", "std"), [(0, 0.02), (1, 1e-2), (1000, 1)])
def test_the_same_as_by_counting(dtype, mean, std):
    """Counts and extremes are the full pass's; mean to 2e-9 of the largest element, deviation to 1e-6."""
    x = (np.random.default_rng(0).standard_normal(100_003) * std + mean).astype("f4")
    x[:7], x[9], x[11:13] = 0, -0.0, 1e-9
    basic, full = summaries(x.astype(dtype), 40_000)
    for name in EXACT:
        assert getattr(basic, name) == getattr(full, name), name
    largest = max(abs(full.minimum), abs(full.maximum))
    assert basic.mean == pytest.approx(full.mean, abs=2e-9 * largest)
    assert basic.std == pytest.approx(full.std, rel=1e-6)


@pytest.mark.parametrize("dtype", TYPES[:2], ids=str)
def test_what_is_not_finite(dtype):
    """NaNs and infinities are counted, and the others summarised, wherever they lie."""
    x = np.random.default_rng(1).standard_normal(70_001).astype(dtype)
    for place, value in ((0, np.nan), (20_000, np.inf), (20_001, -np.inf), (70_000, np.nan)):
        x[place] = value
    basic, full = summaries(x)
    assert (basic.nans, basic.infinities, basic.finite) == (2, 2, 69_997)
    assert basic.mean == pytest.approx(full.mean, abs=1e-8)
    assert basic.std == pytest.approx(full.std, rel=1e-8)
    nothing, _ = summaries(np.full(100, np.nan).astype(dtype))
    assert (nothing.finite, nothing.nans, np.isnan(nothing.mean)) == (0, 100, True)


@settings(max_examples=200, deadline=None)
@given(arrays.arrays("u2", st.integers(0, 200)), st.integers(1, 70))
def test_any_bits(patterns, step):
    """Whatever bfloat16 bits a tensor holds, its counts and extremes are those of the full pass."""
    with np.errstate(all="ignore"):
        basic, full = summaries(patterns.view(BFLOAT16), step)
    for name in EXACT:
        one, other = getattr(basic, name), getattr(full, name)
        assert one == other or (np.isnan(one) and np.isnan(other)), name
    if full.finite:
        assert basic.mean == pytest.approx(full.mean, abs=1e-6 * max(abs(full.minimum), abs(full.maximum)))


@pytest.mark.parametrize("dtype", TYPES[:2], ids=str)
@pytest.mark.parametrize("signs", [(1,), (-1,), (0.0, -0.0), (0.0, 1), (-0.0, -1), (1, -1)])
def test_extremes_of_any_signs(dtype, signs):
    """Of values of one sign, of zeros alone, and of mixtures, over more than a block and a rest."""
    sizes = np.random.default_rng(3).lognormal(0, 3, 20_011)
    basic, full = summaries((sizes * np.resize(np.array(signs, float), sizes.size)).astype(dtype), 18_000)
    for name in EXACT:
        assert getattr(basic, name) == getattr(full, name), name


def test_the_table(tmp_path):
    """Columns beyond the basic ones are empty, none of the required ones is."""
    x = np.random.default_rng(2).standard_normal((64, 48))
    tensors = {"a": x.astype("f4"), "b": x.astype(BFLOAT16), "c": np.arange(9)}
    save_file(tensors, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        done = analyze(
            checkpoint, CheckpointOrigin("x", "y"), Settings(stats="basic"), journal=tmp_path / "journal"
        )
        assert check_table(done.rows, checkpoint.tensors, done) == []
    for row in done.rows:
        assert row["tensor_hash"] is row["rank"] is row["note"] is None
        assert row["method"] == "none"
    row = {one["param_name"]: one for one in done.rows}["a"]
    assert row["std"] == pytest.approx(x.astype("f4").std(dtype="f8"), rel=1e-8)
    assert (row["median"], row["near_zeros_rms"], row["quantiles_exact"]) == (None,) * 3
    assert not (tmp_path / "journal").exists()
