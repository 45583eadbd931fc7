"""`asysi.ScannerEngine`: what it collects is what plain hooks see, and it leaves the model as it was."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import asysi
from asysi.contract.errors import ConfigError


class Net(nn.Module):
    """Two blocks that share a layer, one of which is called twice, with an in-place activation."""

    def __init__(self, *, reentrant=None):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.act = nn.ReLU(inplace=True)
        self.shared = nn.Linear(8, 8)
        self.again = self.shared
        self.last = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2))
        self.frozen = nn.Linear(2, 2).requires_grad_(requires_grad=False)
        self.reentrant = reentrant

    def block(self, x):
        return self.again(torch.tanh(self.shared(x)))

    def forward(self, x):
        x = self.act(self.first(x))
        x = (
            self.block(x)
            if self.reentrant is None
            else checkpoint(self.block, x, use_reentrant=self.reentrant)
        )
        return self.frozen(self.last(x))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def batch(rows=5):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))


def bare(net, step):
    """Return what plain hooks see in `step`, with copies, and the parameters' gradients after it."""
    seen, calls, handles = {}, {}, []
    for name, module in net.named_modules():
        if name:

            def keep(_module, _args, output, name=name):
                calls[name] = calls.get(name, -1) + 1
                seen[f"{name}#{calls[name]}" if calls[name] else name] = output.detach().clone()

            handles.append(module.register_forward_hook(keep))
    net.zero_grad(set_to_none=True)
    step()
    for handle in handles:
        handle.remove()
    return seen, {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def same(left, right):
    """Whether two dictionaries hold the same names and bit-identical tensors."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def hooks_of(net):
    """Return the number of hooks on the model's modules and parameters."""
    return sum(len(module._forward_hooks) for module in net.modules()) + sum(
        len(parameter._backward_hooks or ()) for parameter in net.parameters()
    )


def test_what_is_collected_is_what_bare_hooks_see(net):
    """Activations and gradients differ from those of plain hooks by exactly 0; further calls are `name#n`."""

    def step():
        net(batch()).square().sum().backward()

    activations, gradients = bare(net, step)
    net.zero_grad(set_to_none=True)
    with asysi.ScannerEngine(net) as scanner:
        step()
    assert same(scanner.activations, activations)
    assert same(scanner.gradients, gradients)
    assert list(activations) == ["first", "act", "shared", "shared#1", "last.0", "last.1", "last", "frozen"]
    assert not any(name.startswith("frozen") for name in gradients)
    assert scanner.hook_points == [name for name, _ in net.named_modules() if name]


def test_the_data_is_there_inside_the_context_and_after_it_and_entering_again_clears(net):
    """`get_collected_data()` gives activations and gradients; a second pass does not change the first's."""
    with asysi.ScannerEngine(net) as scanner:
        net(batch()).sum().backward()
        inside = scanner.get_collected_data()
    after = scanner.get_collected_data()
    assert same(inside[0], after[0])
    assert same(inside[1], after[1])
    with scanner:
        assert scanner.get_collected_data() == ({}, {})
        net(batch(3))
    assert scanner.activations["first"].shape == (3, 8)
    assert scanner.gradients == {}
    assert inside[0]["first"].shape == (5, 8)


def test_copies_are_detached_and_stand_alone(net):
    """A copy requires no gradient, shares no memory with the model, and is what the module returned."""
    with asysi.ScannerEngine(net, device="same") as scanner:
        out = net(batch())
        out.sum().backward()
        with torch.no_grad():
            out.zero_()
    everything = [*scanner.activations.values(), *scanner.gradients.values()]
    assert not any(tensor.requires_grad for tensor in everything)
    assert scanner.activations["frozen"].any()
    pointers = {tensor.data_ptr() for tensor in everything}
    assert not pointers & {p.data_ptr() for p in net.parameters()}
    assert not pointers & {p.grad.data_ptr() for p in net.parameters() if p.grad is not None}
    assert (scanner.activations["first"] < 0).any(), "the in-place ReLU behind it left its copy alone"


@pytest.mark.parametrize("fault", ["forward", "backward", "after"])
def test_hooks_are_gone_after_an_exception(net, fault):
    """Whatever raises inside the context, no hook is left on the model, and what was collected is kept."""
    scanner = asysi.ScannerEngine(net)

    def act():
        assert hooks_of(net) == 7 + 8
        out = net(batch() if fault != "forward" else torch.ones(1, 3))
        if fault == "backward":
            out.backward()  # not a scalar
        raise KeyError("mine")

    with pytest.raises((RuntimeError, KeyError)), scanner:
        act()
    assert hooks_of(net) == 0
    assert bool(scanner.activations) == (fault != "forward")
    with pytest.raises(RuntimeError, match="already attached"), scanner, scanner:
        pass
    assert hooks_of(net) == 0


def test_hooks_can_be_attached_and_removed_by_hand(net):
    """`attach_hooks()` and `remove_hooks()` do what the context does, any number of times."""
    scanner = asysi.ScannerEngine(net)
    for _ in range(2):
        scanner.attach_hooks()
    net(batch())
    scanner.remove_hooks()
    scanner.remove_hooks()
    net(batch())
    assert hooks_of(net) == 0
    assert "first#1" not in scanner.activations
    scanner.attach_hooks()
    net(batch())
    scanner.remove_hooks()
    assert "first#1" in scanner.activations, "only entering the context clears"


def test_globs_narrow_what_is_hooked(net):
    """`hook_points=` and `parameters=` select by glob; a name that matches nothing is named."""
    with asysi.ScannerEngine(net, hook_points=["last.*"], parameters=["*.weight"]) as scanner:
        net(batch()).sum().backward()
    assert list(scanner.activations) == ["last.0", "last.1"]
    assert sorted(scanner.gradients) == ["first.weight", "shared.weight"]
    with asysi.ScannerEngine(net, hook_points=[], parameters=["again.bias"]) as scanner:
        net(batch()).sum().backward()
    assert (list(scanner.activations), list(scanner.gradients)) == ([], ["again.bias"])
    with pytest.raises(ConfigError, match=r"parameters\[0\]: 'first.wieght' .* first.weight"):
        asysi.ScannerEngine(net, parameters=["first.wieght"])
    with pytest.raises(ConfigError, match=r"hook_points\[0\]: 'firts'"):
        asysi.ScannerEngine(net, hook_points=["firts"])
    with pytest.raises(ValueError, match=r"frozen.bias do not require a gradient"):
        asysi.ScannerEngine(net, parameters=["frozen.*"])


def test_memory_is_bounded(net):
    """Beyond `max_bytes` a pass fails with a message, or tensors are left out and counted, never in part."""
    room = 5 * 8 * 4
    with (
        pytest.raises(MemoryError, match=r"act: 160 bytes do not fit, 160 of max_bytes = 160"),
        asysi.ScannerEngine(net, max_bytes=room) as scanner,
    ):
        net(batch())
    assert hooks_of(net) == 0
    with asysi.ScannerEngine(net, max_bytes=room, when_full="drop") as scanner:
        for _ in range(2):
            net(batch()).sum().backward()
    assert list(scanner.activations) == ["first"]
    assert scanner.gradients == {}
    assert scanner.collected_bytes == room
    assert scanner.dropped["act"] == scanner.dropped["first#1"] == 1
    assert scanner.dropped["first.weight"] == 1
    with pytest.raises(ValueError, match="max_bytes is -1"):
        asysi.ScannerEngine(net, max_bytes=-1)


def test_a_gradient_is_the_sum_over_the_backward_passes_of_the_context(net):
    """Accumulating four microbatches gives the bits that `parameter.grad` accumulates."""
    net.zero_grad(set_to_none=True)
    with asysi.ScannerEngine(net) as scanner:
        for part in batch(8).chunk(4):
            (net(part).square().sum() / 4).backward()
    assert same(scanner.gradients, {n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    assert scanner.activations["first#3"].shape == (2, 8)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_calls_are_counted_and_not_collected(net, reentrant):
    """Under activation checkpointing the collected tensors are those of a run without it."""
    with asysi.ScannerEngine(net) as plain:
        net(batch()).square().sum().backward()
    net.reentrant = reentrant
    with asysi.ScannerEngine(net) as scanner:
        net(batch()).square().sum().backward()
    assert same(scanner.activations, plain.activations)
    assert same(scanner.gradients, plain.gradients)
    assert scanner.recomputed["shared"] in {1, 2}, "the second call need not be repeated to its end"


def test_inference_mode(net):
    """Activations under inference mode are ordinary tensors; gradients asked for there are refused."""
    with torch.inference_mode(), asysi.ScannerEngine(net) as scanner:
        net(batch())
    assert not any(tensor.is_inference() for tensor in scanner.activations.values())
    with (
        pytest.raises(RuntimeError, match="inference_mode"),
        torch.inference_mode(),
        asysi.ScannerEngine(net, parameters=["first.*"]),
    ):
        pass


def test_a_module_without_a_tensor_is_counted():
    """A call that returns no tensor is no activation; of several tensors the first is one."""

    class Odd(nn.Module):
        def forward(self, x):
            return {"a": 1}

    class Pair(nn.Module):
        def forward(self, x):
            return x + 1, x + 2

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd, self.pair = Odd(), Pair()

        def forward(self, x):
            self.odd(x)
            return self.pair(x)

    both = Both()
    with asysi.ScannerEngine(both) as scanner:
        both(torch.zeros(2))
    assert list(scanner.activations) == ["pair"]
    assert scanner.activations["pair"].tolist() == [1, 1]
    assert scanner.without_tensor == {"odd": 1}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own
def test_a_compiled_model_is_seen():
    """Hooks are called on a model that was compiled, and has run, before they were attached."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    compiled = torch.compile(net, backend="eager")
    compiled(batch())
    with asysi.ScannerEngine(net) as plain:
        net(batch()).sum().backward()
    with asysi.ScannerEngine(compiled) as scanner:
        compiled(batch()).sum().backward()
    assert same(
        {name.removeprefix("_orig_mod."): one for name, one in scanner.activations.items() if "." in name},
        plain.activations,
    )
    assert same(
        {name.removeprefix("_orig_mod."): one for name, one in scanner.gradients.items()}, plain.gradients
    )


def test_importing_asysi_stays_light():
    """The name is exported, and torch is loaded when it is first used."""
    code = "import sys, asysi; assert not {'torch', 'numpy'} & set(sys.modules); asysi.__version__"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert asysi.ScannerEngine.__module__ == "asysi.capture.scanner"
    with pytest.raises(AttributeError, match="has no attribute 'Scanner'"):
        getattr(asysi, "Scan" + "ner")
