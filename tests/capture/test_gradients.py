"""Captured gradients are those that autograd computes, for the tokens of the captured activations."""

from functools import partial

import numpy as np
import pytest
import torch
import transformers
from torch.utils.checkpoint import checkpoint

from asysi.bus.packet import HEADER_DTYPE, Kind, Reduction
from asysi.capture.collector import Collector
from asysi.capture.gradients import BackwardPass
from asysi.capture.hooks import ActivationHooker
from asysi.contract.spec import Sampling
from asysi.model.points import HookPoint

BATCH, LENGTH = 2, 6
IDS = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) + 1
BOTH = (Kind.ACTIVATION, Kind.GRADIENT)
SIZES = {
    "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4,
    "vocab_size": 40, "max_position_embeddings": 16,
}  # fmt: skip
GPT2 = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=4, vocab_size=40, n_positions=16, bos_token_id=0)


def built(config):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def layers(model):
    return [name for name, module in model.named_modules() if name.endswith((".0", ".1", "mlp"))]


def by_autograd(model, paths, run):
    """What autograd says: output and gradient of each module, in float32."""
    kept = {}
    modules = dict(model.named_modules())

    def keep(path):
        def hook(_module, _args, output):
            tensor = output[0] if isinstance(output, tuple) else output
            tensor.retain_grad()
            kept[path] = tensor

        return modules[path].register_forward_hook(hook)

    handles = [keep(path) for path in paths]
    run(model)
    for handle in handles:
        handle.remove()
    return {path: (tensor.detach(), tensor.grad) for path, tensor in kept.items()}


def captured(model, paths, run, backward=None, **options):
    """What capture takes, by account: records, calls and values of each packet."""
    collector = Collector()
    with ActivationHooker(
        model, [HookPoint(path) for path in paths], collector, kinds=BOTH, **options
    ) as hooker:
        if backward is not None:
            hooker.backward(backward)
        run(model)
    assert hooker.errors == 0
    return collector.points


def language_loss(model):
    model(input_ids=IDS, labels=IDS).loss.backward()


