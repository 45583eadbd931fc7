"""Every SAE variant that can be trained keeps the claims that its users rely on."""

import math

import numpy as np
import pytest
import torch
from tests.sae.conftest import STEPS, a_training, feed, rows_of, trained

from asysi.contract.errors import ConfigError
from asysi.contract.spec import SaeTrain
from asysi.contract.variants import VARIANTS
from asysi.sae.evaluation import evaluate
from asysi.sae.optimiser import learning_rate_factor
from asysi.sae.selection import batch_bound
from asysi.sae.variants import loadable, variant
from asysi.sae.variants.affine import firing_number
from asysi.sae.variants.base import StepContext, spread, squares
from asysi.sae.variants.jumprelu import JumpReLU

SMALL = {
    "latents": 64, "k": 4, "batch": 32, "buffer": {"batches": 4, "sequences": 20}, "auxk": {"deadAfter": 200},
}  # fmt: skip
EVERY = {
    "resample": {"every": 320},
    "schedule": {"lrWarmUp": 100, "lrDecay": 800, "lrEnd": 0.1, "sparsityWarmUp": 500},
    "decoder": {"norm": "free"},
    "ema": 0.9,
}


def entry(name="topk", **changes):
    return SaeTrain.model_validate({**SMALL, "variant": name, **changes})


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_conforms(check, name, tmp_path):
    """Each check of conftest.py holds for each variant of the table."""
    check(entry(name), tmp_path)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_resumes_with_every_setting(name, tmp_path):
    """With resampling, schedules, a free decoder and a running mean a resume ends on the same bits too."""
    from tests.sae import conftest

    conftest.a_resumed_training_ends_on_the_same_bits(entry(name, **EVERY), tmp_path, cuts=(60,))


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_is_decode_of_encode(name):
    """The sparse way and the dense way give the same reconstruction, before and after the export."""
    sae, x = trained(entry(name), torch.float64), rows_of(900).double()
    for one in (sae, sae.frozen(0.3, 0.3)):
        torch.testing.assert_close(one.forward(x), one.decode(one.encode(x)))
        assert one.encode(x).min() >= 0


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("norm", ["unit", "free"])
def test_the_gradient_is_the_slope_of_the_loss(name, norm):
    """In float64 the loss changes along random directions as the gradient says, AuxK and penalties included.

    A threshold has no slope but an estimate; it stays where it is.
    """
    sae = trained(entry(name, decoder={"norm": norm}), torch.float64)
    x, context = rows_of(900).double(), StepContext(torch.tensor([3, 7, 8]), sparsity=0.8)
    gradient = sae.twin()
    sae.differentiate(x, x, gradient, context)
    parts = gradient.named(gradient.parameters)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(sae.parameters.shape, generator=generator, dtype=torch.float64)
        if "threshold" in parts:
            sae.named(direction)["threshold"].zero_()
        losses = []
        for step in (1e-7, -1e-7):
            moved = sae.to(torch.float64)
            moved.parameters.add_(direction, alpha=step)
            losses.append(_smooth_loss(moved, sae, x, context))
        slope = float(gradient.parameters @ direction)
        assert (losses[0] - losses[1]) / 2e-7 == pytest.approx(slope, rel=1e-4, abs=1e-6)


def _smooth_loss(sae, fixed, x, context):
    """Return the loss with what the gradient holds constant taken from `fixed`: AuxK's residual, gated's
    decoder.
    """
    before = fixed.loss(x, x, context)
    coefficient, fixed_part = sae._coefficient, 0.0
    if len(context.dead):
        pre = sae.preactivations(x - sae.b_dec)[:, context.dead]
        revived = pre.relu() @ sae.W_dec[context.dead]
        fixed_part = coefficient * squares(revived + before.error) / spread(x)
    sae._coefficient = 0.0
    if hasattr(sae, "b_gate"):
        own = sae.penalty
        sae.penalty = lambda y, pre, latents, c: (
            own(y, pre, latents, c)
            - (torch.addmm(sae.b_dec, pre.relu(), sae.W_dec) - y).square().sum()
            + (torch.addmm(fixed.b_dec, pre.relu(), fixed.W_dec) - y).square().sum()
        )
    return float(sae.loss(x, x, context).loss) + fixed_part


