"""The mixing buffer: nothing is lost, nothing comes twice, and neighbours are torn apart."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asysi.sae.buffer import BufferSize, MixingBuffer


def numbered(first, count):
    return torch.arange(first, first + count, dtype=torch.float32)[:, None]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 50), max_size=40),
    st.integers(1, 20),
    st.integers(0, 200),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
)
def test_every_row_leaves_exactly_once(packets, batch, rows, cap, seed):
    """Whatever comes in, every row comes out once, in batches no larger than asked for, memory is bounded."""
    buffer = MixingBuffer(1, torch.float32, np.random.default_rng(seed))
    size = BufferSize(rows=rows, sequences=3, cap=cap)
    left, given = [], 0
    for count in packets:
        buffer.add(numbered(given, count), 1, size)
        given += count
        while (out := buffer.draw(batch)) is not None:
            assert len(out) == batch
            left += out.flatten().tolist()
        assert len(buffer) < max(rows, cap) + 50 + batch
        if buffer.floor is None:
            assert left == []
    for out in buffer.drain(batch):
        assert 0 < len(out) <= batch
        left += out.flatten().tolist()
    assert sorted(left) == list(range(given))
    assert len(buffer) == 0


def test_it_fills_before_anything_leaves():
    """Nothing leaves until rows and sequences are enough, or the cap is reached, which wins."""
    for size, expected in (
        (BufferSize(20, 5, 1000), 5),
        (BufferSize(40, 2, 1000), 4),
        (BufferSize(40, 9, 30), 3),
    ):
        buffer = MixingBuffer(1, torch.float32, np.random.default_rng(0))
        packets = 0
        while buffer.floor is None:
            buffer.add(numbered(0, 10), 1, size)
            packets += 1
        assert packets == expected


def test_neighbours_are_torn_apart():
    """Rows leave far from the order in which they came: ranks correlate little within the buffer's length."""
    buffer = MixingBuffer(1, torch.float32, np.random.default_rng(0))
    size = BufferSize(1000, 0, 10_000)
    out = []
    for first in range(0, 20_000, 100):
        buffer.add(numbered(first, 100), 1, size)
        while (batch := buffer.draw(50)) is not None:
            out += batch.flatten().tolist()
    gaps = np.abs(np.diff(out))
    assert np.median(gaps) > 300


def test_a_restored_buffer_goes_on_alike():
    """With the same contents and the same state of randomness the same rows leave."""
    size = BufferSize(30, 0, 100)
    one = MixingBuffer(1, torch.float32, np.random.default_rng(5))
    one.add(numbered(0, 45), 1, size)
    one.draw(10)
    rng = np.random.default_rng(0)
    two = MixingBuffer(1, torch.float32, rng)
    two.restore(one.rows.clone(), one.sequences, one.floor)
    rng.bit_generator.state = one._rng.bit_generator.state
    for buffer in (one, two):
        buffer.add(numbered(45, 20), 1, size)
    assert torch.equal(one.draw(10), two.draw(10))
    assert torch.equal(torch.cat(list(one.drain(7))), torch.cat(list(two.drain(7))))
