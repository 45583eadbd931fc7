"""The frame of a host: what a row of the table of workloads changes in it."""

import dataclasses
import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tests.bus.memory import MemoryBus, MemoryControl

from asysi.bus.mailbox import CaptureWord
from asysi.bus.packet import ROW_DTYPE
from asysi.bus.states import StreamEnd
from asysi.contract.runtime import CAPTURE_RING, POINTS_FILE, RANGES_FILE, Container
from asysi.contract.spec import ScanExperiment
from asysi.contract.workloads import WORKLOADS
from asysi.hosts import frame
from asysi.hosts.frame import SEEN_FILE, HostPlan, Step, open_host
from asysi.hosts.progress import PROGRESS_FILE, StepMark
from asysi.model.points import HookPoint, points_to_json
from asysi.monitor.worker import Worker
from asysi.text.grid import StepTokens
from asysi_ring import Control, create

POINT = HookPoint("0", None, (2, 3, 4))
PLAN = HostPlan(context_length=3, steps=20, tokens=120)


@pytest.fixture
def worker(tmp_path):
    """A host's worker, with a capture ring, in its second attempt; the first came to step 4."""
    shm = Path("/dev/shm") / f"asysi-test-{uuid.uuid4().hex}"
    (shm / CAPTURE_RING).parent.mkdir(parents=True)
    create(
        str(shm / CAPTURE_RING), shards=1, chunks=64, chunk_bytes=1 << 14, readers=["hook"], policy="drop_new"
    )
    spec = {
        "model": {"uri": "file:///model"},
        "data": {"uri": "jsonl:///rows.jsonl"},
        "workload": {"scan": {}},
        "capture": {"hookPoints": ["0"]},
    }
    experiment = ScanExperiment.model_validate(
        {
            "apiVersion": "asysi.dev/v1alpha1",
            "kind": "ScanExperiment",
            "metadata": {"name": "x"},
            "spec": spec,
        }
    )
    output, workspace = tmp_path / "out", tmp_path / "ws"
    (output / PROGRESS_FILE).parent.mkdir(parents=True)
    workspace.mkdir()
    earlier = {"attempt": 0, "step": 4, "attempts": {"0": 4}, "tokens": 30, "sequences": 10, "opened": 0}
    (output / PROGRESS_FILE).write_text(json.dumps(earlier))
    (workspace / POINTS_FILE).write_text(points_to_json([POINT]))
    yield Worker(Container.HOST, experiment, shm, output, workspace, 1, 0)
    shutil.rmtree(shm)


def steps(first, last):
    for number in range(first, last):
        rows = np.zeros(6, ROW_DTYPE)
        yield Step(StepTokens(number, 2, 3, rows, np.ones(6, bool)))


def run(worker, plan=PLAN, last=20, act=lambda number: None):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with open_host(worker) as host, torch.no_grad():
        way = host.watch(model, plan)
        for step in way.steps(steps(way.first, last)):
            model(torch.ones(2, 3, 4))
            act(step.tokens.step)
    return json.loads((worker.output / SEEN_FILE).read_text())


def words(worker, *names):
    with Control(str(worker.shm / CAPTURE_RING)) as control:
        return [control.writer_state(), *(control.get(name) for name in names)]


def test_a_resumable_workload_continues(worker):
    """The second attempt begins behind the first one's last step, and its counts go on."""
    seen = run(worker)
    assert (seen["first_step"], seen["steps"], seen["interrupted"]) == (5, 15, False)
    assert words(worker, CaptureWord.STEPS_BEFORE, CaptureWord.TOKENS_BEFORE, CaptureWord.SEQUENCES) == [
        "complete",
        5,
        30,
        40,
    ]
    progress = json.loads((worker.output / PROGRESS_FILE).read_text())
    assert (progress["step"], progress["attempts"], progress["tokens"]) == (19, {"0": 4, "1": 19}, 120)


def test_a_host_publishes_into_any_stream(worker, monkeypatch):
    """Nothing of a host knows the ring: with another bus behind the seam the same rows arrive."""
    bus = MemoryBus(["hook"])
    monkeypatch.setattr(frame, "capture_bus", lambda _: bus)
    with bus.consumer("hook") as hook:
        assert run(worker)["steps"] == 15
        packets = hook.pull(100, 1.0)
        assert [int(packet.header["step"]) for packet in packets] == list(range(5, 20))
        assert {len(packet.rows) for packet in packets} == {6}
        hook.pull(1, 0.0)
        assert hook.ended() is StreamEnd.COMPLETE
    assert bus.table[0].seen == bus.table[0].published == 15 * 6
    assert MemoryControl(bus).get(CaptureWord.STEPS) == 15