@pytest.mark.parametrize("mode", ["step", "tanh", "quadratic"])
@pytest.mark.parametrize("to_input", [False, True])
def test_the_threshold_learns_by_the_papers_estimate(mode, to_input):
    """JumpReLU's threshold gradient is equations 11 and 12 of arXiv 2407.14435, written out."""
    own = {
        "bandwidth": 0.7,
        "sparsityLossMode": mode,
        "targetL0": 3.0,
        "l0Coefficient": 0.4,
        "steToInput": to_input,
    }
    sae = trained(entry("jumprelu", jumprelu=own, auxk={"coefficient": 0}), torch.float64)
    sae.threshold.fill_(0.5)
    x, gradient = rows_of(900).double(), sae.twin()
    sae.differentiate(x, x, gradient, StepContext())
    pre = sae.preactivations(x - sae.b_dec)
    latents = pre * (pre > 0.5)
    near = ((pre - 0.5).abs() < 0.35).double()
    assert near.any()
    slope = 2 * (sae.decode(latents) - x) @ sae.W_dec.T
    l0 = (pre > 0.5).double().sum(1, keepdim=True)
    if mode == "tanh":
        norms = sae.W_dec.norm(dim=1)
        slope = slope + 0.4 * 4 * norms * (1 - torch.tanh(4 * latents * norms) ** 2)
        counted = torch.zeros_like(pre)
    else:
        weight = 0.4 if mode == "step" else 0.4 * (4 / 3) * (l0 - 3.0)
        counted = near / 0.7 * weight
    estimated = near * (0.5 / 0.7) * slope + counted
    torch.testing.assert_close(gradient.threshold, -estimated.sum(0) / spread(x), rtol=1e-8, atol=1e-10)
    direct = (pre > 0.5) * slope + (estimated if to_input else 0)
    torch.testing.assert_close(gradient.b_enc, direct.sum(0) / spread(x), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_a_batch_shares_its_latents(name):
    """In training k × rows fire in a batch, unevenly; frozen, a threshold gives about as many for any row."""
    training = a_training(entry(name))
    with torch.inference_mode():
        for _ in range(3):
            feed(training, range(STEPS))
    sae = training.sae
    x = torch.cat([rows_of(step) for step in range(900, 920)]) * training.progress.scale
    fired = sae.loss(x, x, StepContext()).active.sum(1)
    assert fired.sum() == 4 * len(x)
    assert fired.min() < 4 < fired.max()
    plain = sae.frozen(2.0, 2.0)
    assert isinstance(plain, JumpReLU)
    alone = torch.cat([plain.encode(row[None]) for row in x / 2])
    assert torch.equal(alone > 0, sae.encode(x) > 0)
    assert (alone > 0).sum() / len(x) == pytest.approx(4, rel=0.35)


def test_the_bound_of_a_batch_is_exact():
    """It is the element that a sort puts at that place, with ties and NaN too."""
    values = torch.from_numpy(np.random.default_rng(0).integers(-9, 9, (7, 11)).astype(np.float32))
    ordered = values.flatten().sort(descending=True).values
    for count in (1, 2, 30, 77):
        assert batch_bound(values, count) == ordered[count - 1]
    values[2, 3] = math.nan
    assert batch_bound(values, 1).isnan()


def test_a_matryoshka_rebuilds_with_its_first_latents():
    """Its first quarter alone explains more of a row than the first quarter of a BatchTopK autoencoder."""
    explained = {}
    for name in ("batchtopk", "matryoshka"):
        training = a_training(entry(name, matryoshka={"widths": [16, 32]}))
        with torch.inference_mode():
            for _ in range(4):
                feed(training, range(STEPS))
        sae = training.sae
        x = torch.cat([rows_of(step) for step in range(900, 920)]) * training.progress.scale
        latents = sae.encode(x)
        latents[:, 16:] = 0
        explained[name] = squares(sae.decode(latents) - x) / spread(x)
    assert explained["matryoshka"] < 0.8 * explained["batchtopk"]


@pytest.mark.parametrize("name", ["standard", "gated", "jumprelu"])
def test_the_penalty_decides_how_many_fire(name):
    """A larger weight leaves fewer latents."""
    key = "l0Coefficient" if name == "jumprelu" else "l1Coefficient"
    l0 = []
    for weight in (0.1, 3.0):
        training = a_training(entry(name, **{name: {key: weight}}))
        with torch.inference_mode():
            for _ in range(2):
                feed(training, range(STEPS))
            l0.append(training.evaluate(exact=True).l0)
    assert l0[1] < 0.7 * l0[0]


def test_a_quadratic_penalty_meets_its_target():
    """JumpReLU with `quadratic` ends near the L0 that it was given."""
    own = {"sparsityLossMode": "quadratic", "targetL0": 6.0, "l0Coefficient": 1.0, "bandwidth": 0.3}
    training = a_training(entry("jumprelu", jumprelu=own, lr=0.02, schedule={"lrDecay": 0}))
    with torch.inference_mode():
        for _ in range(4):
            feed(training, range(STEPS))
        assert training.evaluate(exact=True).l0 == pytest.approx(6, rel=0.3)


@pytest.mark.parametrize("name", VARIANTS)
def test_dead_latents_are_resampled(name):
    """At the given number of tokens dead latents get directions of badly rebuilt rows, and no moments."""
    training = a_training(entry(name, resample={"every": 64}, auxk={"deadAfter": 200, "coefficient": 0}))
    with torch.inference_mode():
        feed(training, range(30))
        sae = training.sae
        bias = sae.named(sae.parameters)[sae.biases[0]]
        training._idle[:10] = 10_000
        bias[:10] = -100.0
        rows = torch.cat([rows_of(step) for step in range(30, 34)])[:32]
        training.counts.trained = 16
        training.learn(rows.clone())  # up to row 48
        assert bias[:10].max() < -50
        training.learn(rows.clone())  # beyond row 64
        assert training._idle[:10].max() == 0
        assert bias[:10].min() == bias[:10].max() == 0
        x = rows * training.progress.scale - sae.b_dec
        cosine = torch.nn.functional.normalize(x, dim=1) @ sae.W_dec[:10].T
        torch.testing.assert_close(cosine.max(0).values, torch.ones(10))
        assert len(cosine.argmax(0).unique()) == 10
        norms = torch.linalg.vector_norm(sae.encoder, dim=1)
        torch.testing.assert_close(norms[:10], 0.2 * norms[10:].mean().expand(10), rtol=0.2, atol=0)
        assert all(not moment["W_dec"][:10].any() for moment in training._moments)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_decoder_is_unit_or_free(name):
    """Rows of the decoder have norm 1, unless the spec leaves them free."""
    norms = {}
    for norm in ("unit", "free"):
        sae = trained(entry(name, decoder={"norm": norm}))
        norms[norm] = torch.linalg.vector_norm(sae.W_dec, dim=1)
    torch.testing.assert_close(norms["unit"], torch.ones(64))
    assert (norms["free"] - 1).abs().max() > 0.01


def test_a_gradient_may_keep_what_the_constraint_undoes():
    """`decoder.project: false` leaves the gradient as it is."""
    x = rows_of(900)
    for project in (True, False):
        sae = trained(entry(decoder={"project": project}))
        gradient = sae.twin()
        sae.differentiate(x, x, gradient, StepContext())
        sae.project(gradient)
        along = (gradient.W_dec * sae.W_dec).sum(1).abs().max()
        assert bool(along < 1e-6) is project


def test_the_running_mean_is_what_counts():
    """With `ema` the mean of the parameters is evaluated and exported; training itself is unchanged."""
    plain, mean = a_training(entry()), a_training(entry(ema=0.9))
    with torch.inference_mode():
        for training in (plain, mean):
            feed(training, range(60))
            training.evaluate(exact=True)
    assert torch.equal(plain.sae.parameters, mean.sae.parameters)
    averaged = mean.averaged()
    assert not torch.equal(averaged.parameters, mean.sae.parameters)
    torch.testing.assert_close(torch.linalg.vector_norm(averaged.W_dec, dim=1), torch.ones(64))
    rows = torch.cat([rows_of(step) for step in range(900, 905)])
    scale = mean.progress.scale
    exported = mean.frozen()
    torch.testing.assert_close(
        exported.forward(rows) * scale, averaged.forward(rows * scale), rtol=1e-4, atol=1e-4
    )
    assert evaluate(averaged, rows, scale).fvu != evaluate(mean.sae, rows, scale).fvu


def test_the_learning_rate_follows_its_schedule():
    """It rises over `lrWarmUp`, stays, falls over the last `lrDecay` tokens, and ends at `lrEnd`."""
    factors = [
        learning_rate_factor(done, 100, 1000, 200, 0.1) for done in (0, 100, 500, 800, 900, 1000, 1100)
    ]
    assert factors == pytest.approx([1 / 101, 1, 1, 1, 0.55, 0.1, 0.1])
    assert learning_rate_factor(999, 0, 1000, 0) == 1
    assert learning_rate_factor(500, 0, 1000, 5000) == pytest.approx(0.5)
    training = a_training(entry(lr=0.01, schedule={"lrWarmUp": 0, "lrDecay": 0}))
    with torch.inference_mode():
        feed(training, range(40))
    assert training.learning_rate() == 0.01


@pytest.mark.parametrize("name", VARIANTS)
def test_sparsity_is_introduced(name):
    """During `sparsityWarmUp` more latents fire than after it, whatever makes a variant sparse."""
    training = a_training(entry(name, schedule={"sparsityWarmUp": 10_000_000}))
    usual = a_training(entry(name))
    with torch.inference_mode():
        for one in (training, usual):
            for _ in range(2):
                feed(one, range(STEPS))
    assert training.progress.l0 > 1.2 * usual.progress.l0
    assert [firing_number(4, 64, 16, share) for share in (0, 0.5, 1)] == [16, 10, 4]


def test_free_settings_of_an_older_checkpoint_are_the_defaults(tmp_path):
    """A checkpoint without the newer settings goes on under their defaults, and is refused under others."""
    from asysi.sae.trainer import _differences

    old = {
        key: value for key, value in entry().model_dump(mode="json").items() if key not in {"ema", "gated"}
    }
    assert _differences(old, entry()) == []
    assert _differences(old, entry(ema=0.5)) == ["ema"]


def test_the_table_names_variants_that_the_schema_knows():
    """Each name may stand in a spec, each class is there, and no two load the same architecture."""
    for name in VARIANTS:
        assert SaeTrain.model_validate({"variant": name}).variant == name
        assert variant(name).from_spec(SaeTrain.model_validate({"variant": name}), 8, 8).d_in == 8
    architectures = [variant(name).architecture for name in VARIANTS if variant(name).architecture]
    assert sorted(loadable()) == sorted(architectures)


def test_an_unknown_variant_is_named():
    """A variant that is not in the table is an error that says which ones are."""
    with pytest.raises(ConfigError, match="pca is not available: use topk"):
        variant("pca")
