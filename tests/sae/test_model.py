"""The autoencoder itself: what it computes, its gradient, its figures, and its way to disk and back."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from asysi.contract.errors import ConfigError
from asysi.contract.spec import AuxK
from asysi.sae.evaluation import evaluate
from asysi.sae.export import export, folder_of, load
from asysi.sae.normalisation import expected_norm_scale, geometric_median
from asysi.sae.optimiser import Adam, learning_rate_factor
from asysi.sae.selection import top_k
from asysi.sae.variants.base import StepContext
from asysi.sae.variants.topk import TopK


def random_sae(d_in=12, latents=40, k=5, dtype=torch.float64, *, seed=0, auxk=None):
    generator = torch.Generator().manual_seed(seed)
    sae = TopK(d_in, latents, k, dtype, auxk=auxk)
    sae.parameters.copy_(torch.randn(sae.parameters.shape, generator=generator, dtype=dtype) / 3)
    sae.constrain()
    return sae


def random_rows(rows=30, d_in=12, dtype=torch.float64, seed=1):
    return torch.randn(rows, d_in, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.5


def reference(x, leaves, k, dead, *, k_aux, coefficient):
    """The loss as the papers write it, for autograd."""
    encoder, b_enc, decoder, b_dec = leaves
    pre = (x - b_dec) @ encoder.T + b_enc
    top = pre.topk(k, dim=1)
    rebuilt = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu()) @ decoder + b_dec
    variance = (x - x.mean(0)).square().sum()
    loss = (x - rebuilt).square().sum() / variance
    if len(dead) and k_aux:
        best = pre[:, dead].topk(min(k_aux, len(dead)), dim=1)
        acts = torch.zeros(len(x), len(dead), dtype=x.dtype).scatter(1, best.indices, best.values.relu())
        residual = (x - rebuilt).detach()
        loss = loss + coefficient * (acts @ decoder[dead] - residual).square().sum() / variance
    return loss


@pytest.mark.parametrize("k", [5, 40], ids=["all of k fire", "some of k fire"])
@pytest.mark.parametrize("dead", [[], [3, 7, 8, 20, 31], list(range(40))], ids=["none", "some", "all"])
def test_gradient_is_the_derivative(dead, k):
    """Loss and hand-written gradient agree with autograd in double precision, with and without AuxK."""
    sae = random_sae(k=k, auxk=AuxK(k=3, coefficient=0.25))
    x, dead = random_rows(), torch.tensor(dead, dtype=torch.int64)
    leaves = [p.clone().requires_grad_() for p in (sae.encoder, sae.b_enc, sae.W_dec, sae.b_dec)]
    expected = reference(x, leaves, k, dead, k_aux=3, coefficient=0.25)
    expected.backward()
    gradient = sae.twin()
    outcome = sae.differentiate(x, x, gradient, StepContext(dead))
    assert outcome.loss == pytest.approx(expected.item(), rel=1e-12)
    own = (gradient.encoder, gradient.b_enc, gradient.W_dec, gradient.b_dec)
    for mine, leaf in zip(own, leaves, strict=True):
        torch.testing.assert_close(mine, leaf.grad, rtol=1e-10, atol=1e-12)


def test_project_leaves_the_norms_alone():
    """After projection no gradient points along a decoder row."""
    sae, gradient = random_sae(), random_sae(seed=3)
    sae.project(gradient)
    assert (gradient.W_dec * sae.W_dec).sum(1).abs().max() < 1e-12


def test_outcome_counts_what_fired():
    """L0 and the fired latents are those of the dense encoding."""
    sae, x = random_sae(), random_rows()
    outcome = sae.differentiate(x, x, sae.twin(), StepContext())
    dense = sae.encode(x)
    assert outcome.l0 == (dense > 0).sum().item() / len(x)
    assert torch.equal(outcome.fired, (dense > 0).any(0))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(1, 300),
    st.integers(1, 24),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_top_k_is_exact(rows, columns, k, ties, seed):
    """The values are those of a full sort, with ties too, and the columns are different and hold them."""
    k = min(k, columns)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(-3, 3, (rows, columns)) if ties else rng.normal(size=(rows, columns))
    values = torch.from_numpy(drawn.astype(np.float32))
    top, where = top_k(values, k)
    assert torch.equal(top.sort(1).values, values.sort(1).values[:, columns - k :])
    assert torch.equal(values.gather(1, where), top)
    assert all(len(set(row)) == k for row in where.tolist())


def test_top_k_refuses_nan():
    """A row whose largest elements are unknown is an error, never a quiet choice."""
    values = torch.randn(4, 300)
    values[2] = math.nan
    with pytest.raises(FloatingPointError):
        top_k(values, 4)


def test_nan_is_not_left_out():
    """Latents that are NaN stay among those that fire: a reconstruction without them would look right."""
    sae = random_sae(latents=16)
    sae.encoder[3] = math.nan
    assert sae.activate(random_rows()).value.isnan().any()
    assert sae.forward(random_rows()).isnan().any(1).all()


@pytest.mark.parametrize("k", [1, 5, 40])
def test_forward_is_decode_of_encode(k):
    """The sparse way and the dense way give the same reconstruction, and at most k latents fire."""
    sae, x = random_sae(k=k), random_rows()
    dense = sae.encode(x)
    assert dense.min() >= 0
    assert (dense > 0).sum(1).max() <= k
    torch.testing.assert_close(sae.forward(x), sae.decode(dense))


def test_fvu_is_the_textbook_one():
    """FVU equals numpy's sums of squares in float64, whatever the scale."""
    sae, rows = random_sae(dtype=torch.float32), random_rows(3000, dtype=torch.float32)
    scale = 0.7
    x = rows.double().numpy() * scale
    rebuilt = sae.to(torch.float64).forward(torch.from_numpy(x)).numpy()
    expected = ((x - rebuilt) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert evaluate(sae, rows, scale).fvu == pytest.approx(expected, rel=1e-10)
    assert evaluate(sae, rows, scale, exact=False).fvu == pytest.approx(expected, rel=1e-4)
    assert math.isnan(evaluate(sae, rows[:1].expand(5, -1)).fvu)


def test_normalisation_folds_into_the_weights():
    """Folded, it does to plain rows what it did to scaled ones, and its decoder keeps norm 1."""
    sae, rows = random_sae(), random_rows()
    scale = expected_norm_scale(rows)
    assert torch.linalg.vector_norm(rows * scale, dim=1).mean() == pytest.approx(math.sqrt(12))
    folded = sae.frozen(scale, scale)
    torch.testing.assert_close(folded.forward(rows) * scale, sae.forward(rows * scale))
    torch.testing.assert_close(folded.encode(rows) * scale, sae.encode(rows * scale))
    torch.testing.assert_close(torch.linalg.vector_norm(folded.W_dec, dim=1), torch.ones(40).double())


def test_geometric_median_resists_outliers():
    """A few rows a thousand times as long move the mean, and hardly this."""
    rows = random_rows(400)
    rows[:4] *= 1000
    assert torch.linalg.vector_norm(geometric_median(rows, 50) - 0.5) < 0.5
    assert torch.linalg.vector_norm(rows.mean(0) - 0.5) > 5


def test_adam_is_torchs():
    """The flat optimiser moves as torch.optim.Adam does."""
    start, gradients = torch.randn(50), [torch.randn(50) for _ in range(5)]
    own, adam = start.clone(), Adam(50)
    other = torch.nn.Parameter(start.clone())
    theirs = torch.optim.Adam([other], lr=0.01, eps=6.25e-10)
    for gradient in gradients:
        adam.step(own, gradient, 0.01)
        other.grad = gradient.clone()
        theirs.step()
    torch.testing.assert_close(own, other.detach())


def test_learning_rate_rises_and_falls():
    """It starts near 0, reaches its peak, ends at 0, and without a total it stays at its peak."""
    assert learning_rate_factor(0, 99, 1000) == pytest.approx(0.01)
    assert learning_rate_factor(100, 99, 1000) == pytest.approx(0.9)
    assert learning_rate_factor(1000, 99, 1000) == learning_rate_factor(1200, 99, 1000) == 0
    assert learning_rate_factor(10_000, 99, None) == 1


def test_export_and_load(tmp_path):
    """What is loaded encodes bit by bit as what was exported, from the tensors that SAELens knows."""
    sae, rows = random_sae(dtype=torch.float32), random_rows(dtype=torch.float32)
    export(tmp_path / "point", sae, {"hook_name": "point"})
    again = load(tmp_path / "point")
    assert torch.equal(again.encode(rows), sae.encode(rows))
    shapes = {n: tuple(t.shape) for n, t in load_file(tmp_path / "point" / "sae_weights.safetensors").items()}
    assert shapes == {"W_enc": (12, 40), "b_enc": (40,), "W_dec": (40, 12), "b_dec": (12,)}
    config = json.loads((tmp_path / "point" / "cfg.json").read_text())
    assert (config["architecture"], config["k"], config["metadata"]["hook_name"]) == ("topk", 5, "point")


@pytest.mark.parametrize("content", [None, "{", '{"architecture": "gated"}', '{"architecture": "topk"}'])
def test_load_names_what_is_wrong(tmp_path, content):
    """A folder without an SAE that can be loaded is an error that names the folder."""
    if content is not None:
        (tmp_path / "cfg.json").write_text(content)
    with pytest.raises(ConfigError, match=tmp_path.name):
        load(tmp_path)


@pytest.mark.parametrize("point", ["encoder.layer.0.output", "../../etc", "a/b", "..", "päth"])
def test_no_hook_point_leaves_the_folder(tmp_path, point):
    """The folder of a hook point lies right below its parent, whatever the module's name."""
    folder = folder_of(tmp_path, point)
    assert folder.resolve().parent == tmp_path.resolve()
    assert folder_of(tmp_path, "encoder.layer.0.output").name == "encoder.layer.0.output"
