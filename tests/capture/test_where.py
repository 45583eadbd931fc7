"""Where models run otherwise than in a plain forward: compiled, wrapped for ranks, generating, in parts."""

import numpy as np
import pytest
import torch
import transformers
from torch.nn.parallel import DistributedDataParallel

from asysi.bus.packet import Kind
from asysi.capture.collector import Collector
from asysi.capture.hooks import ActivationHooker
from asysi.model.points import HookPoint

CONFIG = transformers.GPT2Config(
    n_layer=2, n_embd=16, n_head=4, vocab_size=40, n_positions=32, bos_token_id=0
)
IDS = torch.arange(12).reshape(2, 6) + 1
BOTH = (Kind.ACTIVATION, Kind.GRADIENT)
NO_END = {"pad_token_id": 0, "eos_token_id": None}
PATHS = ["transformer.h.0", "transformer.h.1.mlp"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(CONFIG).eval()


def loss_of(root):
    root(input_ids=IDS, labels=IDS).loss.backward()


def captured(model, root, run, prefix="", **options):
    collector = Collector()
    points = [HookPoint(prefix + path) for path in PATHS]
    options.setdefault("kinds", BOTH)
    with ActivationHooker(model, points, collector, root=root, **options) as hooker:
        run(root)
    assert hooker.errors == 0
    return {name.removeprefix(prefix): rows for name, rows in collector.points.items()}


class Layers(torch.nn.Module):
    """Two layers with something between them that a compiler can fuse."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x) * 2)).square()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_model_has_the_same_gradients():
    """torch.compile, traced ahead of time: activations and gradients are those of the plain model, also when
    it was compiled before capture began.
    """
    torch.manual_seed(0)
    layers, x = Layers(), torch.randn(2, 5, 4)
    compiled = torch.compile(layers, backend="aot_eager")
    compiled(x)
    found = []
    for root in (layers, compiled):
        collector = Collector()
        points = [HookPoint("first"), HookPoint("second")]
        with ActivationHooker(layers, points, collector, kinds=BOTH, root=root) as hooker:
            root(x).sum().backward()
        assert hooker.errors == 0
        found.append(collector.points)
    torch._dynamo.reset()
    plain, other = found
    assert len(plain) == 4
    for name, rows in plain.items():
        assert len(other[name].values) == len(rows.values) == 1
        np.testing.assert_allclose(other[name].values[0], rows.values[0], rtol=1e-5, atol=1e-6)


@pytest.fixture
def group(tmp_path):
    """A process group of one rank."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_model_wrapped_for_ranks_has_the_same_gradients(model):
    """DistributedDataParallel: gradients of activations and of parameters are those of the model alone."""
    names = {"transformer.h.0.ln_1.weight": model.transformer.h[0].ln_1.weight}
    plain = captured(model, model, loss_of, parameters=names)
    model.zero_grad()
    wrapped = DistributedDataParallel(model)
    found = captured(wrapped, wrapped, loss_of, prefix="module.", parameters=names)
    assert any(name.endswith(":parameter_gradient") for name in plain)
    for name, rows in plain.items():
        np.testing.assert_allclose(found[name].values, rows.values, rtol=1e-5, atol=1e-7)


def test_generation_with_a_cache_is_a_step_for_each_forward(model):
    """`generate`: the prompt is one step, each further token one of a single position; rows are the module's
    outputs, in order, and agree with a forward over the whole sequence.
    """
    prompt = torch.tensor([[1, 2, 3, 4]])
    made = []

    def generate(root):
        with torch.no_grad():
            made.append(
                root.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
            )

    found = captured(model, model, generate, kinds=(Kind.ACTIVATION,))
    whole = captured(model, model, lambda root: root(input_ids=made[0][:, :-1]), kinds=(Kind.ACTIVATION,))
    for path in PATHS:
        values = found[path].values
        assert [len(rows) for rows in values] == [4, 1, 1, 1]
        np.testing.assert_allclose(np.concatenate(values), whole[path].values[0], rtol=1e-4, atol=1e-5)
        tokens = np.concatenate([records["token"] for records in found[path].records])
        assert tokens.tolist() == made[0][0, :-1].tolist()


def test_a_module_that_runs_on_part_of_a_batch_has_no_tokens():
    """Its rows, activations and gradients alike, are counted under `no_token`: their tokens are unknown."""

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x):
            return torch.cat([self.layer(x[:1]), x[1:]])

    half, collector = Half(), Collector()
    with ActivationHooker(half, [HookPoint("layer")], collector, kinds=BOTH):
        half(torch.randn(2, 5, 4)).square().sum().backward()
    assert collector.points["layer"].dropped == {"no_token": 5}
    assert collector.points["layer:gradient"].dropped == {"no_token": 5}
    assert collector.points["layer:gradient"].values == []
