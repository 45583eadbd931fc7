"""The seam carries what reads one hook point and rebuilds another: targets, two scales, a skip path."""

import pytest
import torch

from asysi.contract import variants
from asysi.contract.spec import SaeTrain
from asysi.sae.export import export, load
from asysi.sae.sparse import SparseLatents
from asysi.sae.variants.base import Objective, SparseAutoencoder, StepContext, spread, squares

D_IN, D_OUT, LATENTS = 12, 7, 30


class SkipTranscoder(SparseAutoencoder):
    """y ≈ ReLU(x W_enc + b_enc) W_dec + b_dec + x W_skip"""

    architecture = "own_skip_transcoder"

    def __init__(self, d_in, d_out, latents):
        sizes = {
            "W_enc": (d_in, latents), "b_enc": (latents,), "W_dec": (latents, d_out), "b_dec": (d_out,),
            "W_skip": (d_in, d_out),
        }  # fmt: skip
        super().__init__(d_in, d_out, latents, sizes)

    @classmethod
    def from_spec(cls, config, d_in, d_out):
        return cls(d_in, d_out, config.latents)

    @classmethod
    def describe(cls, config):
        return "skip"

    def initialise_from(self, rows, targets, rng):
        self.W_enc.normal_(generator=torch.Generator().manual_seed(int(rng.integers(100))))
        self.W_dec.copy_(self.W_enc.T[:, : self.d_out] / 10)
        self.b_dec.copy_(targets.mean(0))

    def loss(self, x, y, context):
        found = self.activate(x)
        error = self.reconstruct(found, x) - y
        loss = (error.square().sum() + 0.01 * found.value.sum()) / spread(y)
        return Objective(loss, error, found.dense() > 0)

    def activate(self, x):
        return SparseLatents.from_dense(torch.addmm(self.b_enc, x, self.W_enc).relu())

    def reconstruct(self, latents, x):
        return latents.decode(self.W_dec) + self.b_dec + x @ self.W_skip

    def frozen(self, scale, target_scale):
        folded = self.to(self.parameters.dtype)
        folded.W_enc.mul_(scale)
        folded.W_dec.div_(target_scale)
        folded.b_dec.div_(target_scale)
        folded.W_skip.mul_(scale / target_scale)
        return folded

    def exported(self):
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")
        own = {"architecture": self.architecture, "d_out": self.d_out, "apply_b_dec_to_input": False}
        return own, {name: getattr(self, name) for name in names}

    @classmethod
    def from_export(cls, config, tensors):
        sae = cls(config["d_in"], config["d_out"], config["d_sae"])
        for name, tensor in tensors.items():
            getattr(sae, name).copy_(tensor)
        return sae


def made(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, D_IN, generator=generator, dtype=dtype)
    y = x @ torch.randn(D_IN, D_OUT, generator=generator, dtype=dtype) + 0.2
    sae = SkipTranscoder.from_spec(SaeTrain(latents=LATENTS, k=1), D_IN, D_OUT).to(dtype)
    sae.parameters.copy_(torch.randn(sae.parameters.shape, generator=generator, dtype=dtype) / 3)
    return sae, x, y


def test_its_gradient_is_the_slope_of_its_loss():
    """Along random directions the loss changes as the gradient says, through sparse latents too."""
    sae, x, y = made()
    gradient = sae.twin()
    outcome = sae.differentiate(x, y, gradient, StepContext())
    error = sae.forward(x) - y
    assert outcome.fvu == pytest.approx(squares(error) / spread(y))
    assert all(one.abs().max() > 0 for one in gradient.named(gradient.parameters).values())
    for seed in range(5):
        direction = torch.randn(
            sae.parameters.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype
        )
        values = []
        for step in (1e-6, -1e-6):
            moved = sae.twin()
            moved.parameters.copy_(sae.parameters + step * direction)
            values.append(moved.differentiate(x, y, sae.twin(), StepContext()).loss)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(
            float(gradient.parameters @ direction), rel=1e-5
        )


def test_two_scales_fold():
    """Input and target have each its own normalisation; frozen, plain rows give plain targets."""
    sae, x, _ = made()
    torch.testing.assert_close(sae.frozen(0.4, 3.0).forward(x) * 3.0, sae.forward(x * 0.4))


def test_it_is_exported_with_both_widths(tmp_path, monkeypatch):
    """What is loaded has both widths, rebuilds the same bits, and its own entries win over common ones."""
    monkeypatch.setitem(variants.VARIANTS, "transcoder", f"{__name__}:SkipTranscoder")
    sae, x, _ = made(torch.float32)
    export(tmp_path, sae, {})
    again = load(tmp_path)
    assert (again.d_in, again.d_out, again.latents) == (D_IN, D_OUT, LATENTS)
    assert torch.equal(again.forward(x), sae.forward(x))
    assert '"apply_b_dec_to_input": false' in (tmp_path / "cfg.json").read_text()
