"""Whatever happens to capture, forward and backward compute what they compute unwatched, bit for bit."""

import shutil
import uuid
from pathlib import Path

import pytest
import torch
import transformers

from asysi.bus.packet import Kind
from asysi.bus.ring import RingProducer
from asysi.capture import hooks
from asysi.capture.gradients import BackwardPass
from asysi.capture.hooks import ActivationHooker
from asysi.model.points import HookPoint
from asysi_ring import Reader, Writer, create

CONFIG = transformers.GPT2Config(
    n_layer=2, n_embd=16, n_head=4, vocab_size=40, n_positions=16, bos_token_id=0
)
STEPS = 3
FEW, MANY = 3, 256
"""Chunks of a ring in which no step fits, and of one in which all do."""
BOTH = (Kind.ACTIVATION, Kind.GRADIENT)


@pytest.fixture
def ring(request):
    """A capture ring that nothing reads; by default of three chunks, fewer than a step needs."""
    chunks = getattr(request, "param", FEW)
    folder = Path("/dev/shm") / f"asysi-test-{uuid.uuid4().hex}"
    create(str(folder), shards=1, chunks=chunks, chunk_bytes=1 << 14, readers=["hook"], policy="drop_new")
    yield str(folder)
    shutil.rmtree(folder)


def trained(around=lambda step: None, watch=None):
    """Logits of each step, and the parameters after three steps of SGD; `watch` puts hooks on the model."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(CONFIG).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    hooker = None if watch is None else watch(model)
    found = []
    for step in range(STEPS):
        ids = torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(step))
        around(step)
        output = model(input_ids=ids, labels=ids)
        output.loss.backward()
        found += [output.logits.detach().clone(), *(p.grad.clone() for p in model.parameters())]
        optimizer.step()
        optimizer.zero_grad()
    if hooker is not None:
        hooker.close()
    return [*found, *(p.detach().clone() for p in model.parameters())], hooker


def points(model):
    return [
        HookPoint(name) for name, module in model.named_modules() if "." in name and list(module.children())
    ]


def same(found):
    alone, _ = trained()
    assert len(alone) == len(found)
    return all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


def hooked(model, writer):
    hooker = ActivationHooker(model, points(model), RingProducer(writer), kinds=BOTH)
    hooker.backward(BackwardPass(loss_scale=2.0))
    hooker.attach()
    return hooker


class BrokenError(Exception):
    """Raised where capture is broken on purpose."""


def fails(*_args, **_options):
    raise BrokenError


FUNCTIONS = ["_open", "_capture", "_publish", "_refuse_unknown", "_report", "_expect_backward"]


@pytest.mark.parametrize(
    ("ring", "function"), [(FEW, "_drop"), *((MANY, name) for name in FUNCTIONS)], indirect=["ring"]
)
def test_an_exception_in_any_hook_changes_nothing(ring, monkeypatch, function):
    """Each part of a hook raises in turn: the exception is counted, the model is as it is unwatched."""
    monkeypatch.setattr(ActivationHooker, function, fails)
    with Writer(ring) as writer:
        found, hooker = trained(watch=lambda model: hooked(model, writer))
    assert hooker.errors > 0
    assert same(found)


@pytest.mark.parametrize("ring", [MANY], indirect=True)
@pytest.mark.parametrize("function", ["unscaled", "first_tensor", "derive_tokens"])
def test_an_exception_in_what_hooks_call_changes_nothing(ring, monkeypatch, function):
    """The same for functions that hooks use."""
    monkeypatch.setattr(hooks, function, fails)
    with Writer(ring) as writer:
        found, hooker = trained(watch=lambda model: hooked(model, writer))
    assert hooker.errors > 0
    assert same(found)


def test_a_full_ring_changes_nothing(ring):
    """No step fits and nothing reads: all rows are dropped, and counted."""
    with Writer(ring) as writer:
        found, hooker = trained(watch=lambda model: hooked(model, writer))
    assert hooker.steps_dropped == STEPS
    assert same(found)


@pytest.mark.parametrize("ring", [MANY], indirect=True)
def test_a_dead_hook_worker_changes_nothing(ring):
    """The reader goes away in the middle of the run."""
    with Writer(ring) as writer:
        reader = Reader(ring, "hook")
        found, _ = trained(
            lambda step: reader.close() if step == 1 else None, lambda model: hooked(model, writer)
        )
    assert same(found)


@pytest.mark.parametrize("ring", [MANY], indirect=True)
def test_a_closed_bus_changes_nothing(ring):
    """The stream is closed between two steps: later rows cannot even be counted there, errors are."""
    with Writer(ring) as writer:
        found, hooker = trained(
            lambda step: writer.close("complete") if step == 1 else None, lambda model: hooked(model, writer)
        )
    assert hooker.errors > 0
    assert same(found)


@pytest.mark.parametrize("ring", [MANY], indirect=True)
def test_a_watched_run_is_an_unwatched_one(ring):
    """With room for everything, too; rows are published."""
    with Writer(ring) as writer:
        found, hooker = trained(watch=lambda model: hooked(model, writer))
        assert writer.head() > 0
    assert (hooker.errors, hooker.steps_dropped) == (0, 0)
    assert same(found)
