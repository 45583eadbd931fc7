"""The evaluation set: a uniform sample of the held-out rows of the whole run."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asysi.sae.reservoir import NOWHERE, Reservoir


def rows(numbers):
    """Return rows that hold their own number, and origins that say it too."""
    numbers = np.asarray(numbers)
    origin = np.stack([numbers, numbers % 7, np.zeros_like(numbers)], axis=1).astype(np.int64)
    return torch.from_numpy(numbers.astype(np.float32))[:, None].repeat(1, 2), origin


def filled(count, size, cuts=(), seed=0):
    """Return a reservoir that was offered the rows 0..count in parts."""
    made = Reservoir(size, 2, torch.float32, [seed])
    for part in np.split(np.arange(count), sorted(cuts)):
        made.add(*rows(part))
    return made


@given(st.integers(0, 300), st.integers(1, 40), st.lists(st.integers(0, 300), max_size=6))
def test_what_is_kept_does_not_depend_on_the_packets(count, size, cuts):
    """However the stream is cut, the same rows stand in the same places, each with its own origin."""
    whole, parts = filled(count, size), filled(count, size, [min(cut, count) for cut in cuts])
    assert torch.equal(whole.rows, parts.rows)
    assert torch.equal(whole.origin, parts.origin)
    assert len(whole) == min(count, size)
    assert whole.seen == count
    kept = whole.rows[:, 0].long()
    assert len(set(kept.tolist())) == len(kept)
    assert torch.equal(whole.origin[:, 0], kept)


def test_every_part_of_the_run_is_in_it():
    """Rows of each tenth of the stream are kept about as often as those of any other."""
    tenths = np.zeros(10)
    for seed in range(40):
        kept = filled(2000, 100, range(0, 2000, 37), seed).rows[:, 0].numpy()
        tenths += np.bincount((kept // 200).astype(int), minlength=10)
    assert tenths.sum() == 4000
    assert (np.abs(tenths - 400) < 5 * np.sqrt(400)).all()


@given(st.integers(0, 200), st.integers(0, 200))
def test_it_goes_on_where_it_stopped(first, second):
    """Restored from its state it keeps what an uninterrupted one keeps."""
    half = filled(first, 16)
    again = Reservoir(16, 2, torch.float32, [99])
    again.restore(half.rows, half.origin, half.state())
    again.add(*rows(np.arange(first, first + second)))
    whole = filled(first + second, 16)
    assert torch.equal(whole.rows, again.rows)
    assert torch.equal(whole.origin, again.origin)


def test_a_state_without_origins_is_taken_with_rows_from_nowhere():
    """What an earlier version has kept is evaluated on, and belongs to no document."""
    old = Reservoir(16, 2, torch.float32, [0])
    old.restore(rows(np.arange(5))[0], None, {})
    assert len(old) == old.seen == 5
    assert (old.origin == NOWHERE).all()


@pytest.mark.parametrize("size", [1, 8])
def test_rows_stay_the_callers(size):
    """The caller may overwrite its rows afterwards."""
    mine, origin = rows(np.arange(8))
    made = Reservoir(size, 2, torch.float32, [0])
    made.add(mine, origin)
    before = made.rows.clone()
    mine.fill_(-1)
    origin.fill(-1)
    assert torch.equal(made.rows, before)
    assert (made.origin >= 0).all()
