"""Synthetic checkpoints with planted ranks, zeros, NaNs and names: every figure against numpy in float64.

`pytest -s` prints the errors beside the figures.
"""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from asysi.weights import tensor_stats
from asysi.weights.comparing.compare import subspace_angles
from asysi.weights.reading.checkpoint import open_checkpoint
from asysi.weights.statistics.analysis import CheckpointOrigin, Settings, analyze
from asysi.weights.statistics.spectrum import fit_power_law
from asysi.weights.statistics.streaming_statistics import QUANTILES, tally
from asysi.weights.tables.columns import COLUMNS, NAMES, QUANTILE_NAMES

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TYPES = ["<f4", "<f8", "<f2", BFLOAT16, np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)]


def planted(rows, cols, rank, dtype="<f4", *, seed=0, scale=0.05):
    """A matrix of the given rank, before it is rounded to `dtype`."""
    generator = np.random.default_rng(seed)
    left, right = generator.standard_normal((rows, rank)), generator.standard_normal((rank, cols))
    return (scale * (left @ right) / np.sqrt(rank)).astype(dtype)


def values_of(dtype, *, seed=0, n=70_001):
    """Numbers with planted zeros, subnormals, NaNs and infinities, as far as the type has them."""
    x = np.random.default_rng(seed).standard_normal(n) * 0.02 + 0.003
    x[:500] = 0
    x[500:520] = -0.0
    x[600:640] = 1e-9
    x[700:705] = 3.0
    if np.dtype(dtype) in {BFLOAT16, np.dtype(np.float32)}:
        x[800:830] = 2.0**-130
    x[900:907] = np.nan
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
        if np.isinf(np.array([np.inf]).astype(dtype).astype("f8"))[0]:
            x[910:913] = np.array([np.inf, -np.inf, np.inf]).astype(dtype)
    return x


def truth_of(x, epsilon):
    """The same figures by numpy, from the whole tensor in float64."""
    y = x.astype(np.float64)
    f = y[np.isfinite(y)]
    smallest = float(ml_dtypes.finfo(x.dtype).smallest_normal)
    return {
        "elements": y.size,
        "finite": f.size,
        "nans": int(np.isnan(y).sum()),
        "infinities": int(np.isinf(y).sum()),
        "zeros": int((f == 0).sum()),
        "near_zeros": int((np.abs(f) <= epsilon).sum()),
        "near_zeros_rms": int((np.abs(f) <= 1e-3 * np.sqrt(np.square(f).mean())).sum()),
        "subnormals": int(((f != 0) & (np.abs(f) < smallest)).sum()),
        "mean": f.mean(),
        "var": f.var(),
        "std": f.std(),
        "rms": np.sqrt(np.square(f).mean()),
        "min": f.min(),
        "max": f.max(),
        "frobenius": np.linalg.norm(f),
        "sparsity": (np.abs(f) <= epsilon).sum() / y.size,
        **dict(zip(QUANTILE_NAMES, np.quantile(f, QUANTILES), strict=True)),
    }


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_statistic_is_numpy_s(dtype, native, monkeypatch):
    """Counts are equal, sums agree to 1e-12; quantiles are exact up to 16 bits, else within 0.8 %."""
    if not native:
        monkeypatch.setattr("asysi.weights.statistics.streaming_statistics._Native", None)
    x = values_of(dtype)
    found, truth = tensor_stats(x, zero_epsilon=1e-8, spectra=False), truth_of(x, 1e-8)
    exact = x.dtype.itemsize <= 2
    assert found["quantiles_exact"] is exact
    for name, value in truth.items():
        error = abs(found[name] - float(value))
        print(f"{dtype!s:>16} {name:>14} {found[name]:.10g}  error {error:.2g}")
        if name == "subnormals" and x.dtype == np.float64:
            continue  # the histogram of float32's range does not tell them apart
        if name in QUANTILE_NAMES:
            assert error <= (1e-15 if exact else 0.008 * abs(value) + 1e-6), name
        elif name == "near_zeros_rms":
            assert error <= (0 if exact else 0.02 * truth["near_zeros"] + 5), name
        elif isinstance(value, int):
            assert error == 0, name
        else:
            assert error <= 1e-12 * max(1.0, abs(float(value))), name


