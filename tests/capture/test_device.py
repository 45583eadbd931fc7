"""Capture from a device that stands for a GPU: production code, but for the functions of the runtime."""

import logging
import time
import uuid
from collections import defaultdict
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
import torch
from tests.capture.standin import OnDevice, OnSecondDevice, Standin, build

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, Dtype, Kind, Quantization, RowFlag, parse_packet
from asysi.bus.quantization import quantise
from asysi.bus.ring import RingProducer
from asysi.bus.states import DropReason
from asysi.capture.conversion import select_rows
from asysi.capture.device import DeviceCapture, Devices
from asysi.capture.hooks import ActivationHooker
from asysi.capture.slots import plan_slots
from asysi.contract.spec import Sampling
from asysi.hook.finite import Saturated
from asysi.hook.ranges import Ranges
from asysi.hook.relay import Relay
from asysi.model.points import HookPoint
from asysi.text.grid import StepTokens
from asysi_ring import Control, Reader, Writer, create

BATCH, LENGTH, WIDTH = 3, 20, 8
GRID = BATCH * LENGTH
POINTS = [HookPoint(name, None, (BATCH, LENGTH, WIDTH)) for name in ("first", "second")]


@pytest.fixture(scope="session")
def library(tmp_path_factory, program):
    return build(program("c++"), tmp_path_factory.mktemp("standin") / "standin.so")


@pytest.fixture
def device(library):
    with Standin(library) as standin:
        yield standin


@pytest.fixture
def ring():
    """A capture ring of 2 KiB chunks: a step of a hook point takes two or three."""
    folder = Path("/dev/shm") / f"asysi-test-{uuid.uuid4().hex}"
    create(str(folder), shards=1, chunks=64, chunk_bytes=1 << 11, readers=["hook"], policy="drop_new")
    yield str(folder)
    rmtree(folder)


class Layer(torch.nn.Linear):
    """Has its parameters on one device, and returns its output on another if it is told to."""

    def __init__(self, kind):
        super().__init__(WIDTH, WIDTH)
        self.returns = torch.Tensor if kind is None else kind
        if kind is not None:
            for name, value in list(self.named_parameters()):
                setattr(self, name, torch.nn.Parameter(value.detach().as_subclass(kind)))

    def forward(self, x):
        return super().forward(x).as_subclass(self.returns)


class Model(torch.nn.Module):
    """Two layers, each on a device of its own; `replay` runs them without their hooks, as a graph does."""

    def __init__(self, first=OnDevice, second=OnDevice):
        super().__init__()
        self.first, self.second, self.replay = Layer(first), Layer(second), False

    def forward(self, x):
        for layer in (self.first, self.second):
            x = layer.forward(x) if self.replay else layer(x)
        return x


def tokens(step, *, content=True):
    rows = np.zeros(GRID, ROW_DTYPE)
    rows["sample"] = np.arange(GRID)
    content = np.full(GRID, content)
    content[::LENGTH] = False
    return StepTokens(step, BATCH, LENGTH, rows, content)


def inputs(step):
    return torch.from_numpy(
        np.random.default_rng(step).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    )


def run(model, hooker, steps, act=lambda step: None):
    """Run steps; return what the hooks should have seen: by hook point and step, the whole grid."""
    expected = {}
    for step in steps:
        hooker.step(tokens(step))
        act(step)
        model(inputs(step))
        x = inputs(step)
        for name in ("first", "second"):
            layer = getattr(model, name)
            plain = [p.detach().as_subclass(torch.Tensor) for p in (layer.weight, layer.bias)]
            x = torch.nn.functional.linear(x, *plain)
            expected[name, step] = x.reshape(GRID, WIDTH).float().numpy()
    return expected


def arrived(folder):
    """Everything in the ring: by hook point and step, the samples and their rows, in order."""
    found = defaultdict(list)
    with Reader(folder, "hook") as reader, Control(folder) as control:
        while views := reader.pull(16, 0.0):
            for view in views:
                packet = parse_packet(memoryview(view.copy()), control.accounts())
                place = packet.point, int(packet.header["step"])
                found[place].append((packet.rows["sample"].copy(), packet.to_float32(), packet.header.copy()))
                reader.consumed(view)
                view.release()
    return found


