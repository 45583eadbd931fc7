"""A trainer on packets: every row is accounted for, and a checkpoint changes nothing."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype, Quantization, RowFlag
from asysi.bus.quantization import quantise
from asysi.contract.errors import ConfigError
from asysi.contract.spec import SaeTrain
from asysi.sae.checkpoint import TrainerCheckpoint, read_checkpoint, write_checkpoint
from asysi.sae.fvu import CONSTANT, NOT_TRAINED
from asysi.sae.norms import RunningMedian
from asysi.sae.trainer import Trainer, kept_rows

WIDTH, STEPS = 16, 120
POINTS = ["layer.0", "layer.1"]
SMALL = {
    "latents": 64,
    "k": 4,
    "batch": 32,
    "buffer": {"batches": 4, "sequences": 20},
    "auxk": {"dead_after": 200, "k": 8},
}


@pytest.fixture(autouse=True)
def _like_the_worker():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def packet(step, point="layer.0", rows=24, dtype=Dtype.BFLOAT16, spoil=False):
    """Return a packet whose rows are sparse mixtures of fixed directions; the third sequence is held out."""
    rng = np.random.default_rng([step, *point.encode()])
    directions = np.random.default_rng(7).normal(size=(40, WIDTH))
    values = (rng.exponential(size=(rows, 40)) * (rng.random((rows, 40)) < 0.08)) @ directions + 0.3
    values = values.astype(np.float32)
    if spoil:
        values[1, 3], values[2, 0] = np.nan, np.inf
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["step"], header["rows"], header["width"], header["dtype"] = step, rows, WIDTH, dtype
    header["sequence"] = step
    records = np.zeros(rows, ROW_DTYPE)
    records["sequence"] = np.arange(rows) // 8
    records["flags"][records["sequence"] == 2] = RowFlag.HOLDOUT
    scales, payload = None, values
    if dtype is Dtype.BFLOAT16:
        payload = (values.view(np.uint32) >> 16).astype(np.uint16)
    elif dtype is Dtype.FLOAT16:
        payload = values.astype(np.float16)
    elif dtype is Dtype.INT8:
        scales = (np.abs(values).max(1) / 127).astype(np.float32)
        payload = np.rint(values / scales[:, None]).astype(np.int8)
    return ActivationPacket(header, point, records, scales, payload)


def trainer_at(tmp_path, multiple=None, **changes):
    config = SaeTrain.model_validate({**SMALL, **changes}, by_name=True)
    return Trainer(config, tmp_path / "checkpoints" / "topk.ckpt", multiple)


def feed(trainer, steps, points=POINTS):
    for step in steps:
        for point in points:
            trainer.receive(packet(step, point), POINTS, STEPS, 0)


def finish(trainer):
    trainer.end()
    while trainer.train():
        pass


def assert_rows_add_up(training):
    counts = training.report()
    parts = ("trained", "held_out", "not_finite", "outliers", "after_stop", "buffered")
    assert counts["received"] == sum(counts[part] for part in parts)


def assert_same(one, two):
    assert one.trainings.keys() == two.trainings.keys()
    for point, training in one.trainings.items():
        tensors, words = training.state()
        others, other_words = two.trainings[point].state()
        assert json.dumps(words) == json.dumps(other_words)
        for name, tensor in tensors.items():
            assert torch.equal(tensor, others[name]), f"{point} {name}"
    assert (one.rows, one.log.ranges) == (two.rows, two.log.ranges)


@pytest.mark.parametrize("multiple", [None, 1.5])
@pytest.mark.parametrize("cut", [3, 17, 60, 119], ids=["filling", "started", "running", "last"])
def test_resume_is_bit_identical(tmp_path, cut, multiple):
    """A trainer resumed from a checkpoint ends bit by bit where an uninterrupted one ends."""
    whole = trainer_at(tmp_path / "whole", multiple)
    feed(whole, range(STEPS))
    finish(whole)
    first = trainer_at(tmp_path, multiple)
    feed(first, range(cut))
    first.save(0)
    second = trainer_at(tmp_path, multiple)
    assert second.load(0)
    feed(second, range(cut, STEPS))
    finish(second)
    assert_same(whole, second)
    assert all(training.dead_share < 1 for training in whole.trainings.values())


def test_resume_in_the_drain_is_bit_identical(tmp_path):
    """A kill while the buffer drains after the end of the stream changes nothing either."""
    whole = trainer_at(tmp_path)
    feed(whole, range(STEPS))
    whole.end()
    whole.train()
    whole.save(0)
    second = trainer_at(tmp_path)
    second.load(0)
    finish(whole)
    finish(second)
    assert_same(whole, second)


def test_every_row_is_trained_on_or_counted(tmp_path):
    """Received is the sum of trained, held out, not finite, after the stop and buffered, at every moment."""
    trainer = trainer_at(tmp_path)
    for step in range(40):
        trainer.receive(packet(step, spoil=step % 5 == 0), POINTS, STEPS, 0)
        assert_rows_add_up(trainer.trainings["layer.0"])
    finish(trainer)
    counts = trainer.trainings["layer.0"].counts
    assert_rows_add_up(trainer.trainings["layer.0"])
    assert (counts.received, counts.held_out, counts.not_finite) == (40 * 24, 40 * 8, 8 * 2)
    assert counts.trained == 40 * 16 - 8 * 2
    assert counts.after_stop == 0


@pytest.mark.parametrize("quantization", [Quantization.FP8, Quantization.INT8_CHANNEL])
def test_quantised_rows_are_read_back_and_their_nan_is_found(quantization):
    """Rows of fp8 and of int8 by channel are kept as bfloat16; one that was not finite is left out."""
    original = packet(3, dtype=Dtype.FLOAT32)
    values = original.payload.copy()
    values[4, 1] = np.nan
    table = np.stack([np.zeros(WIDTH), np.full(WIDTH, np.abs(original.payload).max() / 100)]).astype(
        np.float32
    )
    made = quantise(values, quantization, table)
    header = original.header.copy()
    header["dtype"], header["quantization"] = quantization.dtype, quantization
    rows, finite = kept_rows(
        replace(original, header=header, scales=made.scales, payload=made.payload, table=made.table)
    )
    assert np.flatnonzero(~finite).tolist() == [4]
    kept = np.delete(rows.float().numpy(), 4, 0)
    wanted = np.delete(values, 4, 0)
    np.testing.assert_allclose(kept, wanted, rtol=0.07, atol=float(table[1, 0]))


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.FLOAT16, Dtype.BFLOAT16, Dtype.INT8])
def test_every_type_of_packet_is_kept(dtype):
    """Rows are kept as they came, int8 as bfloat16, and the ring's memory may go afterwards."""
    original = packet(3, dtype=dtype)
    expected = original.to_float32()
    rows, finite = kept_rows(original)
    original.payload[:] = 0
    assert finite.all()
    torch.testing.assert_close(rows.float(), torch.from_numpy(expected), rtol=2**-8, atol=0)


