"""Gradients are joined to the activations of the same tokens, within a bounded window."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from tests.bus.memory import MemoryBus

from asysi.archive.measure import measure
from asysi.bus.packet import (
    HEADER_DTYPE,
    ROW_DTYPE,
    ActivationPacket,
    Dtype,
    Kind,
    PacketFlag,
    Quantization,
    account_name,
)
from asysi.hook.loop import Hook
from asysi.hook.means import ChannelMeans
from asysi.hook.pairs import PairWindow
from asysi.hook.relay import Relay

WIDTH = 4


def packet(kind, values, positions, *, step=0, call=0, attempt=0, flags=0, sequence=1):
    """A captured packet of these values, at these positions of one sequence."""
    values = np.asarray(values, np.float32)
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["kind"], header["step"], header["call_index"], header["attempt"] = kind, step, call, attempt
    header["flags"], header["sequence"], header["dtype"] = flags, sequence, Dtype.FLOAT32
    header["rows"], header["width"] = values.shape
    rows = np.zeros(len(values), ROW_DTYPE)
    rows["position"] = positions
    return ActivationPacket(header, account_name("h.0", kind), rows, None, values)


@pytest.fixture
def window(tmp_path):
    """A window of 64 KiB, and the misses that it tells."""
    return opened(tmp_path)


def opened(folder, limit=1 << 16):
    missed = {}
    means = ChannelMeans(folder / "means.safetensors")
    window = PairWindow(limit, means, lambda name, rows: missed.update({name: missed.get(name, 0) + rows}))
    return window, missed


@given(
    rows=st.integers(1, 40),
    cuts=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    seed=st.integers(0, 2**16),
    dropped=st.booleans(),
)
def test_each_gradient_meets_its_own_activation(tmp_path_factory, rows, cuts, seed, dropped):
    """However both are cut into packets, a row's scores are ⟨a, g⟩ and −⟨a − ā, g⟩ of its own token; rows
    whose activation was dropped have none, and are counted.
    """
    rng = np.random.default_rng(seed)
    window, missed = opened(tmp_path_factory.mktemp("pairs"))
    a, g = rng.normal(size=(2, rows, WIDTH)).astype(np.float32)
    positions = rng.permutation(1000)[:rows]
    cut_a, cut_g = (min(cut, rows) for cut in cuts)
    parts = [slice(0, cut_a), slice(cut_a, rows)]
    for part in parts[:1] if dropped else parts:
        window.add(packet(Kind.ACTIVATION, a[part], positions[part]))
    there = np.zeros(rows, bool)
    there[: cut_a if dropped else rows] = True
    scores = np.concatenate(
        [
            window.score(packet(Kind.GRADIENT, g[p], positions[p]))
            for p in (slice(0, cut_g), slice(cut_g, rows))
        ]
    )
    assert np.isnan(scores[~there]).all()
    assert sum(missed.values()) == (~there).sum()
    if there.any():
        product = (a.astype(np.float64) * g).sum(1)
        mean = a[there].astype(np.float64).mean(0)
        np.testing.assert_allclose(scores[there, 0], product[there], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scores[there, 1], (g @ mean - product)[there], rtol=1e-5, atol=1e-5)


def test_calls_steps_and_attempts_are_apart(window):
    """An activation of another call, step or attempt, or a recomputed one, is not the gradient's."""
    window, missed = window
    ones = np.ones((1, WIDTH))
    window.add(packet(Kind.ACTIVATION, ones, [3]))
    window.add(packet(Kind.ACTIVATION, 5 * ones, [4], flags=PacketFlag.RECOMPUTED))
    for other in ({"call": 1}, {"step": 1}, {"attempt": 1}):
        assert np.isnan(window.score(packet(Kind.GRADIENT, ones, [3], **other))).all()
    assert np.isnan(window.score(packet(Kind.GRADIENT, ones, [4]))).all()
    assert missed == {"h.0:gradient": 4}
    assert window.score(packet(Kind.GRADIENT, ones, [3]))[0, 0] == WIDTH


def test_the_window_is_bounded(tmp_path):
    """Beyond its limit the oldest calls are given up, and steps that are over are forgotten."""
    one = packet(Kind.ACTIVATION, np.ones((8, WIDTH)), range(8))
    size = one.payload.nbytes + one.rows.nbytes
    window, missed = opened(tmp_path, limit=3 * size)
    for call in range(10):
        window.add(packet(Kind.ACTIVATION, np.ones((8, WIDTH)), range(8), call=call))
    assert window.size == 3 * size
    window.score(packet(Kind.GRADIENT, np.ones((8, WIDTH)), range(8), call=0))
    assert missed == {"h.0:gradient": 8}
    for step in range(1, 5):
        window.add(packet(Kind.ACTIVATION, np.ones((8, WIDTH)), range(8), step=step))
    assert window.size == size