def expect_rows(found, expected, *, tolerance=0.0):
    for place, parts in found.items():
        samples = np.concatenate([part[0] for part in parts])
        rows = np.concatenate([part[1] for part in parts])
        assert np.abs(rows - expected[place][samples]).max() <= tolerance, place
        assert [int(part[2]["part"]) for part in parts] == list(range(int(parts[0][2]["parts"])))


def ledger(folder):
    with Control(folder) as control:
        found = dict(zip(control.accounts(), control.produced(), strict=True))
    for one in found.values():
        assert one["seen"] == one["published"] + one["sampled_out"] + sum(one["dropped"])
    return found


def dropped(folder, reason):
    return {name: one["dropped"][reason] for name, one in ledger(folder).items()}


class Host:
    """A hooked model on the stand-in device, and its ring."""

    def __init__(self, folder, device, model=None, **options):
        self.model = Model() if model is None else model
        self.writer, self.control = Writer(folder), Control(folder)
        producer = RingProducer(self.writer)
        sampling, kinds = options.pop("sampling", None), options.pop("kinds", (Kind.ACTIVATION,))
        devices = Devices(producer.lane, rows=GRID, accelerator=device, **options)
        self.hooker = ActivationHooker(
            self.model, POINTS, producer, self.control,
            kinds=kinds, sampling=sampling, seed=3, devices=devices,
        )  # fmt: skip

    def __enter__(self):
        self.grad = torch.no_grad()
        self.grad.__enter__()
        self.hooker.attach()
        return self

    def __exit__(self, *_):
        self.hooker.close()
        self.grad.__exit__(None, None, None)
        self.writer.close("complete")
        self.control.close()


@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_rows_are_those_of_plain_hooks(ring, device, rate):
    """However the device delays its streams, every row that arrives is the module's, in whole steps."""
    with Host(ring, device, sampling=Sampling(rate=rate)) as host:
        expected = run(host.model, host.hooker, range(8))
        errors, lost = host.hooker.errors, host.hooker.steps_dropped
    found = arrived(ring)
    expect_rows(found, expected)
    assert errors == 0
    assert len(found) == 2 * (8 - lost) > 0
    assert {name for name, step in found if step == 0} == {"first", "second"}
    assert device.calls("cudaMemcpy2DAsync") > 0


def test_a_step_without_slots_is_dropped_whole(ring, device):
    """With two steps on their way, others are dropped at every hook point, and counted; then it goes on."""
    with Host(ring, device, budget=4 * GRID * WIDTH * 4) as host:
        device.hold_copies(True)
        expected = run(host.model, host.hooker, range(5))
        assert host.hooker.steps_dropped == 3
        device.hold_copies(False)
    found = arrived(ring)
    expect_rows(found, expected)
    assert sorted(found) == [(name, step) for name in ("first", "second") for step in (0, 1)]
    assert dropped(ring, DropReason.RING_FULL) == {"first": 3 * 57, "second": 3 * 57}


def on_another_stream(model, device):
    """Have the first layer run on a stream of its own, while that of the indices is busy."""
    device.slow_uploads_us = 20_000
    model.first.register_forward_pre_hook(lambda *_: setattr(device, "current", 1))
    model.first.register_forward_hook(lambda *_: setattr(device, "current", 0))


def test_another_stream_waits_for_the_indices(ring, device):
    """A module that runs on a stream of its own gathers the rows of this step."""
    with Host(ring, device, sampling=Sampling(rate=0.5)) as host:
        on_another_stream(host.model, device)
        expected = run(host.model, host.hooker, range(4))
        assert (host.hooker.errors, host.hooker.steps_dropped) == (0, 0)
    found = arrived(ring)
    expect_rows(found, expected)
    assert len(found) == 8


def test_the_wait_for_the_indices_is_needed(ring, device, monkeypatch):
    """Without it, rows of other tokens arrive: what the test before this one would see."""
    monkeypatch.setattr(device, "wait", lambda *_: None)
    with Host(ring, device, sampling=Sampling(rate=0.5)) as host:
        on_another_stream(host.model, device)
        expected = run(host.model, host.hooker, range(4))
    with pytest.raises(AssertionError):
        expect_rows(arrived(ring), expected)


