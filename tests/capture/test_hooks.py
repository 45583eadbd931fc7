import logging
import uuid
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from asysi.bus.mailbox import CaptureWord
from asysi.bus.packet import ROW_DTYPE, Dtype, Kind, PacketFlag, parse_packet
from asysi.bus.ring import RingProducer
from asysi.bus.states import DropReason
from asysi.capture.hooks import ActivationHooker
from asysi.capture.sampling import keep_mask
from asysi.contract.spec import Sampling
from asysi.model.points import HookPoint
from asysi.text.grid import StepTokens
from asysi_ring import Control, Reader, Writer, create

BATCH, LENGTH, WIDTH = 3, 5, 8
GRID = BATCH * LENGTH


class Layer(torch.nn.Module):
    """Turns its linear layer's output into what a test wants a module to return."""

    def __init__(self, wrap):
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, WIDTH)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.linear(x))


class Model(torch.nn.Module):
    """Embeds tokens and passes them through two layers."""

    def __init__(self, wrap=lambda x: x, between=lambda: None):
        super().__init__()
        self.embed = torch.nn.Embedding(50, WIDTH)
        self.first, self.second = Layer(wrap), Layer(lambda x: x)
        self.between = between

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        self.first(x)
        self.between()
        return self.second(x)


POINTS = [HookPoint("first", None, (BATCH, LENGTH, WIDTH)), HookPoint("second", None, (BATCH, LENGTH, WIDTH))]


@pytest.fixture
def ring():
    """A capture ring of 16 KiB chunks, 8 of which can be unread."""
    folder = Path("/dev/shm") / f"asysi-test-{uuid.uuid4().hex}"
    create(str(folder), shards=1, chunks=8, chunk_bytes=1 << 14, readers=["hook"], policy="drop_new")
    yield str(folder)
    rmtree(folder)


def tokens(step=0, holdout=False):
    rows = np.zeros(GRID, ROW_DTYPE)
    rows["sample"] = 100 + np.arange(GRID)
    rows["position"] = np.tile(np.arange(LENGTH), BATCH)
    rows["sequence"] = np.repeat(np.arange(BATCH), LENGTH)
    rows["flags"] = holdout
    content = np.ones(GRID, bool)
    content[::LENGTH] = False  # the first token of each sequence is special
    return StepTokens(step, BATCH, LENGTH, rows, content)


IDS = torch.arange(GRID).reshape(BATCH, LENGTH)
CONTENT = np.flatnonzero(tokens().content)


def packets(folder, drain=False):
    """Copies of all packets in the ring, in order: (point, header, rows, float32 payload)."""
    found = []
    with Reader(folder, "hook") as reader, Control(folder) as control:
        while views := reader.pull(16, 0.0):
            for view in views:
                packet = parse_packet(memoryview(view.copy()), control.accounts())
                found.append((packet.point, packet.header.copy(), packet.rows.copy(), packet.to_float32()))
                reader.consumed(view)
                view.release()
    return found


def books(folder):
    """The ledger of each point, once the equation of capture is checked."""
    with Control(folder) as control:
        found = dict(zip(control.accounts(), control.produced(), strict=True))
    for point in found.values():
        assert point["seen"] == point["published"] + point["sampled_out"] + sum(point["dropped"])
    return found


