"""Quantisation as numpy has it: the bounds of its errors, and when ranges freeze."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from asysi.bus.packet import E4M3, HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype, Quantization
from asysi.bus.quantization import FREEZE_ROWS, Calibration, quantise

EPSILON = 2.0**-23
finite = st.floats(-(2.0**100), 2.0**100, width=32)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 40))


def rows_of(elements):
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=elements, fill=elements))


def read_back(rows: np.ndarray, quantization: Quantization, table: np.ndarray | None = None) -> np.ndarray:
    """Return what a reader of the packet gets, in float64."""
    made = quantise(rows, quantization, table)
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["dtype"], header["quantization"] = quantization.dtype or Dtype.FLOAT32, quantization
    records = np.zeros(len(rows), ROW_DTYPE)
    packet = ActivationPacket(header, "p", records, made.scales, made.payload, 0, made.table)
    return packet.to_float32().astype(np.float64)


@given(rows=rows_of(finite))
def test_bf16_is_at_most_a_256th_off(rows):
    """|x - y| <= |x|/256, and half a step where numbers are subnormal."""
    off = np.abs(read_back(rows, Quantization.BF16) - rows)
    assert (off <= np.abs(rows.astype(np.float64)) / 256 + 2.0**-134).all()


@given(rows=rows_of(finite))
def test_fp8_is_at_most_a_16th_off(rows):
    """|x - y| <= |x|/16, or scale/1024 near 0; a row below 448 normal scales is zeros."""
    made = quantise(rows, Quantization.FP8)
    exact = np.abs(rows.astype(np.float64))
    off = np.abs(read_back(rows, Quantization.FP8) - rows)
    scale = made.scales.astype(np.float64)[:, None]
    bound = np.maximum(exact / 16, scale / 1024) * (1 + 4 * EPSILON)
    assert (off <= np.where(scale > 0, bound, 448 * np.finfo(np.float32).tiny)).all()


@given(rows=rows_of(finite))
def test_int8_is_at_most_half_a_scale_off(rows):
    """|x - y| <= scale/2 with scale = max|x|/127 of the row."""
    scale = quantise(rows, Quantization.INT8).scales.astype(np.float64)[:, None]
    off = np.abs(read_back(rows, Quantization.INT8) - rows)
    assert (off <= np.where(scale > 0, scale * 0.5001, 127 * np.finfo(np.float32).tiny)).all()


@given(rows=rows_of(st.floats(-1e4, 1e4, width=32)), data=st.data())
def test_int8_by_channel_is_at_most_half_a_scale_off_within_its_range(rows, data):
    """|x - y| <= scale/2 within mean ± 127.5 scales; beyond, the end of the range, and the row is counted."""
    width = rows.shape[1]
    mean = data.draw(hnp.arrays(np.float32, width, elements=st.floats(-100, 100, width=32)))
    scale = data.draw(hnp.arrays(np.float32, width, elements=st.floats(2.0**-20, 64, width=32)))
    table = np.stack([mean, scale])
    exact, mean64, scale64 = rows.astype(np.float64), mean.astype(np.float64), scale.astype(np.float64)
    back = read_back(rows, Quantization.INT8_CHANNEL, table)
    rounding = 4 * EPSILON * (np.abs(exact) + np.abs(mean64) + 127 * scale64)
    inside = np.abs(exact - mean64) <= 127.5 * scale64
    assert (np.abs(back - exact) <= scale64 / 2 + rounding)[inside].all()
    end = mean64 + np.copysign(127 * scale64, exact - mean64)
    far = np.abs(exact - mean64) >= 128 * scale64 + rounding
    assert (np.abs(back - end) <= rounding)[far].all()
    saturated = quantise(rows, Quantization.INT8_CHANNEL, table).saturated
    assert (saturated >= far.sum(axis=1)).all()
    assert (saturated <= (np.abs(exact - mean64) >= 127.49 * scale64 - rounding).sum(axis=1)).all()


def test_fp8_is_that_of_torch():
    """Every pattern stands for the number that torch says, and rows whose scale is 1 round as torch does."""
    patterns = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(E4M3, patterns)
    near = np.unique(np.abs(patterns[np.isfinite(patterns)]))
    ties = (near[1:] + near[:-1]) / 2
    values = np.concatenate(
        [near, ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(999))]
    )
    rows = np.concatenate([[np.float32(448)], values, -values])[None].astype(np.float32)
    made = quantise(rows, Quantization.FP8)
    assert made.scales.tolist() == [1.0]
    wanted = torch.from_numpy(rows).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(made.payload, wanted)


@pytest.mark.parametrize("quantization", [Quantization.BF16, Quantization.FP8, Quantization.INT8_CHANNEL])
def test_what_is_not_finite_is_not_read_as_a_number(quantization):
    """NaN and infinities stay not finite, and the row's other elements keep their bounds."""
    rows = np.array([[np.nan, 1.0, -2.0], [np.inf, 1.0, -2.0], [-np.inf, 1.0, -2.0]], np.float32)
    table = np.array([[0, 0, 0], [1 / 32] * 3], np.float32)
    back = read_back(rows, quantization, table)
    assert not np.isfinite(back[:, 0]).any()
    np.testing.assert_allclose(back[:, 1:], rows[:, 1:], rtol=1 / 16)