@pytest.mark.parametrize("default_streams", [False, True])
def test_each_device_has_slots_and_streams(ring, device, default_streams):
    """Under a device map every hook point is captured where its module runs, also on devices' default
    streams, which have one handle.
    """
    device.default_streams = default_streams
    with Host(ring, device, Model(OnDevice, OnSecondDevice)) as host:
        expected = run(host.model, host.hooker, range(5))
        assert host.hooker.errors == 0
        assert set(host.hooker.slots) == {"cuda:0", "cuda:1"}
    found = arrived(ring)
    expect_rows(found, expected)
    assert {name for name, _ in found} == {"first", "second"}


@pytest.mark.parametrize("kinds", [(OnDevice, None), (None, OnDevice)])
def test_a_tensor_on_the_host_takes_the_usual_way(ring, device, kinds):
    """A module that returns a CPU tensor on a GPU host is captured like on a CPU host."""
    with Host(ring, device, Model(*kinds)) as host:
        expected = run(host.model, host.hooker, range(4))
        assert host.hooker.errors == 0
    found = arrived(ring)
    expect_rows(found, expected)
    assert len(found) == 2 * (4 - host.hooker.steps_dropped)


def test_a_hook_point_that_moves_keeps_its_order(ring, device, caplog):
    """Rows on the host would overtake those that came from a device: they are counted, and it says so."""
    with caplog.at_level(logging.WARNING), Host(ring, device) as host:
        run(host.model, host.hooker, range(1))
        host.model.second.returns = torch.Tensor
        run(host.model, host.hooker, range(1, 2))
        assert host.hooker.errors == 1
    assert dropped(ring, DropReason.ERROR) == {"first": 0, "second": 57}
    assert "would lose their order" in caplog.text


def test_a_device_that_was_not_expected_is_captured_from_the_next_step(ring, device, caplog):
    """Slots are taken before a step, never between two layers."""
    model = Model(OnDevice, None)
    model.second.returns = OnSecondDevice
    with caplog.at_level(logging.WARNING), Host(ring, device, model) as host:
        expected = run(host.model, host.hooker, range(3))
        assert host.hooker.errors == 1
    found = arrived(ring)
    expect_rows(found, expected)
    assert ("second", 0) not in found
    assert ("second", 1) in found
    assert "the next step is captured" in caplog.text


def test_a_pause_gives_nothing_back_and_loses_nothing(ring, device):
    """Hooks that are taken off and put back find the slots where they were."""
    with Host(ring, device) as host:
        expected = run(host.model, host.hooker, range(2))
        host.hooker.detach()
        host.model(inputs(99))
        assert host.hooker.slots
        host.hooker.attach()
        expected |= run(host.model, host.hooker, range(2, 4))
        assert (host.hooker.errors, device.calls("cudaStreamCreateWithPriority")) == (0, 1)
    found = arrived(ring)
    expect_rows(found, expected)
    assert {step for _, step in found} == {0, 1, 2, 3}


# -- memory


def test_slots_follow_the_size_of_the_ring():
    """As many as capture.size holds, for eight steps at most and one at least; the message shows the sum."""
    points = [(1, 4096)] * 16
    assert (plan_slots(points, 8192).slots, plan_slots(points, 8192).bytes) == (128, 4 << 30)
    assert plan_slots(points, 8192, 768 << 20).slots == 24
    assert plan_slots([(2, 4096), (1, 2048)], 8192, 1 << 20).slots == 3
    said = str(plan_slots(points, 8192, 2 << 30))
    assert said == ("4 × 16 calls a step = 64 slots × 32Mi (8192 rows) = 2Gi, within spec.capture.size = 2Gi")
    assert "which a step needs, beyond spec.capture.size = 64Mi" in str(plan_slots(points, 8192, 64 << 20))


def test_capture_takes_fewer_slots_where_memory_is_short(ring, device):
    """One step's slots are enough to go on with."""
    device.memory = 3 * GRID * WIDTH * 4
    with Host(ring, device) as host:
        expected = run(host.model, host.hooker, range(1))
        assert "2 slots" in host.hooker.slots["cuda:0"]
    found = arrived(ring)
    expect_rows(found, expected)
    assert len(found) == 2


