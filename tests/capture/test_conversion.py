"""Conversion with torch's operators, as a device does it, against the reference in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from asysi.bus.packet import Quantization, rows_that_fit
from asysi.bus.quantization import quantise
from asysi.capture.conversion import beside_bytes, select_rows

SPECIAL = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1.2e-38, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan, 448, 464, 127.5, -127.5],
    np.float32,
)


def on_device(rows, quantization, table=None, index=None):
    """Elements as bytes, and what is beside them."""
    index = torch.arange(len(rows)) if index is None else index
    element = torch.float8_e4m3fn if quantization is Quantization.FP8 else torch.int8
    out = torch.empty(len(index), rows.shape[1], dtype=element)
    beside = torch.empty(len(index), dtype=torch.float32 if element is torch.float8_e4m3fn else torch.int32)
    select_rows(out, rows, index, beside, None if table is None else torch.from_numpy(table))
    return out.view(torch.uint8).numpy(), beside.numpy()


def table_of(width, rng):
    return np.stack([rng.normal(0, 2, width), rng.uniform(1e-3, 0.1, width)]).astype(np.float32)


def expect_reference(rows, table):
    """Rows, floats, become bit for bit what the reference makes of them, but for the sign of a NaN."""
    values = rows.float().numpy()
    finite = np.isfinite(values)
    wanted = quantise(values, Quantization.FP8)
    payload, scales = on_device(rows, Quantization.FP8)
    np.testing.assert_array_equal(scales.view(np.uint32), wanted.scales.view(np.uint32))
    np.testing.assert_array_equal(payload[finite], wanted.payload[finite])
    assert (payload[~finite] & 0x7F == 0x7F).all()
    wanted = quantise(values, Quantization.INT8_CHANNEL, table)
    payload, outside = on_device(rows, Quantization.INT8_CHANNEL, table)
    np.testing.assert_array_equal(payload.view(np.int8), wanted.payload)
    np.testing.assert_array_equal(outside, wanted.saturated)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_device_converts_as_the_reference_does(dtype):
    """Rows of ordinary values, rows with special ones, rows of zeros and of numbers below the normal ones."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 3, (300, 65)).astype(np.float32)
    values[:100] *= np.exp(rng.normal(0, 20, (100, 1))).astype(np.float32)
    values[100:114, 7] = SPECIAL
    values[114:128] = SPECIAL[:, None]
    values[128:140] = rng.choice(SPECIAL, (12, 65))
    expect_reference(torch.from_numpy(values).to(dtype), table_of(65, rng))


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.uint32, st.tuples(st.integers(1, 5), st.integers(1, 20)), elements=st.integers(0, 2**32 - 1)
    ),
    st.integers(0, 2**31),
)
def test_any_bits_are_converted_as_the_reference_does(bits, seed):
    """Whatever 32 bits say as float32."""
    rng = np.random.default_rng(seed)
    expect_reference(torch.from_numpy(bits.view(np.float32)), table_of(bits.shape[1], rng))


def test_a_tiny_scale_is_out_of_range_and_finite():
    """Where a finite value over its channel's scale overflows, it is the end of the range and counted."""
    table = np.array([[0.0, 1.0], [1.2e-38, 1e30]], np.float32)
    rows = torch.tensor([[1e10, 1.0], [-1e10, np.inf], [3e-38, np.nan]])
    payload, outside = on_device(rows, Quantization.INT8_CHANNEL, table)
    assert payload.view(np.int8).tolist() == [[127, 0], [-127, -128], [2, -128]]
    assert outside.tolist() == [1, 1, 0]
    expect_reference(rows, table)


def test_only_the_kept_rows_are_converted():
    """In the order of the index."""
    rows = torch.from_numpy(np.random.default_rng(1).normal(size=(9, 16)).astype(np.float32))
    index = torch.tensor([7, 0, 3])
    whole, scales = on_device(rows, Quantization.FP8)
    some, of_some = on_device(rows, Quantization.FP8, index=index)
    np.testing.assert_array_equal(some, whole[index])
    np.testing.assert_array_equal(of_some, scales[index])


@given(st.integers(1, 5000), st.sampled_from([2048, 1 << 16, 1 << 18, 1 << 20]))
def test_counts_fit_behind_a_packet(width, chunk):
    """As many rows of int8 by channel as are planned for a chunk leave four bytes each at its end."""
    rows = rows_that_fit(chunk, width, *beside_bytes(torch.int8, width))
    head = 192 + 24 * rows + 8 * width
    assert rows == 0 or head + -head % 64 + rows * width + 4 * rows <= chunk
