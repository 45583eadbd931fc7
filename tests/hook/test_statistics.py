"""Running statistics of hook points."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype
from asysi.hook.statistics import STRIDE, Moments, Statistics


def packet(values, rows_before, point="p"):
    """Return a float32 packet of `values` [rows, width]."""
    header = np.zeros(1, HEADER_DTYPE)
    header["rows_before"], header["dtype"], header["rows"] = rows_before, Dtype.FLOAT32, len(values)
    return ActivationPacket(header[0], point, np.zeros(len(values), ROW_DTYPE), None, values)


@given(cuts=st.lists(st.integers(0, 200), max_size=5), seed=st.integers(0, 2**32 - 1))
def test_moments_do_not_depend_on_how_rows_are_packed(cuts, seed):
    """Any cutting of the rows gives numpy's mean, variance, extremes and mean norm."""
    rows = np.random.default_rng(seed).normal(3, 2, (200, 5)).astype(np.float32)
    moments = Moments()
    for block in np.split(rows, sorted(cuts)):
        moments.add(block)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(moments.mean, wide.mean(0), rtol=1e-9)
    np.testing.assert_allclose(moments.squares / 200, wide.var(0), rtol=1e-9)
    np.testing.assert_allclose(moments.norm, np.linalg.norm(wide, axis=1).mean(), rtol=1e-9)
    assert (moments.rows, moments.least, moments.most) == (200, rows.min(), rows.max())


def test_rows_that_are_not_finite_are_counted_apart():
    """A NaN or an infinity spoils no number."""
    rows = np.ones((4, 2), np.float32)
    rows[1, 0], rows[2, 1] = np.nan, np.inf
    moments = Moments()
    moments.add(rows)
    assert (moments.rows, moments.non_finite) == (2, 2)
    assert moments.mean.tolist() == [1, 1]


@given(cuts=st.lists(st.integers(1, 999), max_size=8))
def test_one_row_in_sixteen_is_looked_at_however_the_stream_is_packed(tmp_path_factory, cuts):
    """The rows looked at are those whose place in the stream is a multiple of sixteen."""
    path = tmp_path_factory.mktemp("s") / "statistics.json"
    stream = np.arange(1000, dtype=np.float32)[:, None]
    statistics = Statistics(path)
    edges = [0, *sorted(set(cuts)), 1000]
    for start, stop in pairwise(edges):
        statistics.observe(packet(stream[start:stop], start))
    statistics.write()
    saved = json.loads(path.read_text())["points"]["p"]
    chosen = np.arange(0, 1000, STRIDE)
    assert saved["rows"] == len(chosen)
    assert saved["mean"] == pytest.approx([chosen.mean()])
    assert (saved["min"], saved["max"]) == (0, chosen.max())


def test_statistics_outlive_a_restart(tmp_path):
    """A second worker goes on from the file; an unreadable file is begun anew."""
    path = tmp_path / "statistics.json"
    rows = np.random.default_rng(0).normal(size=(320, 3)).astype(np.float32)
    for start in (0, 160):
        statistics = Statistics(path)
        statistics.observe(packet(rows[start : start + 160], start))
        statistics.write()
    saved = json.loads(path.read_text())["points"]["p"]
    np.testing.assert_allclose(saved["variance"], rows[::STRIDE].astype(np.float64).var(0), rtol=1e-9)
    path.write_text("[1, 2")
    Statistics(path).write()
    assert json.loads(path.read_text())["points"] == {}


@pytest.mark.parametrize("finite", [True, False])
def test_the_width_of_a_hook_point_is_its_first_also_after_a_restart(tmp_path, finite):
    """Rows of another width are counted apart: in one batch, in a later one, and by a successor."""
    path = tmp_path / "statistics.json"
    for start in (0, 8192):
        statistics = Statistics(path)
        first = np.full((4096, 3), 2.0 if finite or start else np.nan, np.float32)
        for number, rows in enumerate((first, np.ones((64, 4), np.float32), first[:64])):
            statistics.observe(packet(rows, start + 4096 * number))
        statistics.write()
    saved = json.loads(path.read_text())["points"]["p"]
    assert saved["rows"] + saved["nonFinite"] == 2 * (256 + 4)
    assert (saved["otherWidth"], saved["mean"]) == (8, [2.0] * 3)


@pytest.mark.parametrize("variance", [[1.0], [1.0, 1.0, 1.0]])
def test_a_file_whose_columns_do_not_fit_is_begun_anew(tmp_path, variance):
    """Mean and variance of unlike width could not be continued."""
    path = tmp_path / "statistics.json"
    statistics = Statistics(path)
    statistics.observe(packet(np.ones((32, 2), np.float32), 0))
    statistics.write()
    content = json.loads(path.read_text())
    content["points"]["p"]["variance"] = variance
    path.write_text(json.dumps(content))
    successor = Statistics(path)
    successor.observe(packet(np.ones((16, 2), np.float32), 32))
    successor.write()
    assert json.loads(path.read_text())["points"]["p"]["rows"] == 1