def test_without_memory_the_model_runs_and_rows_are_counted(ring, device, caplog):
    """Capture steps back from the device, and says so once; what is on the host is captured."""
    device.memory = 100
    with caplog.at_level(logging.WARNING), Host(ring, device, Model(OnDevice, None)) as host:
        expected = run(host.model, host.hooker, range(3))
        assert host.hooker.errors == 3
    found = arrived(ring)
    expect_rows(found, expected)
    assert sorted(found) == [("second", step) for step in range(3)]
    assert dropped(ring, DropReason.ERROR) == {"first": 3 * 57, "second": 0}
    assert len(caplog.records) == 1
    assert "capture leaves out cuda:0: no memory for 1 × 1 calls a step = 1 slots × 1920" in caplog.text


def test_a_device_without_a_lane_is_left_out(ring, device, caplog):
    """What the runtime answers is in the message."""
    device.fail("cudaStreamCreateWithPriority", code=2)
    with caplog.at_level(logging.WARNING), Host(ring, device) as host:
        run(host.model, host.hooker, range(2))
    assert dropped(ring, DropReason.ERROR) == {"first": 2 * 57, "second": 2 * 57}
    assert "cudaStreamCreateWithPriority answered 2 (out of memory)" in caplog.text


# -- failures


@pytest.mark.parametrize("function", ["cudaEventRecord", "cudaMemcpy2DAsync", "cudaEventQuery", "copying"])
def test_a_device_error_ends_capture_and_not_the_model(ring, device, function, caplog):
    """What was published stays, the rest is counted; the host's own modules are captured as before."""
    with caplog.at_level(logging.WARNING), Host(ring, device, Model(OnDevice, None)) as host:
        first = run(host.model, host.hooker, range(2))
        device.fail(function)
        expected = first | run(host.model, host.hooker, range(2, 8), lambda _: time.sleep(0.01))
    found = arrived(ring)
    expect_rows(found, expected)
    books = ledger(ring)
    assert books["first"]["seen"] >= 6 * 57
    assert books["first"]["dropped"][DropReason.ERROR] > 0
    assert books["second"]["published"] > 2 * 57


def test_a_graph_is_recognised_and_its_rows_are_counted(ring, device, caplog):
    """While a graph is captured nothing is gathered; its replays call no hook, and their rows are counted."""
    with caplog.at_level(logging.WARNING), Host(ring, device) as host:
        run(host.model, host.hooker, range(1))
        begin = host.model.first.register_forward_pre_hook(lambda *_: setattr(device, "in_graph", True))
        end = host.model.second.register_forward_hook(lambda *_: setattr(device, "in_graph", False))
        run(host.model, host.hooker, range(1, 2))
        begin.remove()
        end.remove()
        host.model.replay = True
        run(host.model, host.hooker, range(2, 5))
    found = arrived(ring)
    assert {step for _, step in found} == {0}
    counted = ledger(ring)["first"]
    assert counted["dropped"][DropReason.ERROR] + counted["dropped"][DropReason.RING_FULL] == 4 * 57
    assert len(caplog.records) == 1
    assert "while a CUDA graph is captured" in caplog.text


def test_a_model_in_a_graph_is_left_alone(ring, device, caplog):
    """Where the whole model is captured into a graph the device is asked nothing: that would spoil it."""
    with caplog.at_level(logging.WARNING), Host(ring, device) as host:
        run(host.model, host.hooker, range(1))
        time.sleep(0.05)  # the lane is idle
        functions = ["cudaEventQuery", "cudaEventRecord", "cudaStreamWaitEvent", "cudaMemcpy2DAsync"]
        before = [device.calls(name) for name in functions]
        device.in_graph = True
        run(host.model, host.hooker, range(1, 3))
        device.in_graph = False
        assert [device.calls(name) for name in functions] == before
        assert host.hooker.errors == 2
    assert len(caplog.records) == 1


# -- types


def test_rows_are_converted_on_the_device(ring, device):
    """bfloat16 on the way: half the bytes, each within a rounding; the header says so."""
    with Host(ring, device, quantization=Quantization.BF16) as host:
        expected = run(host.model, host.hooker, range(3))
    found = arrived(ring)
    expect_rows(found, expected, tolerance=0.02)
    header = found["first", 0][0][2]
    assert (Dtype(int(header["dtype"])), int(header["quantization"])) == (Dtype.BFLOAT16, Quantization.BF16)


def raw(folder, name="hook"):
    """Everything in the ring as packets of their own, in order."""
    found = []
    with Reader(folder, name) as reader, Control(folder) as control:
        while views := reader.pull(16, 0.0):
            for view in views:
                found.append(parse_packet(memoryview(view.copy()), control.accounts()))
                reader.consumed(view)
                view.release()
    return found


