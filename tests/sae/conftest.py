"""What every SAE variant has to hold: a test that asks for `check` runs once for each of these claims.

A check takes a trainer's entry of the spec and a folder. `test_variants.py` runs them over the variants of
the table; a test of a variant that is not in it may ask for `check` as well.
"""

import contextlib
import math

import numpy as np
import pytest
import torch

from asysi.bus.packet import ROW_DTYPE, RowFlag
from asysi.sae.checkpoint import TrainerCheckpoint, read_checkpoint, write_checkpoint
from asysi.sae.evaluation import evaluate
from asysi.sae.export import export, load
from asysi.sae.sparse import SparseLatents
from asysi.sae.training import Training
from asysi.sae.variants import variant
from asysi.sae.variants.base import SparseAutoencoder, StepContext

WIDTH, STEPS, SCALE = 16, 120, 0.37


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows_of(step, count=24):
    """Return sparse mixtures of fixed directions [count, WIDTH], float32."""
    rng = np.random.default_rng(step)
    directions = np.random.default_rng(7).normal(size=(40, WIDTH))
    mixed = (rng.exponential(size=(count, 40)) * (rng.random((count, 40)) < 0.08)) @ directions + 0.3
    return torch.from_numpy(mixed.astype(np.float32))


def a_training(config):
    return Training(config, "layer.0", WIDTH, torch.float32, 1 << 26)


def feed(training, steps):
    """Give packets of 24 rows, 8 of them held out, and train on what the buffer lets go."""
    for step in steps:
        rows = rows_of(step)
        records = np.zeros(len(rows), ROW_DTYPE)
        records["sequence"] = np.arange(len(rows)) // 8
        records["flags"][records["sequence"] == 2] = RowFlag.HOLDOUT
        training.receive(rows, np.ones(len(rows), np.bool_), records, step)
        training.progress.steps_total = STEPS
        while training.train():
            pass


def finish(training):
    training.end()
    while training.train():
        pass


def trained(config, dtype=torch.float32):
    training = a_training(config)
    with torch.inference_mode():
        feed(training, range(40))
    return training.sae.to(dtype)


def the_gradient_is_autograds(config, _folder):
    """What a variant writes out by hand is what autograd finds, in float64, whichever latents are dead."""
    sae, x = trained(config, torch.float64), rows_of(900).double()
    for dead in ([], [3, 7, 8], list(range(sae.latents))):
        context = StepContext(torch.tensor(dead, dtype=torch.int64), trained=500, total=2000.0)
        own, autograd, before = sae.twin(), sae.twin(), sae.parameters.clone()
        outcome = sae.differentiate(x, x, own, context)
        expected = SparseAutoencoder.differentiate(sae, x, x, autograd, context)
        torch.testing.assert_close(own.parameters, autograd.parameters, rtol=1e-9, atol=1e-11)
        assert own.parameters.abs().max() > 0
        for figure in ("loss", "fvu", "l0"):
            assert getattr(outcome, figure) == pytest.approx(getattr(expected, figure), rel=1e-9), figure
        assert torch.equal(outcome.fired, expected.fired)
        assert torch.equal(sae.parameters, before)
        assert not sae.parameters.requires_grad
        assert not sae.W_dec.requires_grad


def a_step_within_inference_mode_is_the_same(config, _folder):
    """The worker trains within inference mode, where autograd records nothing: the gradient is the same."""
    sae, x = trained(config), rows_of(900)
    plain, quiet = sae.twin(), sae.twin()
    sae.differentiate(x, x, plain, StepContext())
    with torch.inference_mode():
        sae.differentiate(x.clone(), x, quiet, StepContext(torch.arange(0)))
    assert torch.equal(plain.parameters, quiet.parameters)


def the_constraint_holds_after_a_step(config, _folder):
    """After training, imposing the constraint once more changes nothing."""
    sae = trained(config)
    before = sae.parameters.clone()
    sae.constrain()
    torch.testing.assert_close(sae.parameters, before, rtol=1e-6, atol=1e-7)


def latents_are_coordinates(config, _folder):
    """Firings come in the order of rows, each latent once for a row, above 0; rows without one are none."""
    sae, x = trained(config), rows_of(900)
    found = sae.activate(x)
    assert (found.rows, found.latents) == (len(x), config.latents)
    assert (found.row.diff() >= 0).all()
    assert (found.value > 0).all()
    pairs = found.row * found.latents + found.latent
    assert len(pairs.unique()) == len(pairs) > 0
    assert 0 <= found.latent.min() <= found.latent.max() < config.latents
    assert torch.equal(SparseLatents.from_dense(found.dense()).dense(), sae.encode(x))
    nothing = sae.activate(x[:0])
    assert (nothing.rows, len(nothing.value)) == (0, 0)


def forward_is_what_the_latents_rebuild(config, _folder):
    """The reconstruction is that of the firing latents, for any of the rows alone too."""
    sae, x = trained(config, torch.float64), rows_of(900).double()
    found = sae.activate(x)
    torch.testing.assert_close(sae.forward(x), sae.reconstruct(found, x))
    some = torch.arange(len(x)) % 3 == 1
    torch.testing.assert_close(sae.reconstruct(found.of(some), x[some]), sae.forward(x)[some])