WRAPS = {
    "tensor": lambda x: x,
    "tuple": lambda x: (None, x, x + 1),
    "mapping": lambda x: {"loss": None, "last_hidden_state": x},
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "flat": lambda x: x.reshape(GRID, WIDTH),
    "heads": lambda x: x.reshape(BATCH, LENGTH, 2, WIDTH // 2),
    "bfloat16": lambda x: x.bfloat16(),
    "float16": lambda x: x.half(),
    "float64": lambda x: x.double(),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_ring_holds_what_the_module_returned(ring, wrap):
    """Whatever form a module's output has, its content rows arrive bit for bit, with their lineage."""
    model = Model(wrap)
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        with ActivationHooker(model, POINTS, RingProducer(writer), control, attempt=2) as hooker:
            hooker.step(tokens(step=7, holdout=True))
            model(IDS)
        expected = model.first.linear(model.embed(IDS)).reshape(GRID, WIDTH)
    assert hooker.errors == 0
    point, header, rows, payload = packets(ring)[0]
    assert point == "first"
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(
        Dtype(header["dtype"]).name.lower(), torch.float32
    )
    assert (payload == expected.to(dtype).float().numpy()[CONTENT]).all()
    assert (rows == tokens(holdout=True).rows[CONTENT]).all()
    described = {
        name: int(header[name]) for name in ("step", "attempt", "batch", "length", "step_rows", "step_kept")
    }
    assert described == {
        "step": 7,
        "attempt": 2,
        "batch": BATCH,
        "length": LENGTH,
        "step_rows": 12,
        "step_kept": 12,
    }
    assert books(ring)["first"]["published"] == 12


def test_one_mask_holds_for_the_whole_step(ring):
    """The rate is latched when the forward begins: one written meanwhile counts from the next step."""
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        control.set_float(CaptureWord.RATE, 0.5)
        model = Model(between=lambda: control.set_float(CaptureWord.RATE, 0.01))
        with ActivationHooker(model, POINTS, RingProducer(writer), control, seed=5) as hooker:
            for step in range(2):
                hooker.step(tokens(step))
                model(IDS)
    kept = [
        CONTENT[keep_mask(5, step, CONTENT.astype(np.uint64), rate)] for step, rate in ((0, 0.5), (1, 0.01))
    ]
    assert 0 < len(kept[0]) < 12
    for _, header, rows, _ in packets(ring):
        assert header["sampling_rate"] == (0.5, 0.01)[header["step"]]
        assert (rows["sample"] == 100 + kept[header["step"]]).all()
    assert {point["sampled_out"] for point in books(ring).values()} == {24 - len(kept[0]) - len(kept[1])}


def test_rate_stays_within_the_spec(ring):
    """A rate outside the spec's bounds is brought back to them; before the first one the highest holds."""
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        model = Model()
        sampling = Sampling(rate=0.5, min_rate=0.25)
        with ActivationHooker(model, POINTS, RingProducer(writer), control, sampling=sampling) as hooker:
            for asked, used in ((0.0, 0.5), (0.001, 0.25), (0.3, 0.3), (7.0, 0.5), (float("nan"), 0.5)):
                control.set_float(CaptureWord.RATE, asked)
                model(IDS)
                assert hooker.rate == used


def test_whole_steps_are_kept_or_left_out(ring):
    """Under `unit: step` a step is kept whole or not at all."""
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        model = Model()
        sampling = Sampling(rate=0.5, unit="step")
        with ActivationHooker(model, POINTS, RingProducer(writer), control, sampling=sampling) as hooker:
            kept = []
            for step in range(6):
                hooker.step(tokens(step))
                model(IDS)
                kept.append(len(hooker.kept))
    assert set(kept) == {0, 12}
    assert books(ring)["second"]["published"] == sum(kept)


def test_full_ring_drops_whole_new_steps(ring):
    """Steps that do not fit are dropped whole and counted, and capture goes on when there is room again."""
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        model = Model()
        with ActivationHooker(model, POINTS, RingProducer(writer), control) as hooker:
            for step in range(7):  # two chunks each, eight fit
                hooker.step(tokens(step))
                model(IDS)
            assert (hooker.steps_dropped, hooker.errors) == (3, 0)
            assert [int(header["step"]) for _, header, _, _ in packets(ring)] == [0, 0, 1, 1, 2, 2, 3, 3]
            hooker.step(tokens(7))
            model(IDS)
        assert control.get(CaptureWord.STEPS_DROPPED) == 3
        assert control.get(CaptureWord.STEPS) == 8
        assert control.get(CaptureWord.TOKENS) == 8 * 12
        assert control.get(CaptureWord.TOKENS_EXCLUDED) == 8 * 3
    assert [(point, int(header["step"])) for point, header, _, _ in packets(ring)] == [
        ("first", 7),
        ("second", 7),
    ]
    assert all(point["dropped"][1] == 3 * 12 for point in books(ring).values())


def test_rest_of_a_step_that_runs_out_is_mid_step(ring):
    """A step that turns out larger than it was thought to be loses its rest, under a reason of its own."""
    wide = Model(lambda x: x.repeat(1, 1, 512))  # 16 KiB a row and more: no row fits a chunk
    unknown = [HookPoint("first"), HookPoint("second")]
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        with ActivationHooker(wide, unknown, RingProducer(writer), control) as hooker:
            wide(IDS)
        assert books(ring)["first"]["dropped"][4] == GRID
        assert books(ring)["second"]["published"] == GRID
        halves = Model(lambda x: x.repeat(1, 1, 250))  # two rows a chunk: 8 chunks, 7 are left
        with ActivationHooker(halves, unknown, RingProducer(writer), control) as hooker:
            halves(IDS)
            assert hooker.errors == 0
    first = books(ring)["first"]
    assert first["published"] == 14
    assert first["dropped"][2] == 1
    assert sum(books(ring)["second"]["dropped"]) == GRID


def test_a_point_that_outgrew_its_plan_does_not_cost_the_others_their_rows(ring, caplog):
    """Once a hook point needs more than the whole ring, its own rows are left out, counted and said once; the
    other's keep coming.
    """
    broad = Model(lambda x: x.repeat(1, 1, 400))  # a row to a chunk: 12 chunks for a step, and there are 8
    points = [HookPoint("first", shape=(BATCH, LENGTH, WIDTH), calls=0), HookPoint("second")]
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        with ActivationHooker(broad, points, RingProducer(writer), control) as hooker:
            for step in range(4):
                hooker.step(tokens(step))
                broad(IDS)
                packets(ring)
        assert hooker.steps_dropped == 0
        assert hooker.errors == 0
    found = books(ring)
    assert found["second"]["published"] + sum(found["second"]["dropped"]) == 4 * len(CONTENT)
    assert found["second"]["published"] >= 3 * len(CONTENT)
    assert found["first"]["dropped"][4] == 3 * len(CONTENT)
    (said,) = caplog.messages
    assert said.startswith("capture failed at first")
    assert "12 of the capture ring's 8 chunks" in said


class FailingWriter:
    """A writer whose n-th publication raises."""

    def __init__(self, writer, fails_at):
        self.writer, self.left = writer, fails_at

    def __getattr__(self, name):
        return getattr(self.writer, name)

    def publish_block(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise OSError("the ring is gone")
        return self.writer.publish_block(*args, **kwargs)


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_no_exception_reaches_the_model(ring, fails_at, caplog):
    """Whatever capture raises, the model returns the same as without, and no row is lost uncounted."""
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        model = Model()
        expected = model(IDS)
        with (
            caplog.at_level(logging.WARNING),
            ActivationHooker(model, POINTS, RingProducer(FailingWriter(writer, fails_at)), control) as hooker,
        ):
            for step in range(3):
                hooker.step(tokens(step))
                assert (model(IDS) == expected).all()
        assert hooker.errors == control.get(CaptureWord.CAPTURE_ERRORS) == 6 - fails_at
    assert len(caplog.records) == 1  # a kind is logged once
    assert sum(point["dropped"][5] for point in books(ring).values()) == 12 * (6 - fails_at)


@pytest.mark.parametrize(
    "wrap", [lambda x: None, lambda x: x.long(), lambda x: x.to_sparse()], ids=["none", "int", "sparse"]
)
def test_output_without_activations_is_an_error_and_no_more(ring, wrap):
    """An output that holds no activations is an error that is counted; the next hook point is captured."""
    model = Model(wrap)
    with (
        torch.no_grad(),
        Writer(ring) as writer,
        Control(ring) as control,
        ActivationHooker(model, POINTS, RingProducer(writer), control) as hooker,
    ):
        hooker.step(tokens())
        model(IDS)
    assert hooker.errors == 1
    assert books(ring)["first"]["dropped"][5] == 12
    assert books(ring)["second"]["published"] == 12


@pytest.mark.parametrize(
    ("wrap", "rows"),
    [(lambda x: x.sum(1), BATCH), (lambda x: x[:2], 2 * LENGTH), (lambda x: x.reshape(GRID, -1)[:7], 7)],
    ids=["pooled", "part", "routed"],
)
def test_rows_of_no_token_are_dropped_by_name(ring, wrap, rows, caplog):
    """Rows that nobody can tell the tokens of are counted, as many as there are, and nothing is logged."""
    model = Model(wrap)
    with (
        torch.no_grad(),
        Writer(ring) as writer,
        Control(ring) as control,
        ActivationHooker(model, POINTS, RingProducer(writer), control) as hooker,
    ):
        for step in range(2):
            hooker.step(tokens(step))
            model(IDS)
    assert (hooker.errors, caplog.records) == (0, [])
    first = books(ring)["first"]
    assert DropReason(7).word == "no_token"
    assert (first["seen"], first["dropped"][7]) == (2 * rows, 2 * rows)
    assert books(ring)["second"]["published"] == 2 * 12
    assert hooker.calls == {"first": 2, "second": 2}


def test_nothing_is_logged_between_two_layers(ring, caplog):
    """What capture swallows is logged when the forward is over."""
    told = []
    model = Model(lambda x: None, between=lambda: told.append(len(caplog.records)))
    with (
        torch.no_grad(),
        Writer(ring) as writer,
        Control(ring) as control,
        ActivationHooker(model, POINTS, RingProducer(writer), control),
    ):
        model(IDS)
    assert (told, len(caplog.records)) == ([0], 1)


def test_step_that_cannot_begin_is_not_captured(ring):
    """Tokens that capture cannot make out cost the step, counted as an error, and the model runs."""
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH))
    with (
        torch.no_grad(),
        Writer(ring) as writer,
        Control(ring) as control,
        ActivationHooker(model, [HookPoint("0")], RingProducer(writer), control) as hooker,
    ):
        hooker.step(StepTokens(0, 1, 1, np.zeros(1, ROW_DTYPE), None))
        assert model(torch.ones(4, WIDTH)).shape == (4, WIDTH)
    assert hooker.errors == 1
    assert packets(ring) == []


def test_hooks_leave_with_the_context(ring):
    """After the context nothing is captured any more, and no hook is left in any module."""
    model = Model()
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        with ActivationHooker(model, POINTS, RingProducer(writer), control) as hooker:
            pass
        model(IDS)
    assert hooker.steps == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_failed_forward_ends_the_step(ring):
    """A forward that raises, raises as ever; the next step is captured."""
    model = Model()
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        with ActivationHooker(model, POINTS, RingProducer(writer), control) as hooker:
            with pytest.raises(IndexError):
                model(IDS + 1000)
            hooker.step(tokens(1))
            model(IDS)
        assert control.get(CaptureWord.STEPS) == 2
    assert [int(header["step"]) for _, header, _, _ in packets(ring)] == [1, 1]


class Looped(torch.nn.Module):
    """Calls one layer three times in a forward."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.layer(self.layer(self.layer(x)))


def test_calls_are_numbered(ring):
    """A module called several times in a step gives a numbered packet a call, and the books count each."""
    model = Looped()
    with (
        torch.no_grad(),
        Writer(ring) as writer,
        Control(ring) as control,
        ActivationHooker(model, [HookPoint("layer")], RingProducer(writer), control) as hooker,
    ):
        for _ in range(4):  # from the second on it is known to take three chunks of eight
            model(torch.ones(BATCH, LENGTH, WIDTH))
    found = [(int(header["step"]), int(header["call_index"])) for _, header, _, _ in packets(ring)]
    assert found == [(step, call) for step in (0, 1) for call in (0, 1, 2)]
    assert hooker.steps_dropped == 2
    assert books(ring)["layer"]["seen"] == 4 * 3 * GRID


def test_one_call_can_be_addressed(ring):
    """`layer#1` is the second call alone, with an account of its own beside that of all calls."""
    model, x = Looped(), torch.ones(BATCH, LENGTH, WIDTH)
    names = ["layer#1", "layer", "layer#7"]
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        second = model.layer(model.layer(x)).reshape(GRID, WIDTH).numpy()
        with ActivationHooker(
            model, [HookPoint(name) for name in names], RingProducer(writer), control
        ) as hooker:
            model(x)
    found = packets(ring)
    assert [(point, int(header["call_index"])) for point, header, _, _ in found] == [
        ("layer", 0), ("layer#1", 1), ("layer", 1), ("layer", 2),
    ]  # fmt: skip
    assert (found[1][3] == second).all()
    assert hooker.calls == {"layer#1": 1, "layer": 3, "layer#7": 0}
    assert books(ring)["layer#1"]["seen"] == GRID
    assert books(ring)["layer#7"]["seen"] == 0


class Checkpointed(Looped):
    """Runs its layer again in the backward pass."""

    def forward(self, x):
        return checkpoint(lambda x: self.layer(x).tanh().exp(), x, use_reentrant=False)


def test_recomputation_is_flagged(ring):
    """What activation checkpointing runs a second time says so in its packet."""
    model = Checkpointed()
    with (
        Writer(ring) as writer,
        Control(ring) as control,
        ActivationHooker(model, [HookPoint("layer")], RingProducer(writer), control),
    ):
        model(torch.ones(BATCH, LENGTH, WIDTH, requires_grad=True)).sum().backward()
    flags = [PacketFlag(int(header["flags"])) for _, header, _, _ in packets(ring)]
    assert flags == [PacketFlag(0), PacketFlag.RECOMPUTED]


def test_tokens_default_to_the_models_input(ring):
    """Without a host that knows more, a sequence is a sample, and what the mask leaves out is not data."""
    model = Model()
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, 2:] = 0
    with (
        torch.no_grad(),
        Writer(ring) as writer,
        Control(ring) as control,
        ActivationHooker(model, POINTS, RingProducer(writer), control),
    ):
        for _ in range(2):
            model(input_ids=IDS, attention_mask=mask)
    first, later = (packet[2] for packet in packets(ring)[::2])
    kept = mask.numpy().reshape(-1).astype(bool)
    assert (first["token"] == IDS.numpy().reshape(-1)[kept]).all()
    assert (first["position"] == np.tile(np.arange(LENGTH), BATCH)[kept]).all()
    assert (first["sequence"] == np.repeat(np.arange(BATCH), LENGTH)[kept]).all()
    assert (later["sample"] == first["sample"] + BATCH).all()


def test_large_outputs_travel_in_parts(ring):
    """Rows that fill more than a chunk come in numbered parts that join to the whole."""
    model = Model(lambda x: x.repeat(1, 1, 64))  # 2 KiB a row: seven to a chunk
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        with ActivationHooker(
            model, [HookPoint("first", None, (BATCH, LENGTH, 64 * WIDTH))], RingProducer(writer), control
        ) as hooker:
            hooker.step(tokens())
            model(IDS)
        expected = model.first(model.embed(IDS)).reshape(GRID, -1).numpy()[CONTENT]
    found = packets(ring)
    parts = [(int(header["part"]), int(header["parts"]), len(rows)) for _, header, rows, _ in found]
    assert parts == [(0, 2, 7), (1, 2, 5)]
    assert (np.concatenate([payload for *_, payload in found]) == expected).all()


def test_parts_are_numbered_anew(ring):
    """After a step in several parts, a step that fits one packet is part 0 of 1."""
    copies = [64, 1]
    model = Model(lambda x: x.repeat(1, 1, copies.pop(0)))
    with (
        torch.no_grad(),
        Writer(ring) as writer,
        Control(ring) as control,
        ActivationHooker(model, POINTS[:1], RingProducer(writer), control),
    ):
        model(IDS)
        model(IDS)
    found = [
        (int(header["step"]), int(header["part"]), int(header["parts"])) for _, header, _, _ in packets(ring)
    ]
    assert found == [(0, 0, 3), (0, 1, 3), (0, 2, 3), (1, 0, 1)]


BOTH = (Kind.ACTIVATION, Kind.GRADIENT)


def test_gradients_have_an_account_of_their_own(ring):
    """What is taken of a hook point is booked by kind: activations under its name, gradients beside it."""
    model, weight = Model(), torch.arange(GRID * WIDTH, dtype=torch.float32).reshape(BATCH, LENGTH, WIDTH)
    with Writer(ring) as writer, Control(ring) as control:
        producer = RingProducer(writer)
        with ActivationHooker(model, POINTS[1:], producer, control, kinds=BOTH) as hooker:
            hooker.step(tokens(step=3))
            (model(IDS) * weight).sum().backward()
        assert hooker.errors == 0
        assert hooker.calls == {"second": 1, "second:gradient": 1}
    (_, activation, rows, _), (name, gradient, same, values) = packets(ring)
    assert [Kind(int(header["kind"])) for header in (activation, gradient)] == list(BOTH)
    assert name == "second:gradient"
    assert (rows == same).all()
    assert (values == weight.reshape(GRID, WIDTH).numpy()[CONTENT]).all()
    assert {point: one["published"] for point, one in books(ring).items()} == {
        "second": 12,
        "second:gradient": 12,
    }


@pytest.mark.parametrize("reentrant", [False, True])
def test_only_rows_that_are_seen_again_are_flagged(ring, reentrant):
    """Under checkpointing an output is seen twice, its gradient once: the second output alone is flagged."""
    layer = torch.nn.Linear(WIDTH, WIDTH)
    body = torch.nn.Sequential(layer, torch.nn.Tanh())

    class Body(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return checkpoint(body, x, use_reentrant=reentrant)

    model, x = Body(), torch.ones(BATCH, LENGTH, WIDTH, requires_grad=True)
    with Writer(ring) as writer, Control(ring) as control:
        producer = RingProducer(writer)
        with ActivationHooker(model, [HookPoint("layer")], producer, control, kinds=BOTH) as hooker:
            model(x).sum().backward()
        assert hooker.errors == 0
    found = [(Kind(int(h["kind"])), PacketFlag(int(h["flags"]))) for _, h, _, _ in packets(ring)]
    assert found == [
        (Kind.ACTIVATION, PacketFlag(0)),
        (Kind.ACTIVATION, PacketFlag.RECOMPUTED),
        (Kind.GRADIENT, PacketFlag(0)),
    ]


def test_gradients_carry_the_number_of_their_call(ring):
    """A backward pass goes through calls in reverse: each gradient names the call of its output."""
    model, x = Looped(), torch.ones(BATCH, LENGTH, WIDTH)
    with Writer(ring) as writer, Control(ring) as control:
        producer = RingProducer(writer)
        with ActivationHooker(model, [HookPoint("layer#1")], producer, control, kinds=BOTH):
            model(x).sum().backward()
    (_, output, _, _), (name, header, _, values) = packets(ring)
    assert (int(output["call_index"]), name, int(header["call_index"])) == (1, "layer#1:gradient", 1)
    assert np.allclose(values, model.layer.weight.detach().sum(0).numpy(), rtol=1e-5)


def test_gradients_of_an_earlier_step_are_an_error(ring):
    """A backward pass that comes after the next forward is counted: its tokens are not known any more."""
    model = Model()
    with Writer(ring) as writer, Control(ring) as control:
        producer = RingProducer(writer)
        with ActivationHooker(model, POINTS[1:], producer, control, kinds=BOTH[1:]) as hooker:
            late = model(IDS)
            model(IDS).sum().backward()
            late.sum().backward()
    assert hooker.errors == 1
    found = books(ring)["second:gradient"]
    assert (found["published"], found["dropped"][DropReason.ERROR]) == (GRID, GRID)


def test_nothing_is_captured_after_the_context(ring):
    """A backward pass that outlives the hooks leaves no row: nobody watches any more."""
    model = Model()
    with Writer(ring) as writer, Control(ring) as control:
        with ActivationHooker(model, POINTS[1:], RingProducer(writer), control, kinds=BOTH[1:]) as hooker:
            out = model(IDS)
        out.sum().backward()
    assert hooker.errors == 0
    assert packets(ring) == []


def test_a_kind_without_hooks_is_refused(ring):
    """Gradients of parameters have no hook: asking for them fails at once, and leaves the model as it was."""
    model = Model()
    with Writer(ring) as writer, Control(ring) as control:
        producer = RingProducer(writer)
        with pytest.raises(KeyError):
            ActivationHooker(model, POINTS, producer, control, kinds=[Kind.PARAMETER_GRADIENT])
    assert not any(module._forward_hooks for module in model.modules())