def expect_converted(packets, expected, quantization, table=None):
    """Packets hold what the CPU's conversion makes of the rows, bit for bit, and say so."""
    for packet in packets:
        rows = expected[packet.point, int(packet.header["step"])][packet.rows["sample"]]
        wanted = quantise(rows, quantization, table)
        np.testing.assert_array_equal(packet.payload, wanted.payload)
        assert (int(packet.header["quantization"]), int(packet.header["version"])) == (quantization, 3)
        if wanted.scales is not None:
            np.testing.assert_array_equal(packet.scales, wanted.scales)
        if wanted.saturated is not None:
            np.testing.assert_array_equal(packet.table, table)
            flagged = packet.rows["flags"] & RowFlag.SATURATED != 0
            np.testing.assert_array_equal(flagged, wanted.saturated > 0)
            assert packet.header["saturated"] == wanted.saturated.sum()


def ranges_for(expected):
    """A table for rows of the first layer: some values lie out of range."""
    rows = np.concatenate([rows for (name, _), rows in expected.items() if name == "first"])
    return np.stack([rows.mean(axis=0), rows.std(axis=0) / 80]).astype(np.float32)


def test_fp8_is_made_on_the_device(ring, device):
    """A byte an element and a scale a row, equal to what the ring makes on a CPU; also from float16."""
    model = Model()
    model.second.register_forward_hook(lambda _layer, _args, output: output.half())
    with Host(ring, device, model, quantization=Quantization.FP8, sampling=Sampling(rate=0.7)) as host:
        expected = run(host.model, host.hooker, range(4))
        assert (host.hooker.errors, host.hooker.steps_dropped) == (0, 0)
    half = {
        place: rows.astype(np.float16).astype(np.float32) if place[0] == "second" else rows
        for place, rows in expected.items()
    }
    packets = raw(ring)
    expect_converted(packets, half, Quantization.FP8)
    assert {(packet.point, int(packet.header["step"])) for packet in packets} == set(expected)


def test_int8_is_made_on_the_device_once_the_ranges_are_frozen(ring, device):
    """Until then rows leave it as they are; from then on with table, flags and count, as the ring makes it. A
    hook point without a table, and one of another width, stay as they are.
    """
    with Host(ring, device, quantization=Quantization.INT8_CHANNEL) as host:
        expected = run(host.model, host.hooker, range(2))
        table = ranges_for(expected)
        host.hooker.freeze("first", table)
        host.hooker.freeze("second", table[:, 1:])
        expected |= run(host.model, host.hooker, range(2, 6))
        assert (host.hooker.errors, host.hooker.steps_dropped) == (0, 0)
    packets = raw(ring)
    converted = [packet for packet in packets if packet.point == "first" and packet.header["step"] >= 2]
    expect_converted(converted, expected, Quantization.INT8_CHANNEL, table)
    assert sum(int(packet.header["saturated"]) for packet in converted) > 10
    others = [packet for packet in packets if packet.point == "second" or packet.header["step"] < 2]
    expect_plain(others, expected)
    assert sum(len(packet.rows) for packet in packets) == 2 * 6 * 57


def expect_plain(packets, expected):
    for packet in packets:
        rows = expected[packet.point, int(packet.header["step"])][packet.rows["sample"]]
        np.testing.assert_array_equal(packet.payload, rows)
        assert int(packet.header["quantization"]) == Quantization.NONE


def test_ranges_frozen_by_an_earlier_attempt_hold_from_the_first_step(ring, device):
    """A table that is there before the device's slots are is uploaded with them."""
    with Host(ring, device, quantization=Quantization.INT8_CHANNEL) as host:
        table = np.stack([np.zeros(WIDTH), np.full(WIDTH, 0.02)]).astype(np.float32)
        host.hooker.freeze("first", table)
        expected = run(host.model, host.hooker, range(2))
    converted = [packet for packet in raw(ring) if packet.point == "first"]
    expect_converted(converted, expected, Quantization.INT8_CHANNEL, table)
    assert len(converted) >= 2