def test_another_begins_anew_and_keeps_the_record_of_attempts(worker, monkeypatch):
    """A workload that cannot resume begins with step 0; which attempts have run is known all the same."""
    row = dataclasses.replace(WORKLOADS["scan"], resumable=False)
    monkeypatch.setitem(WORKLOADS, "scan", row)
    seen = run(worker)
    assert (seen["first_step"], seen["steps"]) == (0, 20)
    assert words(worker, CaptureWord.STEPS_BEFORE, CaptureWord.TOKENS_BEFORE) == ["complete", 0, 0]
    assert json.loads((worker.output / PROGRESS_FILE).read_text())["attempts"] == {"0": 4, "1": 19}


def test_steps_may_be_unknown_where_the_row_says_so(worker, monkeypatch):
    """A plan without a number of steps is a defect of the host, unless the workload cannot know it."""
    with pytest.raises(ValueError, match="the plan has no steps"):
        run(worker, HostPlan(context_length=3))
    assert words(worker) == ["gone"]
    monkeypatch.setitem(WORKLOADS, "scan", dataclasses.replace(WORKLOADS["scan"], steps_known=False))
    assert run(worker, HostPlan(context_length=3), last=8)["steps"] == 3
    assert words(worker, CaptureWord.STEPS_TOTAL) == ["complete", 0]


def test_a_signal_ends_the_steps_early(worker):
    """SIGINT after a step: it is booked, no other is run, and the stream is complete and interrupted."""

    def stop(number):
        worker.stop.interrupted = number == 8

    seen = run(worker, act=stop)
    assert (seen["steps"], seen["interrupted"]) == (4, True)
    assert words(worker, CaptureWord.INTERRUPTED) == ["complete", 1]


def test_an_exception_leaves_the_stream_open(worker):
    """A host that fails closes nothing: those behind it see that it is gone, and no coverage is written."""

    def fail(number):
        if number == 7:
            raise OSError("the device is gone")

    with pytest.raises(OSError, match="the device is gone"):
        run(worker, act=fail)
    assert words(worker) == ["gone"]
    assert not (worker.output / SEEN_FILE).exists()
    assert json.loads((worker.output / PROGRESS_FILE).read_text())["attempts"] == {"0": 4, "1": 4}


def test_ranges_that_the_hook_worker_freezes_reach_capture(worker, monkeypatch):
    """On a host with a GPU under int8: those of an earlier attempt before the first step, later ones between
    two steps.
    """
    spec = worker.experiment.spec.model_dump(by_alias=True)
    spec["capture"]["quantization"], spec["resources"]["host"]["gpus"] = "int8", 1
    content = worker.experiment.model_dump(by_alias=True) | {"spec": spec}
    worker = dataclasses.replace(worker, experiment=ScanExperiment.model_validate(content))
    monkeypatch.setattr(frame, "device_for", lambda *_: "cpu")
    monkeypatch.setattr(frame, "cuda_hook", lambda: None)
    monkeypatch.setattr(frame, "_PROGRESS_SECONDS", 0.0)
    given = []
    monkeypatch.setattr(
        frame.ActivationHooker, "freeze", lambda hooker, point, _: given.append((hooker.steps, point))
    )

    def freeze(*points):
        tables = {point: np.ones((2, 4), np.float32) for point in points}
        save_file(tables, worker.output / RANGES_FILE, dict.fromkeys(points, "0 7"))

    freeze("0")
    run(worker, last=9, act=lambda number: freeze("0", "1") if number == 6 else None)
    assert given == [(0, "0"), (2, "1")]


def test_the_mark_survives_a_kill_and_never_goes_back(tmp_path: Path) -> None:
    """The last step is read back by the next attempt, which does not record steps that it repeats."""
    first = StepMark(tmp_path / "host" / "last-step")
    assert first.last == -1
    for step in range(40):
        first.put(step)
    second = StepMark(tmp_path / "host" / "last-step")  # the first was killed: it is not closed
    assert second.last == 39
    second.put(35)
    assert StepMark(tmp_path / "host" / "last-step").last == 39
    second.put(40)
    assert StepMark(tmp_path / "host" / "last-step").last == 40
    (tmp_path / "file").write_text("")
    none = StepMark(tmp_path / "file" / "last-step")
    none.put(1)
    assert none.last == -1
    for mark in (first, second, none):
        mark.close()