def test_a_selection_of_rows_reads_as_those_rows():
    """Scales go with their rows, the table with the packet."""
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    for quantization in (Quantization.FP8, Quantization.INT8_CHANNEL):
        made = quantise(rows, quantization, np.array([[0.0] * 4, [0.05] * 4], np.float32))
        header = np.zeros(1, HEADER_DTYPE)[0]
        header["dtype"] = quantization.dtype
        packet = ActivationPacket(
            header, "p", np.zeros(6, ROW_DTYPE), made.scales, made.payload, 0, made.table
        )
        np.testing.assert_array_equal(packet.select(slice(1, 4)).to_float32(), packet.to_float32()[1:4])


# -- when ranges freeze


def test_ranges_freeze_after_the_first_rows():
    """The first FREEZE_ROWS finite rows count, however they are packed; later ones change nothing."""
    generator = np.random.default_rng(1)
    rows = generator.normal(3, 2, (FREEZE_ROWS, 7)).astype(np.float32)
    one, many = Calibration(), Calibration()
    one.add(rows)
    for part in np.array_split(rows, 37):
        assert many.table() is None
        many.add(np.concatenate([part, np.full((1, 7), np.nan, np.float32)]))
    np.testing.assert_allclose(one.table(), many.table(), rtol=1e-6)
    frozen = one.table()
    one.add(generator.normal(0, 1e6, (100, 7)).astype(np.float32))
    np.testing.assert_array_equal(one.table(), frozen)
    np.testing.assert_allclose(frozen[0], rows.mean(0), rtol=1e-5)
    assert not quantise(rows, Quantization.INT8_CHANNEL, frozen).saturated.any()


def test_a_silent_channel_has_a_range():
    """A channel that never varied takes a quarter of the median range; where none varies nothing freezes."""
    rows = np.random.default_rng(2).normal(size=(FREEZE_ROWS, 5)).astype(np.float32)
    rows[:, 2] = 0
    measured = Calibration()
    measured.add(rows)
    ranges = 127 * measured.table()[1]
    assert ranges[2] == pytest.approx(np.median(np.delete(ranges, 2)) / 4, rel=1e-6)
    still = Calibration()
    still.add(np.ones((FREEZE_ROWS, 5), np.float32))
    assert still.table() is None


@given(scale=st.floats(2.0**-60, 2.0**60), mean=st.floats(-(2.0**20), 2.0**20), seed=st.integers(0, 99))
def test_no_measured_value_saturates(scale, mean, seed):
    """Whatever the channels' sizes, every row that was measured lies within the frozen range."""
    rows = np.random.default_rng(seed).standard_cauchy((64, 3)).astype(np.float32) * np.float32(scale)
    rows = np.tile(rows + np.float32(mean), (FREEZE_ROWS // 64, 1))
    measured = Calibration()
    measured.add(rows)
    table = measured.table()
    if table is not None:
        assert np.isfinite(table).all()
        assert (table[1] > 0).all()
        assert not quantise(rows, Quantization.INT8_CHANNEL, table).saturated.any()