def convert_on_another_stream(ring, device):
    """Upload a table on a busy stream; the next steps begin, and run, on another one."""
    with Host(ring, device, quantization=Quantization.INT8_CHANNEL) as host:
        expected = run(host.model, host.hooker, range(1))
        table = ranges_for(expected)
        device.slow_uploads_us = 20_000
        host.hooker.freeze("first", table)
        host.hooker.step(tokens(1, content=False))  # uploads the table, and no indices
        host.model(inputs(1))
        device.slow_uploads_us, device.current = 0, 1
        expected |= run(host.model, host.hooker, range(2, 4))
        assert host.hooker.errors == 0
    return [packet for packet in raw(ring) if packet.header["step"] >= 2], expected, table


def test_another_stream_waits_for_a_table(ring, device):
    """A step that begins on another stream than the one of the upload converts with the whole table."""
    packets, expected, table = convert_on_another_stream(ring, device)
    converted = [packet for packet in packets if packet.point == "first"]
    expect_converted(converted, expected, Quantization.INT8_CHANNEL, table)
    assert len(converted) >= 2


def test_the_wait_for_a_table_is_needed(ring, device, monkeypatch):
    """Without it, rows are converted with what the buffer held: the test before this one would see it."""
    monkeypatch.setattr(DeviceCapture, "_await_tables", lambda _: None)
    packets, expected, table = convert_on_another_stream(ring, device)
    with pytest.raises(AssertionError):
        expect_converted(
            [packet for packet in packets if packet.point == "first"],
            expected, Quantization.INT8_CHANNEL, table,
        )  # fmt: skip


@pytest.mark.parametrize("quantization", [Quantization.FP8, Quantization.INT8_CHANNEL])
def test_the_hook_worker_passes_converted_packets_through(ring, device, quantization, tmp_path):
    """Elements, scales or table, flags: none of it changes on the way to the bus, in however many blocks; and
    what was out of range is counted once.
    """
    with Host(ring, device, quantization=quantization) as host:
        first = run(host.model, host.hooker, range(1))
        host.hooker.freeze("first", ranges_for(first))
        run(host.model, host.hooker, range(1, 4))
    captured = [packet for packet in raw(ring) if packet.point == "first" and packet.header["step"] >= 1]
    bus = str(tmp_path / "bus")
    create(bus, shards=1, chunks=80, chunk_bytes=1 << 10, readers=["sae"], policy="overwrite")
    gauges = {}
    with RingProducer(Writer(bus)) as producer:
        counter = Saturated(Gauges(gauges), producer, {})
        ranges = Ranges(tmp_path / "q.safetensors")
        relay = Relay(producer, quantization, (counter.observe,), lambda _: None, ranges)
        for packet in captured:
            relay.forward(packet)
        carried = raw(bus, "sae")
    assert len(carried) > len(captured)
    for name in ("payload", "rows"):
        before, after = (np.concatenate([getattr(one, name) for one in each]) for each in (captured, carried))
        np.testing.assert_array_equal(after, before)
    assert {int(one.header["quantization"]) for one in carried} == {quantization}
    if quantization is Quantization.FP8:
        scales = [np.concatenate([one.scales for one in each]) for each in (captured, carried)]
        np.testing.assert_array_equal(*scales)
    else:
        assert all((one.table == captured[0].table).all() for one in carried)
        assert gauges["first"] == sum(int(one.header["saturated"]) for one in captured) > 0
        assert not any(one.header["saturated"] for one in carried), "a block is not the whole packet"


class Gauges:
    """Stands for the capture stream's consumer."""

    def __init__(self, into):
        self._into = into

    def gauge(self, point, _slot, value):
        self._into[point] = value


def test_two_bytes_an_element_stay_on_the_device(ring, device):
    """To convert float16 would lose bits and save no byte: it arrives bit for bit, beside a layer in bf16."""
    model = Model()
    model.first.register_forward_hook(lambda _layer, _args, output: output.half())
    model.second.register_forward_pre_hook(lambda _layer, args: (args[0].float(),))
    with Host(ring, device, model, quantization=Quantization.BF16) as host:
        expected = run(host.model, host.hooker, range(3))
        assert host.hooker.errors == 0
    found = arrived(ring)
    half = {place: rows.astype(np.float16).astype(np.float32) for place, rows in expected.items()}
    expect_rows({place: parts for place, parts in found.items() if place[0] == "first"}, half)
    assert _formats(found) == {
        "first": {(Dtype.FLOAT16, Quantization.NONE)},
        "second": {(Dtype.BFLOAT16, Quantization.BF16)},
    }