def test_large_mean_small_spread():
    """Norm-like weights get their variance to 1e-9, where E[x²] − E[x]² in float32 is off by percents."""
    x = (1000 + 0.01 * np.random.default_rng(0).standard_normal(300_000)).astype("<f4")
    truth = x.astype("f8").var()
    naive = float(np.square(x).mean() - x.mean() ** 2)
    found = tensor_stats(x, spectra=False)["var"]
    print(f"var {truth:.6g}: ours off by {abs(found / truth - 1):.1g}, naive by {abs(naive / truth - 1):.1g}")
    assert abs(found / truth - 1) < 1e-9
    assert abs(naive / truth - 1) > 1e-2


@given(st.lists(st.integers(0, 2**16 - 1), max_size=200), st.integers(1, 50), st.booleans())
@settings(max_examples=60, deadline=None)
def test_chunks_do_not_matter(patterns, step, native):
    """However a tensor is cut, whatever bits it holds, its counted statistics are the same."""
    x = np.array(patterns, "<u2").view(BFLOAT16)
    whole, parts = tally(BFLOAT16, 1e-8, native=native), tally(BFLOAT16, 1e-8, native=not native)
    whole.add(x)
    for start in range(0, len(x), step):
        parts.add(x[start : start + step])
    assert repr(whole.summary()) == repr(parts.summary())  # repr: NaN equals NaN


@given(st.lists(st.floats(width=32), min_size=1, max_size=300), st.integers(1, 99))
@settings(max_examples=100, deadline=None)
def test_native_and_numpy_agree_on_float32(numbers, step):
    """The compiled counter and numpy give the same counts and extremes, and moments to 1e-9."""
    x = np.array(numbers, "<f4")
    one, two = tally(x.dtype, 2.0**-10), tally(x.dtype, 2.0**-10, native=False)
    one.add(x)
    for start in range(0, len(x), step):
        two.add(x[start : start + step])
    a, b = one.summary(), two.summary()
    for name in ("elements", "finite", "nans", "infinities", "zeros", "near_zeros", "subnormals"):
        assert getattr(a, name) == getattr(b, name), name
    if a.finite:
        assert (a.minimum, a.maximum) == (b.minimum, b.maximum)
        assert a.mean == pytest.approx(b.mean, rel=1e-9, abs=1e-12 * max(abs(a.minimum), abs(a.maximum)))
        assert a.var == pytest.approx(b.var, rel=1e-9, abs=1e-18 * max(abs(a.minimum), abs(a.maximum)) ** 2)


@pytest.mark.parametrize("method", ["svd", "gram"])
@pytest.mark.parametrize("shape", [(300, 120), (120, 300), (200, 200)])
def test_singular_values(shape, method):
    """Both exact methods give numpy's singular values and what follows from them."""
    x = np.random.default_rng(1).standard_normal(shape).astype("<f4")
    found = tensor_stats(x, method=method)
    s = np.linalg.svd(x.astype("f8"), compute_uv=False)
    shares = s / s.sum()
    truth = {
        "sigma_max": s[0],
        "sigma_min": s[-1],
        "stable_rank": np.square(s).sum() / s[0] ** 2,
        "effective_rank": np.exp(-(shares * np.log(shares)).sum()),
        "frobenius": np.linalg.norm(s),
    }
    for name, value in truth.items():
        print(f"{method} {shape} {name} {found[name]:.10g} error {abs(found[name] / value - 1):.1g}")
        assert found[name] == pytest.approx(value, rel=1e-9), name
    np.testing.assert_allclose(json.loads(found["top_singular_values"]), s[:8], rtol=1e-10)
    assert (found["method"], found["exact"], found["rank"]) == (method, True, min(shape))


@pytest.mark.parametrize("method", ["svd", "gram"])
@pytest.mark.parametrize("dtype", ["<f4", "<f2", BFLOAT16], ids=str)
@pytest.mark.parametrize(("rows", "cols", "rank"), [(768, 512, 100), (300, 900, 17), (512, 512, 512)])
def test_planted_rank_is_found_through_the_rounding(rows, cols, rank, dtype, method):
    """`rank_noise` is the rank before rounding to the stored type; `rank` is numpy's count over 1e-6 σmax."""
    x = planted(rows, cols, rank, dtype)
    found = tensor_stats(x, method=method)
    s = np.linalg.svd(x.astype("f8"), compute_uv=False)
    print(f"{np.dtype(dtype)!s} {method} {rows}x{cols} planted {rank}: noise {found['rank_noise']}, f32tol "
          f"{found['rank_f32tol']}, 1e-6 {found['rank']}; floor {found['noise_floor']:.3g}, σ below it "
          f"{s[rank] if rank < len(s) else 0:.3g}")  # fmt: skip
    assert found["rank"] == int((s > 1e-6 * s[0]).sum())
    assert found["rank_f32tol"] == int((s > s[0] * max(rows, cols) * np.finfo("f4").eps).sum())
    if rank < min(rows, cols):
        assert found["rank_noise"] == rank
    else:  # the smallest singular values of a square random matrix drown in the rounding: not many
        assert 0.97 * rank <= found["rank_noise"] <= rank