def folding_keeps_the_reconstruction(config, _folder):
    """Frozen, it does to plain rows what it did to scaled ones: same latents, same reconstruction."""
    sae, x = trained(config, torch.float64), rows_of(900).double()
    frozen = sae.frozen(SCALE, SCALE)
    torch.testing.assert_close(frozen.forward(x) * SCALE, sae.forward(x * SCALE))
    assert torch.equal(frozen.encode(x) > 0, sae.encode(x * SCALE) > 0)


def an_export_is_loaded_as_it_was(config, folder):
    """What is loaded encodes and rebuilds bit by bit as what was exported."""
    sae, x = trained(config).frozen(SCALE, SCALE), rows_of(900)
    export(folder / "point", sae, {"hook_name": "point"})
    again = load(folder / "point")
    one, other = sae.activate(x), again.activate(x)
    assert len(one.value) > 0
    for mine, loaded in ((one.row, other.row), (one.latent, other.latent), (one.value, other.value)):
        assert torch.equal(mine, loaded)
    assert torch.equal(sae.forward(x), again.forward(x))


def a_resumed_training_ends_on_the_same_bits(config, folder, cuts=(3, 17, 60), made=None):
    """From a checkpoint on disk training goes on as if nothing had been, in every tensor and number.

    `made` returns a new training of the config; `a_training` by default. Returns the tensors of the last one.
    """
    made = made or a_training
    whole = made(config)
    with torch.inference_mode():
        feed(whole, range(STEPS))
        finish(whole)
        for cut in cuts:
            first, second = made(config), made(config)
            feed(first, range(cut))
            write_checkpoint(folder / "x.ckpt", TrainerCheckpoint(*first.state()))
            checkpoint = read_checkpoint(folder / "x.ckpt")
            second.restore(checkpoint.tensors, checkpoint.words)
            feed(second, range(cut, STEPS))
            finish(second)
            (tensors, words), (others, other_words) = whole.state(), second.state()
            assert words == other_words
            assert tensors.keys() == others.keys()
            for name, tensor in tensors.items():
                assert torch.equal(tensor, others[name]), name
    return tensors


def training_explains_rows(config, _folder):
    """Training takes away a good part of the variance of rows that it never saw."""
    training, rows = a_training(config), torch.cat([rows_of(step) for step in range(900, 910)])
    with torch.inference_mode():
        feed(training, range(8))
        before = evaluate(training.sae, rows, training.progress.scale)
        for _ in range(3):
            feed(training, range(STEPS))
        finish(training)
        after = evaluate(training.sae, rows, training.progress.scale)
    assert after.fvu < 0.7 * before.fvu
    assert 0 < after.l0 < config.latents


def what_is_not_finite_never_looks_right(config, _folder):
    """With a NaN among the weights training ends in an error, and no reconstruction is finite."""
    training = a_training(config)
    with torch.inference_mode():
        feed(training, range(40))
        sae = training.sae
        sae.parameters.fill_(math.nan)
        with pytest.raises(FloatingPointError):
            feed(training, range(40, 80))
        with contextlib.suppress(FloatingPointError):
            assert not sae.forward(rows_of(900)).isfinite().any()


def rows_that_are_not_finite_are_counted_and_skipped(config, _folder):
    """NaN and infinity among the rows change no bit of the state; only their count says that they came."""
    clean, spoiled = a_training(config), a_training(config)
    with torch.inference_mode():
        for step in range(40):
            rows, records = rows_of(step), np.zeros(24, ROW_DTYPE)
            finite = np.ones(24, np.bool_)
            clean.receive(rows, finite, records, step)
            bad = torch.tensor([math.nan, math.inf]).view(2, 1).expand(2, WIDTH)
            rows, finite = torch.cat([bad, rows]), np.append([False, False], finite)
            spoiled.receive(rows, finite, np.zeros(26, ROW_DTYPE), step)
            for training in (clean, spoiled):
                while training.train():
                    pass
    assert clean.counts.trained > 0
    assert spoiled.counts.not_finite == spoiled.counts.received - clean.counts.received == 80
    for name, tensor in clean.state()[0].items():
        assert torch.equal(tensor, spoiled.state()[0][name]), name


def it_says_what_sets_it_apart(config, _folder):
    """The report can name the settings of a trainer."""
    assert variant(config.variant).describe(config)


CHECKS = (
    the_gradient_is_autograds,
    a_step_within_inference_mode_is_the_same,
    the_constraint_holds_after_a_step,
    latents_are_coordinates,
    forward_is_what_the_latents_rebuild,
    folding_keeps_the_reconstruction,
    an_export_is_loaded_as_it_was,
    a_resumed_training_ends_on_the_same_bits,
    training_explains_rows,
    what_is_not_finite_never_looks_right,
    rows_that_are_not_finite_are_counted_and_skipped,
    it_says_what_sets_it_apart,
)


def pytest_generate_tests(metafunc):
    if "check" in metafunc.fixturenames:
        metafunc.parametrize("check", CHECKS, ids=lambda check: check.__name__)