def test_training_explains_the_rows(tmp_path):
    """Held-out FVU falls far below what the initial weights reach."""
    trainer = trainer_at(tmp_path)
    feed(trainer, range(8), POINTS[:1])
    training = trainer.trainings["layer.0"]
    before = training.evaluate(exact=True)
    feed(trainer, range(8, STEPS), POINTS[:1])
    finish(trainer)
    after = training.evaluate(exact=True)
    assert after.fvu < 0.5 * before.fvu
    assert after.rows == STEPS * 8
    assert 0 < after.l0 <= 4


def test_held_out_rows_of_the_whole_run_are_evaluated_on(tmp_path):
    """Rows of the first half that were lost with a killed trainer cost nothing: later ones give an FVU; of
    many more rows than are kept, those of the end are among them.
    """
    late = trainer_at(tmp_path / "late")
    feed(late, range(STEPS // 2, STEPS), POINTS[:1])
    finish(late)
    assert late.trainings["layer.0"].evaluate(exact=True).rows == STEPS // 2 * 8
    trainer = trainer_at(tmp_path / "many")
    for step in range(700):
        one = packet(step % STEPS)
        one.rows["sample"] = step
        trainer.receive(one, POINTS, 700, 0)
    origin = trainer.trainings["layer.0"].state()[0]["held.origin"][:, 0]
    assert len(origin) == 4096
    assert origin.max() > 690
    assert origin.min() < 10


def test_the_course_of_training_is_kept(tmp_path):
    """The curve has rows, loss, FVU, L0 and dead share at growing numbers of rows, the last one last."""
    trainer = trainer_at(tmp_path)
    feed(trainer, range(STEPS), POINTS[:1])
    finish(trainer)
    training = trainer.trainings["layer.0"]
    training.conclude()
    curve = np.array(training.progress.curve)
    assert (np.diff(curve[:, 0]) >= 0).all()
    assert curve[-1, 0] == training.counts.trained
    assert curve[-1, 2] == training.progress.evaluation["fvu"] < curve[0, 2]
    assert ((curve[:, 4] >= 0) & (curve[:, 4] <= 1)).all()


def test_held_out_rows_are_never_trained_on(tmp_path):
    """Changing held-out rows changes no weight."""
    plain, changed = trainer_at(tmp_path / "a"), trainer_at(tmp_path / "b")
    for step in range(60):
        one, two = packet(step), packet(step)
        two.payload[two.rows["flags"] != 0] = 0x4000
        plain.receive(one, POINTS, STEPS, 0)
        changed.receive(two, POINTS, STEPS, 0)
    assert plain.trainings["layer.0"].counts.trained > 0
    assert torch.equal(plain.trainings["layer.0"].sae.parameters, changed.trainings["layer.0"].sae.parameters)


@pytest.mark.parametrize("stop", [{"tokens": 320}, {"fvu": 0.99}], ids=["tokens", "fvu"])
def test_stop_ends_training_and_counting_goes_on(tmp_path, stop):
    """After a stop condition the weights stand still and every further row is counted."""
    trainer = trainer_at(tmp_path, stop=stop)
    training = None
    for round_ in range(6):
        feed(trainer, range(STEPS), POINTS[:1])
        training = trainer.trainings["layer.0"]
        if round_ == 4:
            assert training.progress.stopped
            weights = training.sae.parameters.clone()
    finish(trainer)
    assert torch.equal(weights, training.sae.parameters)
    assert_rows_add_up(training)
    assert training.counts.after_stop > 0
    if "tokens" in stop:
        assert training.counts.trained == 320


def test_globs_choose_the_points(tmp_path):
    """A trainer trains on the points that its globs match, and takes note of the others' rows."""
    trainer = trainer_at(tmp_path, hook_points=["*.1"])
    feed(trainer, range(5))
    assert list(trainer.trainings) == ["layer.1"]
    assert trainer.rows == {"layer.0": 120, "layer.1": 120}


def test_the_next_attempt_takes_all_but_the_position(tmp_path):
    """In a new attempt the rings begin anew: weights and buffer stay, rows of the old rings do not count."""
    first = trainer_at(tmp_path)
    feed(first, range(50))
    first.save(0)
    second = trainer_at(tmp_path)
    assert second.load(1)
    assert second.rows == {}
    tensors, _ = second.trainings["layer.0"].state()
    assert torch.equal(tensors["parameters"], first.trainings["layer.0"].sae.parameters)


def test_packets_are_logged_as_ranges(tmp_path):
    """The log names each consumed packet by attempt, shard and sequence, compactly."""
    trainer = trainer_at(tmp_path)
    feed(trainer, [0, 1, 2, 5, 6], POINTS[:1])
    trainer.save(0)
    again = trainer_at(tmp_path)
    again.load(0)
    assert again.log.ranges == {"0/0": [[0, 2], [5, 6]]}


def test_other_settings_are_refused(tmp_path):
    """A checkpoint of another size is an error that names the setting, not a crash or a mixture."""
    first = trainer_at(tmp_path)
    feed(first, range(3))
    first.save(0)
    with pytest.raises(ConfigError, match="latents"):
        trainer_at(tmp_path, latents=32).load(0)
    assert trainer_at(tmp_path, checkpoint_seconds=3).load(0)


def test_memory_too_small_for_two_batches_is_refused(tmp_path):
    """A mixing buffer that cannot mix is an error that says what to raise."""
    trainer = trainer_at(tmp_path, buffer={"memory": "2Ki"})
    with pytest.raises(ConfigError, match=r"buffer\.memory"):
        feed(trainer, [0])


def processor():
    """Return what decides how products are rounded."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = [line.split(":")[1].strip() for line in lines if line.startswith(("model", "cpu family", "step"))]
    return " ".join([torch.__version__, torch.backends.cpu.get_cpu_capability(), *facts[:4]])


def digest(training):
    """Return a hash over every tensor of its state."""
    tensors, _ = training.state()
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def test_topk_trains_as_it_always_has(tmp_path, monkeypatch):
    """Loss, FVU, L0 and dead share on the way are those that were recorded before there were variants; on the
    kind of processor that recorded them, so is every bit of the state.
    """
    recorded = json.loads(Path(__file__).with_name("golden").joinpath("topk.json").read_text())
    monkeypatch.setattr("asysi.sae.training.bfloat16_is_fast", lambda *_: False)
    trainer = trainer_at(tmp_path)
    feed(trainer, range(STEPS))
    finish(trainer)
    for point, training in trainer.trainings.items():
        training.conclude()
        expected = recorded["points"][point]
        curve, known = np.array(training.progress.curve), np.array(expected["curve"])
        np.testing.assert_allclose(curve[:, :4], known[:, :4], rtol=1e-3, err_msg=point)
        np.testing.assert_allclose(curve[:, 4], known[:, 4], atol=0.05, err_msg=point)
        if recorded["processor"] == processor():
            assert digest(training) == expected["digest"], point


def test_divergence_is_an_error(tmp_path):
    """Training that overflows ends in an error, not in SAEs full of NaN."""
    trainer = trainer_at(tmp_path)
    feed(trainer, range(20), POINTS[:1])
    trainer.trainings["layer.0"].sae.W_dec[5] = math.inf
    with pytest.raises(FloatingPointError):
        feed(trainer, range(20, 40), POINTS[:1])


_KILLED = """
import sys, os, signal, torch
from pathlib import Path
from asysi import files
from asysi.sae.checkpoint import TrainerCheckpoint, write_checkpoint
file, moment = Path(sys.argv[1]), sys.argv[2]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if moment == "written":
    files.sync = die
else:
    Path.replace = die
write_checkpoint(file, TrainerCheckpoint({"a": torch.ones(50_000)}, {"n": 2}))
"""


@pytest.mark.parametrize("moment", ["written", "synced"])
def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path, moment):
    """Until the new checkpoint is whole and on the disk the old one stands; leftovers are harmless."""
    file = tmp_path / "x.ckpt"
    write_checkpoint(file, TrainerCheckpoint({"a": torch.zeros(10)}, {"n": 1}))
    killed = subprocess.run([sys.executable, "-c", _KILLED, file, moment], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    old = read_checkpoint(file)
    assert old.words == {"n": 1}
    assert torch.equal(old.tensors["a"], torch.zeros(10))
    write_checkpoint(file, TrainerCheckpoint({"a": torch.ones(3)}, {"n": 3}))
    assert read_checkpoint(file).words == {"n": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\x08\0\0\0\0\0\0\0{      }"])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    """A damaged or foreign file is an error that names it; nothing in it is executed."""
    file = tmp_path / "x.ckpt"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.ckpt"):
        read_checkpoint(file)


def test_normalisation_is_frozen(tmp_path):
    """The scale is estimated once, when the buffer has filled, and none is 1."""
    trainer = trainer_at(tmp_path)
    feed(trainer, range(30), POINTS[:1])
    scale = trainer.trainings["layer.0"].progress.scale
    feed(trainer, range(30, 60), POINTS[:1])
    assert trainer.trainings["layer.0"].progress.scale == scale
    assert 0 < scale < math.inf
    plain = trainer_at(tmp_path, normalisation="none")
    feed(plain, range(30), POINTS[:1])
    assert plain.trainings["layer.0"].progress.scale == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.floats(0, 2.0**120, width=32), min_size=1, max_size=300),
    st.integers(1, 50),
)
def test_the_running_median_is_the_median(numbers, cut):
    """Whatever comes in whatever portions, the median is known to 1.6%, a bucket's width."""
    values, median = np.array(numbers, np.float32), RunningMedian()
    for first in range(0, len(values), cut):
        median.add(values[first : first + cut])
    ordered = np.sort(values)
    low, high = ordered[(len(values) - 1) // 2], ordered[len(values) // 2]
    assert low * (1 - 1 / 64) - 1e-37 <= median.value <= high * (1 + 1 / 64) + 1e-37


def with_outliers(step, factor=1000.0):
    """A packet whose rows 0 and 17, one of them held out, have an enormous norm."""
    plain = packet(step, dtype=Dtype.FLOAT32)
    payload = plain.payload.copy()
    payload[[0, 17]] = factor
    return ActivationPacket(plain.header, plain.point, plain.rows, None, payload)


def test_rows_of_exceptional_norm_are_left_out_and_counted(tmp_path):
    """Under maxNormMultiple they are neither trained on nor evaluated on, from the first packet on."""
    free, filtered = trainer_at(tmp_path / "free"), trainer_at(tmp_path, 10.0)
    for step in range(STEPS):
        for trainer in (free, filtered):
            trainer.receive(with_outliers(step), POINTS, STEPS, 0)
    for trainer in (free, filtered):
        finish(trainer)
        trainer.trainings["layer.0"].evaluate(exact=True)
        assert_rows_add_up(trainer.trainings["layer.0"])
    report = filtered.trainings["layer.0"].report()
    assert (report["outliers"], report["held_out"]) == (2 * STEPS, 7 * STEPS)
    norms = np.linalg.norm(np.concatenate([with_outliers(step).payload for step in range(STEPS)]), axis=1)
    assert report["norm_limit"] == pytest.approx(10 * np.median(norms), rel=0.02)
    assert free.trainings["layer.0"].report()["fvu"] < 0.01  # the outliers are the variance
    assert 0.02 < report["fvu"] < 0.9


@pytest.mark.parametrize("value", [0.0, 0.1, 3000.0], ids=["zero", "small", "large"])
@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_constant_activations_have_no_fvu(tmp_path, value, dtype):
    """Rows that are all the same: training goes through, FVU is null, and the report says why."""
    trainer = trainer_at(tmp_path)
    for step in range(60):
        one = packet(step, dtype=dtype)
        row = np.linspace(value, 2 * value, WIDTH, dtype=np.float32)
        bits = row if dtype is Dtype.FLOAT32 else (row.view(np.uint32) >> 16).astype(np.uint16)
        payload = np.broadcast_to(bits, one.payload.shape).copy()
        trainer.receive(ActivationPacket(one.header, one.point, one.rows, None, payload), POINTS, STEPS, 0)
    finish(trainer)
    training = trainer.trainings["layer.0"]
    for exact in (False, True):
        training.evaluate(exact=exact)
        report = training.report()
        assert (report["fvu"], report["fvu_undefined"]) == (None, CONSTANT)
    assert report["trained"] == 60 * 16
    assert report["loss"] < 1.5


def test_a_point_that_is_never_finite_says_so(tmp_path):
    """Rows of NaN and infinity alone: every one is counted, and there is a reason instead of an FVU."""
    trainer = trainer_at(tmp_path)
    for step in range(10):
        one = packet(step, dtype=Dtype.FLOAT32)
        payload = np.full_like(one.payload, [np.nan, np.inf][step % 2])
        trainer.receive(ActivationPacket(one.header, one.point, one.rows, None, payload), POINTS, STEPS, 0)
    finish(trainer)
    report = trainer.trainings["layer.0"].report()
    assert (report["not_finite"], report["fvu"], report["fvu_undefined"]) == (240, None, NOT_TRAINED)