def test_gradients_are_not_converted_on_the_device(ring, device):
    """A format made for activations would swallow them: they arrive bit for bit."""
    with (
        Host(ring, device, kinds=(Kind.ACTIVATION, Kind.GRADIENT), quantization=Quantization.BF16) as host,
        torch.enable_grad(),
    ):
        host.hooker.step(tokens(0))
        weight = torch.from_numpy(np.random.default_rng(7).normal(size=(BATCH, LENGTH, WIDTH)) * 1e-3).float()
        (GradientOnDevice.apply(host.model(inputs(0))) * weight).sum().backward()
        assert host.hooker.errors == 0
    found = arrived(ring)
    place = "second:gradient", 0
    expect_rows({place: found[place]}, {place: weight.reshape(GRID, WIDTH).numpy()})
    assert _formats(found)["second:gradient"] == {(Dtype.FLOAT32, Quantization.NONE)}
    assert _formats(found)["second"] == {(Dtype.BFLOAT16, Quantization.BF16)}


class GradientOnDevice(torch.autograd.Function):
    """Gives the gradient of what it is given on the device."""

    @staticmethod
    def forward(_, x):
        return x.as_subclass(torch.Tensor).clone()

    @staticmethod
    def backward(_, gradient):
        return gradient.as_subclass(OnDevice)


def _formats(found):
    """How the packets of each hook point say that they are stored."""
    return {
        name: {
            (Dtype(int(part[2]["dtype"])), Quantization(int(part[2]["quantization"])))
            for place, parts in found.items() if place[0] == name for part in parts
        }
        for name, _ in found
    }  # fmt: skip


def test_the_device_rounds_as_the_ring_does(ring):
    """Bit for bit, ties, infinities and overflow included; a NaN stays one."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 4096, np.uint64).astype(np.uint32)
    bits[:6] = [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x00000001]
    source = torch.from_numpy(bits.view(np.float32).reshape(-1, 8).copy())
    out = torch.empty(len(source), 8, dtype=torch.bfloat16)
    select_rows(out, source, torch.arange(len(source)))
    header = np.zeros(1, HEADER_DTYPE)
    header["width"] = 8
    ours = []
    with Writer(ring) as writer, Reader(ring, "hook") as reader:
        header["account"] = writer.account("x")
        for first in range(0, len(source), 32):
            address = source[first].data_ptr()
            writer.publish_block(
                0, header, None, address, 32, None, 32, int(Dtype.FLOAT32), int(Quantization.BF16)
            )
            for view in reader.pull(1, 1.0):
                ours.append(parse_packet(memoryview(view.copy()), ["x"]).payload)
                reader.consumed(view)
                view.release()
    theirs = out.view(torch.uint16).numpy()
    finite = ~np.isnan(source.numpy())
    assert (np.concatenate(ours)[finite] == theirs[finite]).all()
    assert torch.isnan(out).numpy()[~finite].all()


def test_autocast_changes_the_type_and_nothing_else(ring, device):
    """A slot takes rows of whatever type the module returns."""
    with Host(ring, device) as host, torch.autocast("cpu", torch.bfloat16):
        expected = run(host.model, host.hooker, range(2))
        assert host.hooker.errors == 0
    found = arrived(ring)
    expect_rows(found, expected, tolerance=0.05)
    assert Dtype(int(found["first", 0][0][2]["dtype"])) is Dtype.BFLOAT16


@pytest.mark.parametrize("way", ["wrapped", "in place"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_compiled_model_calls_its_hooks(ring, way):
    """Hooks run also where the model was compiled, and had run, before it was hooked."""
    model = Model(None, None)
    compiled = torch.compile(model, backend="eager") if way == "wrapped" else model
    if way == "in place":
        model.compile(backend="eager")
    with torch.no_grad(), Writer(ring) as writer, Control(ring) as control:
        compiled(inputs(0))
        with ActivationHooker(model, POINTS, RingProducer(writer), control, root=compiled) as hooker:
            expected = run_compiled(compiled, model, hooker)
        assert (hooker.errors, hooker.calls) == (0, {"first": 3, "second": 3})
    expect_rows(arrived(ring), expected, tolerance=1e-5)


def run_compiled(compiled, model, hooker):
    class Both:
        first, second = model.first, model.second

        def __call__(self, x):
            return compiled(x)

    return run(Both(), hooker, range(3))