@pytest.mark.parametrize("dtype", ["<f2", BFLOAT16], ids=str)
def test_the_noise_floor_is_where_the_noise_is(dtype):
    """The largest singular value of the rounding itself lies within 6 % below the floor."""
    exact = planted(768, 2048, 100, "f8")
    noise = exact.astype(dtype).astype("f8") - exact
    largest = np.linalg.svd(noise, compute_uv=False)[0]
    floor = tensor_stats(exact.astype(dtype))["noise_floor"]
    print(f"{np.dtype(dtype)!s}: floor {floor:.4g}, largest of the noise {largest:.4g}")
    assert 0.94 * floor < largest < floor


def test_rank_is_not_clamped():
    """`rank_k` does not clamp the rank, and no column of a wide matrix is left out."""
    x = np.random.default_rng(0).standard_normal((200, 600)).astype("f4")
    x[:, :200] = 0
    assert tensor_stats(x, rank_k=8)["rank"] == 200


def test_randomized_is_a_lower_bound_and_says_so():
    """The randomized method never gives a rank; its values are at most the true ones, its norm is exact."""
    x = planted(900, 400, 30) + 1e-3 * np.random.default_rng(5).standard_normal((900, 400)).astype("f4")
    found = tensor_stats(x, rank_k=20, method="randomized", seed=3)
    s = np.linalg.svd(x.astype("f8"), compute_uv=False)
    assert [found[name] for name in ("rank", "rank_f32tol", "rank_noise", "effective_rank", "alpha")] == [
        None
    ] * 5
    assert (found["exact"], found["k"], found["seed"], found["method"]) == (False, 20, 3, "randomized")
    top = np.array(json.loads(found["top_singular_values"]))
    assert (top <= s[:8] * (1 + 1e-12)).all()
    np.testing.assert_allclose(top, s[:8], rtol=1e-3)
    assert found["frobenius"] == pytest.approx(np.linalg.norm(x.astype("f8")), rel=1e-12)
    assert found["captured_energy"] <= np.square(s[:20]).sum() / np.square(s).sum() * (1 + 1e-9)
    assert found == tensor_stats(x, rank_k=20, method="randomized", seed=3) | {}


def test_gram_refuses_what_it_cannot_resolve():
    """A tolerance below the Gram method's resolution gives no rank rather than a wrong one."""
    from asysi.weights.statistics.spectrum import Spectrum

    spectrum = Spectrum(np.array([1.0, 1e-9, 0.0]), 400, 300, "gram", exact=True, squares=1.0)
    assert spectrum.rank(1e-16) is None
    assert spectrum.rank(1e-6) == 1


@pytest.mark.parametrize(
    ("x", "rank"),
    [
        (np.zeros((5, 7), "f4"), 0),
        (np.zeros(9, "f4"), 0),
        (np.arange(3.0), 1),
        (np.float32(2.0).reshape(()), 1),
        (np.eye(6, dtype="f4").reshape(6, 2, 3), 6),
        (np.full((4, 4), 1e-30, "f4"), 1),
    ],
)
def test_small_and_odd_shapes(x, rank):
    """Zeros have rank 0; vectors and scalars are matrices of one column; further dimensions are flattened."""
    found = tensor_stats(x)
    assert found["rank"] == rank
    assert found["rows"] * found["cols"] == x.size
    assert found["shape"] == str(x.shape)


def test_empty_tensor():
    """A tensor without elements has counts of 0 and no figures."""
    found = tensor_stats(np.zeros((0, 4), "f4"))
    assert (found["elements"], found["mean"], found["rank"], found["sparsity"]) == (0, None, None, 0.0)


def test_not_finite_has_statistics_and_no_spectrum():
    """A tensor with NaN keeps the statistics of its finite elements, loses its spectrum, and says why."""
    x = np.ones((30, 40), "f4")
    x[3, 4] = np.nan
    x[5, 6] = -np.inf
    found = tensor_stats(x)
    assert (found["mean"], found["nans"], found["infinities"], found["rank"]) == (1.0, 1, 1, None)
    assert found["note"] == "no spectrum: 1 NaN and 1 infinite elements"