@pytest.mark.parametrize("config", [GPT2, transformers.LlamaConfig(**SIZES)], ids=["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_autograds(config, dtype):
    """At every layer the rows are autograd's gradient in float32, bit for bit, beside their activation."""
    model = built(config).to(dtype)
    paths = layers(model)
    expected = by_autograd(model, paths, language_loss)
    model.zero_grad()
    found = captured(model, paths, language_loss)
    assert len(paths) >= 4
    for path in paths:
        output, gradient = (tensor.float().reshape(BATCH * LENGTH, -1).numpy() for tensor in expected[path])
        np.testing.assert_array_equal(found[path].values[0], output)
        np.testing.assert_array_equal(found[f"{path}:gradient"].values[0], gradient)
        np.testing.assert_array_equal(found[path].records[0], found[f"{path}:gradient"].records[0])


@pytest.mark.parametrize("rate", [0.3, 0.7])
def test_a_pair_is_atomic(rate):
    """Whatever the sampling keeps, a token's gradient is there exactly where its activation is."""
    model = built(GPT2)
    paths = layers(model)
    found = captured(model, paths, language_loss, sampling=Sampling(rate=rate, min_rate=rate), seed=3)
    kept = found[paths[0]].records[0]
    assert 0 < len(kept) < BATCH * LENGTH
    for path in paths:
        for rows in (found[path], found[f"{path}:gradient"]):
            np.testing.assert_array_equal(rows.records[0], kept)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_loss_scale_is_divided_out(scale):
    """Whatever the scaler multiplies the loss by, the rows are those of the loss itself."""
    model = built(GPT2)
    paths = layers(model)

    def scaled(model):
        (model(input_ids=IDS, labels=IDS).loss * scale).backward()

    plain = captured(model, paths, language_loss)
    found = captured(model, paths, scaled, BackwardPass(loss_scale=scale))
    for path in paths:
        name = f"{path}:gradient"
        np.testing.assert_allclose(found[name].values[0], plain[name].values[0], rtol=1e-6, atol=1e-12)


def test_autocast_scaling_and_accumulation_agree():
    """Under autocast to bfloat16 with a scaled loss, over four microbatches, rows agree with float32's: each
    microbatch has those of its own loss.
    """
    model = built(GPT2)
    paths = layers(model)
    names = [f"{path}:gradient" for path in paths]
    ids = torch.randint(0, 40, (4, 2, LENGTH), generator=torch.Generator().manual_seed(0))

    def accumulated(model, scale=1.0, dtype=None):
        for part in ids:
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                loss = model(input_ids=part, labels=part).loss
            (loss / len(ids) * scale).backward()

    plain = captured(model, paths, accumulated)
    mixed = captured(
        model, paths, lambda model: accumulated(model, 256.0, torch.bfloat16), BackwardPass(256.0, 4)
    )
    for name in names:
        assert len(plain[name].values) == len(mixed[name].values) == 4
        for a, b in zip(plain[name].values, mixed[name].values, strict=True):
            assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant):
    """Recomputed layers have the gradients of layers that are not, under their own call's number."""
    model = built(GPT2)
    paths = ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"]
    plain = captured(model, paths, language_loss)
    for block in model.transformer.h:
        block.mlp.forward = partial(checkpoint, block.mlp.forward, use_reentrant=reentrant)
    found = captured(model, paths, language_loss)
    for path in paths:
        assert found[path].calls[0] == 0
        gradients = found[f"{path}:gradient"]
        assert gradients.calls == [0]
        np.testing.assert_array_equal(gradients.values[0], plain[f"{path}:gradient"].values[0])


class Shared(torch.nn.Module):
    """Calls one layer three times, under checkpointing where asked."""

    def __init__(self, recompute=False, reentrant=False):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.recompute, self.reentrant = recompute, reentrant

    def forward(self, x):
        for _ in range(3):
            x = checkpoint(self.layer, x, use_reentrant=self.reentrant) if self.recompute else self.layer(x)
        return x


def quadratic(model):
    x = torch.linspace(-1, 1, BATCH * LENGTH * 4).reshape(BATCH, LENGTH, 4).requires_grad_()
    model(x).square().sum().backward()


def test_gradients_of_a_shared_module_have_the_number_of_their_call():
    """A module called three times has three gradients; each has its call's number, in a backward's order."""
    torch.manual_seed(0)
    model = Shared()
    found = captured(model, ["layer"], quadratic)
    assert (found["layer"].calls, found["layer:gradient"].calls) == ([0, 1, 2], [2, 1, 0])
    last = found["layer"].values[2]
    np.testing.assert_allclose(found["layer:gradient"].values[0], 2 * last, rtol=1e-6)


def test_shared_modules_keep_their_calls_under_checkpointing():
    """Three checkpointed calls are recomputed in a backward's order, and have the gradients of plain ones."""
    torch.manual_seed(0)
    model = Shared()
    plain = captured(model, ["layer"], quadratic)["layer:gradient"]
    model.recompute = True
    found = captured(model, ["layer"], quadratic)["layer:gradient"]
    assert found.calls == plain.calls
    np.testing.assert_array_equal(found.values, plain.values)


def test_calls_that_cannot_be_told_apart_are_dropped_by_name(caplog):
    """Reentrant checkpointing makes the outputs of several calls again in another order: no gradient is taken
    for another's, each is counted, and the way out is said once.
    """
    model, collector = Shared(recompute=True, reentrant=True), Collector()
    with ActivationHooker(model, [HookPoint("layer")], collector, kinds=BOTH) as hooker:
        quadratic(model)
    assert hooker.errors == 3
    assert collector.points["layer:gradient"].values == []
    assert collector.points["layer:gradient"].dropped == {"error": 3 * BATCH * LENGTH}
    assert len([one for one in caplog.records if "use use_reentrant=False" in one.getMessage()]) == 1


def test_a_second_backward_pass_is_not_captured(caplog):
    """Rows of a token are captured once: those of another backward pass are dropped and reported."""
    model, collector = built(GPT2), Collector()
    with ActivationHooker(model, [HookPoint("transformer.h.0")], collector, kinds=BOTH) as hooker:
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward(retain_graph=True)
        (2 * loss).backward()
    assert hooker.errors == 1
    gradients = collector.points["transformer.h.0:gradient"]
    assert len(gradients.values) == 1
    assert gradients.dropped == {"error": IDS.numel()}
    expected = by_autograd(model, ["transformer.h.0"], language_loss)["transformer.h.0"][1]
    np.testing.assert_array_equal(gradients.values[0], expected.reshape(-1, 16).numpy())
    assert ["a second backward pass" in one.getMessage() for one in caplog.records] == [True]


def test_hooks_do_not_pile_up_on_an_output_that_outlives_its_step():
    """A module that returns the caller's own leaf has one gradient per step, however many steps reuse it."""
    model, collector = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(4, 1)), Collector()
    x = torch.ones(BATCH, LENGTH, 4, requires_grad=True)
    with ActivationHooker(model, [HookPoint("0")], collector, kinds=BOTH) as hooker:
        for _ in range(4):
            model(x).sum().backward()
    assert hooker.errors == 0
    assert len(collector.points["0:gradient"].values) == 4
    assert len(x._backward_hooks) == 1