def test_joining_converts_each_activation_once(window, monkeypatch):
    """However many packets a call's gradients come in, they convert as many activations as they have rows."""
    window, _ = window
    for start in range(0, 64, 8):
        window.add(packet(Kind.ACTIVATION, np.ones((8, WIDTH)), range(start, start + 8)))
    converted, plain = [], ActivationPacket.to_float32

    def counting(one):
        if one.header["kind"] == Kind.ACTIVATION:
            converted.append(len(one.rows))
        return plain(one)

    monkeypatch.setattr(ActivationPacket, "to_float32", counting)
    for start in range(4, 60, 8):  # each meets two packets
        window.score(packet(Kind.GRADIENT, np.ones((8, WIDTH)), range(start, start + 8)))
    assert sum(converted) == 56


def test_rows_that_are_not_finite_spoil_no_mean(tmp_path):
    """ā is the mean of the finite rows; a pair with NaN has a score of NaN and is not a miss."""
    window, missed = opened(tmp_path)
    values = np.ones((2, WIDTH))
    values[1, 0] = np.nan
    window.add(packet(Kind.ACTIVATION, values, [0, 1]))
    scores = window.score(packet(Kind.GRADIENT, np.ones((2, WIDTH)), [0, 1]))
    assert scores[0].tolist() == [WIDTH, 0]
    assert np.isnan(scores[1]).all()
    assert missed == {}


@given(cuts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 2**16))
def test_means_do_not_depend_on_how_rows_are_packed(tmp_path_factory, cuts, seed):
    """The running mean is numpy's, and goes on after a restart where it was written."""
    values = np.random.default_rng(seed).normal(3, 2, (60, WIDTH)).astype(np.float32)
    file = tmp_path_factory.mktemp("means") / "means.safetensors"
    means = ChannelMeans(file)
    for part in np.split(values, sorted(cuts)):
        means.add(("h.0", 1), part)
        means.write()
        means = ChannelMeans(file)
    np.testing.assert_allclose(means.of(("h.0", 1)), values.astype(np.float64).mean(0), rtol=1e-12)
    assert means.of(("h.0", 0)) is None


def test_scores_reach_the_records_of_the_archive(tmp_path):
    """The relay publishes a gradient with its scores, unquantised, in blocks that fit; the archiver's records
    have them, and the gradient's norm.
    """
    rng = np.random.default_rng(0)
    a, g = rng.normal(size=(2, 300, WIDTH)).astype(np.float32)
    window, missed = opened(tmp_path)
    bus = MemoryBus(["archiver"], depth=64)
    with bus.producer() as producer, bus.consumer("archiver") as consumer:
        relay = Relay(producer, Quantization.BF16, (), lambda _seconds: None, pairs=window)
        relay.forward(packet(Kind.ACTIVATION, a, range(300), sequence=1))
        relay.forward(packet(Kind.GRADIENT, g, range(300), sequence=2))
        packets = consumer.pull(64, 0)
        gradients = [one for one in packets if one.point == "h.0:gradient"]
        records = np.concatenate([measure(one) for one in gradients])
        values = np.concatenate([one.to_float32() for one in gradients])
    assert missed == {}
    np.testing.assert_array_equal(values, g)
    product = (a.astype(np.float64) * g).sum(1)
    np.testing.assert_allclose(records["input_x_gradient"], product, rtol=1e-5, atol=1e-6)
    expected = g @ a.astype(np.float64).mean(0) - product
    np.testing.assert_allclose(records["delta_sc"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(records["grad_norm"], np.linalg.norm(g, axis=1), rtol=1e-5)
    assert (records["kind"] == Kind.GRADIENT).all()
    activations = np.concatenate([measure(one) for one in packets if one.point == "h.0"])
    assert all(np.isnan(activations[name]).all() for name in ("grad_norm", "input_x_gradient", "delta_sc"))


def test_a_join_that_fails_costs_no_row(tmp_path, caplog):
    """Whatever goes wrong while joining, the rows are published, without scores."""
    window, missed = opened(tmp_path)
    window.score = window.add = lambda _packet: 1 / 0
    bus = MemoryBus(["archiver"], depth=8)
    with bus.producer() as producer, bus.consumer("archiver") as consumer:
        relay = Relay(producer, Quantization.NONE, (), lambda _seconds: None, pairs=window)
        relay.forward(packet(Kind.ACTIVATION, np.ones((2, WIDTH)), range(2), sequence=1))
        relay.forward(packet(Kind.GRADIENT, np.ones((2, WIDTH)), range(2), sequence=2))
        found = consumer.pull(8, 0)
        assert [(one.point, len(one.rows), one.scores) for one in found] == [
            ("h.0", 2, None),
            ("h.0:gradient", 2, None),
        ]
    assert missed == {"h.0:gradient": 2}
    assert caplog.text.count("without scores") == 1


def test_means_that_cannot_be_written_stop_no_stream(tmp_path, caplog):
    """A full disk, which safetensors reports by an error of its own, is logged once and goes on."""
    loop = object.__new__(Hook)
    loop.mute = False
    means = ChannelMeans(tmp_path / "no such folder" / "means.safetensors")
    means.add(("h.0", 0), np.ones((1, WIDTH), np.float32))
    for write in (means.write, _safetensors_fails):
        loop._describe(write)
    assert caplog.text.count("cannot write statistics") == 1


def _safetensors_fails():
    raise SafetensorError("I/O error: No space left on device (os error 28)")