def test_numbers_beyond_float64_s_squares():
    """Numbers whose squares overflow float64 cost the spectrum, not the analysis."""
    found = tensor_stats(np.full((1100, 1000), 1e200))
    assert (found["rank"], found["max"]) == (None, 1e200)
    assert "beyond float64" in found["note"]


def test_power_law():
    """The exponent of eigenvalues drawn from a power law is found within its standard error."""
    generator = np.random.default_rng(2)
    alpha, n = 3.0, 4000
    eigenvalues = (1 - generator.random(n)) ** (-1 / (alpha - 1))
    fit = fit_power_law(np.sqrt(np.sort(eigenvalues)[::-1]))
    print(f"alpha {fit.alpha:.3f} of {alpha}, KS {fit.distance:.4f}, tail {fit.tail}")
    assert abs(fit.alpha - alpha) < 4 * (alpha - 1) / np.sqrt(fit.tail)
    assert fit.distance < 0.03
    assert fit_power_law(np.ones(5)) is None


def test_power_law_by_the_book():
    """The fit is the one that minimises the distance among all cuts, each by maximum likelihood."""
    s = np.linalg.svd(np.random.default_rng(0).standard_normal((80, 60)), compute_uv=False)
    x = np.sort(s**2)
    best = (np.inf, 0.0, 0.0)
    for i in range(len(x) - 1):
        tail = x[i:]
        alpha = 1 + len(tail) / np.log(tail / x[i]).sum()
        distance = np.abs(1 - (tail / x[i]) ** (1 - alpha) - np.arange(len(tail)) / len(tail)).max()
        best = min(best, (distance, alpha, x[i]))
    fit = fit_power_law(s)
    assert (fit.distance, fit.alpha, fit.least) == pytest.approx(best, rel=1e-9)


def test_angles():
    """Principal angles of planted rotations are found, from a right angle down to 1e-9 radians."""
    angles = np.array([np.pi / 2, 1.0, 1e-3, 1e-9])
    a = np.eye(8)[:, :4]
    b = a * np.cos(angles) + np.eye(8)[:, 4:] * np.sin(angles)
    mixed = b @ np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    np.testing.assert_allclose(subspace_angles(a, mixed), np.degrees(angles), rtol=1e-6, atol=1e-12)


def test_a_checkpoint_end_to_end(tmp_path):
    """A checkpoint of several types and families has a full row for every tensor, in its order."""
    tensors = {
        "model.embed_tokens.weight": planted(500, 64, 40, BFLOAT16),
        "model.layers.3.self_attn.q_proj.weight": planted(64, 64, 9, BFLOAT16),
        "model.layers.3.mlp.gate_proj.weight": planted(160, 64, 64, "<f2"),
        "model.layers.3.input_layernorm.weight": np.ones(64, "f4"),
        "transformer.h.11.attn.c_attn.weight": planted(64, 192, 5, "<f4"),
        "nan": np.array([np.nan, 1.0], "f4"),
        "steps": np.arange(4),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    with open_checkpoint(tmp_path) as checkpoint:
        order = list(checkpoint.tensors)
        done = analyze(
            checkpoint, CheckpointOrigin(str(tmp_path), "owner/name", "abc"), Settings(method="gram")
        )
    assert [row["param_name"] for row in done.rows] == order
    rows = {row["param_name"]: row for row in done.rows}
    assert all(tuple(row) == NAMES for row in done.rows)
    required = [column.name for column in COLUMNS if column.required]
    assert all(row[name] is not None for row in done.rows for name in required)
    assert [rows[name]["rank_noise"] for name in list(tensors)[:3]] == [40, 9, pytest.approx(64, abs=3)]
    assert rows["transformer.h.11.attn.c_attn.weight"]["layer_index"] == 11
    assert rows["transformer.h.11.attn.c_attn.weight"]["rank"] == pytest.approx(5, abs=0)
    for name, x in tensors.items():
        if x.dtype.kind != "i":
            truth = truth_of(x, 1e-8)
            for key in ("mean", "var", "nans", "zeros", "sparsity", "frobenius"):
                assert rows[name][key] == pytest.approx(float(truth[key]), rel=1e-12, abs=1e-15), (name, key)