def test_a_hook_point_of_one_call_has_the_gradients_of_that_call():
    """Gradients of a module's other calls are neither captured nor counted at `layer#1`."""
    model = Shared()
    every = captured(model, ["layer"], quadratic)["layer:gradient"]
    collector = Collector()
    with ActivationHooker(model, [HookPoint("layer#1")], collector, kinds=BOTH) as hooker:
        quadratic(model)
    one = collector.points["layer#1:gradient"]
    assert hooker.errors == 0
    assert not one.dropped
    np.testing.assert_array_equal(one.values, [every.values[every.calls.index(1)]])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_without_autograd_is_reported(mode, caplog):
    """Gradients asked for where none can exist: said once, by the mode's name; activations are captured."""
    model, collector = built(GPT2), Collector()
    with ActivationHooker(model, [HookPoint("transformer.h.0")], collector, kinds=BOTH), mode():
        for _ in range(3):
            model(input_ids=IDS)
    assert [
        len(collector.points[name].values) for name in ("transformer.h.0", "transformer.h.0:gradient")
    ] == [3, 0]
    assert [f"torch.{mode.__name__}" in one.getMessage() for one in caplog.records] == [True]


def test_headers_describe_the_backward_pass():
    """Scale, accumulation, microbatch and reduction are in the header of gradients, and zero in others."""
    model, seen = built(GPT2), []
    collector = Collector()
    channel = collector.channel

    class Spy:
        def __init__(self, name):
            self._channel, self.account, self.book = channel(name), channel(name).account, channel(name).book

        def put(self, header, *rest):
            seen.append(header[0].copy())
            return self._channel.put(header, *rest)

    collector.channel = Spy
    with ActivationHooker(model, [HookPoint("transformer.h.0")], collector, kinds=BOTH) as hooker:
        hooker.backward(BackwardPass(loss_scale=2.0, accumulated=4, microbatch=3, reduction=Reduction.MEAN))
        language_loss(model)
    names = ("kind", "loss_scale", "accumulated", "microbatch", "reduction")
    assert all(name in HEADER_DTYPE.names for name in names)
    assert [tuple(float(header[name]) for name in names) for header in seen] == [
        (Kind.ACTIVATION, 0, 0, 0, 0),
        (Kind.GRADIENT, 2, 4, 3, Reduction.MEAN),
    ]
