"""CONSUMER mode in the host: capture queue, the hook's thread, and what others see of both."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.bus.servers import started
from tests.hosts.test_frame import PLAN, POINT, steps

from asysi.bus.accounts import read_accounts
from asysi.bus.capture_queue import HOOK, mirrored
from asysi.bus.factory import create_data_bus
from asysi.bus.mailbox import CaptureWord
from asysi.bus.plan import StreamPlan
from asysi.bus.queue_server import KEY
from asysi.bus.served import ReaderRecord, StreamRecord
from asysi.bus.states import DropReason, ProducerState, ReaderState, StreamEnd
from asysi.bus.stream import StreamError
from asysi.contract.runtime import BUS_RING, CAPTURE_RING, POINTS_FILE, Container
from asysi.contract.spec import ScanExperiment
from asysi.finish.rings import FinishedRings
from asysi.hosts.frame import open_host
from asysi.model.points import points_to_json
from asysi.monitor.worker import Worker

ROOT = Path(__file__).parents[2]
ROWS = 20 * 6
"""Rows of the whole run at its hook point."""


@pytest.fixture
def worker(tmp_path):
    """A host in CONSUMER mode, its queue server, and the bus that prepare creates."""
    made = worker_in(tmp_path)
    made.shm.mkdir()
    made.workspace.mkdir()
    made.output.mkdir()
    (made.workspace / POINTS_FILE).write_text(points_to_json([POINT]))
    server = started([sys.executable, "-m", "asysi.bus.serve_queues", str(made.shm)], made.shm / KEY)
    create_data_bus(made.experiment.spec, made.shm).create(
        StreamPlan(BUS_RING, 1, 256, 1 << 18, ("sae",), 4, "drop_new")
    )
    yield made
    server.kill()
    server.wait()


def worker_in(folder):
    """Return the host's worker; its experiment watches one linear layer."""
    spec = {
        "mode": "CONSUMER",
        "model": {"uri": "file:///model"},
        "data": {"uri": "jsonl:///rows.jsonl"},
        "workload": {"scan": {}},
        "capture": {"hookPoints": ["0"]},
    }
    experiment = ScanExperiment.model_validate({"metadata": {"name": "x"}, "spec": spec})
    return Worker(Container.HOST, experiment, folder / "shm", folder / "out", folder / "ws", 0, 0)


def run(worker, act=lambda number: None):
    """Run the model for 20 steps of six tokens."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with open_host(worker) as host, torch.no_grad():
        way = host.watch(model, PLAN)
        for step in way.steps(steps(0, 20)):
            model(torch.ones(2, 3, 4))
            act(step.tokens.step)


def streams(worker):
    """Return the counters of both streams, as another process sees them."""
    spec = worker.experiment.spec
    return [
        read_accounts(create_data_bus(spec, worker.shm, name).control()) for name in (CAPTURE_RING, BUS_RING)
    ]


def test_everything_captured_is_on_the_bus(worker):
    """The thread quantises and publishes every row, ends the bus, and the ledger of both hops balances."""
    run(worker)
    capture, bus = streams(worker)
    made = capture.produced["0"]
    assert (made.seen, made.published, made.sampled_out, dict(made.dropped)) == (ROWS, ROWS, 0, {})
    assert capture.consumers[HOOK].consumed["0"].durable == bus.produced["0"].published == ROWS
    assert (capture.state, bus.state) == (ProducerState.COMPLETE, ProducerState.COMPLETE)
    assert capture.consumers[HOOK].state is ReaderState.FINALISED
    with create_data_bus(worker.experiment.spec, worker.shm).consumer("sae") as stream:
        packets = stream.pull(64, 1.0)
        assert sum(len(packet.rows) for packet in packets) == ROWS
        assert {packet.payload.itemsize for packet in packets} == {2}, "bf16 is what the spec asks for"
        assert [int(packet.header["step"]) for packet in packets] == list(range(20))


def test_others_see_the_hosts_progress(worker):
    """Before the host they see an absent stream; after it the words of its mailbox."""
    capture, _ = streams(worker)
    assert capture.state is ProducerState.ABSENT
    assert capture.consumers[HOOK].state is ReaderState.ABSENT
    run(worker)
    snapshot = FinishedRings(worker.experiment.spec, worker.shm).snapshot()
    assert (snapshot.host.steps, snapshot.host.steps_total) == (20, 20)
    control = create_data_bus(worker.experiment.spec, worker.shm, CAPTURE_RING).control()
    assert control.get(CaptureWord.TOKENS) == ROWS
    with pytest.raises(StreamError, match="the host's process"):
        control.set(CaptureWord.TOKENS, 0)


def test_a_host_that_fails_ends_the_attempt(worker):
    """An exception in the model's loop ends the bus as an attempt that is over."""

    def fail(number):
        if number == 10:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        run(worker, fail)
    create_data_bus(worker.experiment.spec, worker.shm).control()
    assert streams(worker)[1].state is ProducerState.ATTEMPT_OVER


def test_a_killed_host_ends_the_attempt(worker, tmp_path):
    """Killed with -9, it leaves an attempt that is over and a ledger that balances."""
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.hosts import test_hook_beside as suite\n"
        "def act(number):\n"
        "    if number == 15: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"suite.run(suite.worker_in(Path({str(tmp_path)!r})), act)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, env=os.environ)
    assert process.returncode == -signal.SIGKILL
    with create_data_bus(worker.experiment.spec, worker.shm).consumer("sae") as stream:
        while stream.ended() is None:
            stream.pull(16, 0.1)
        assert stream.ended() is StreamEnd.ATTEMPT_OVER
    capture, bus = streams(worker)
    assert (capture.state, bus.state) == (ProducerState.ATTEMPT_OVER, ProducerState.ATTEMPT_OVER)
    for point, made in capture.produced.items():
        assert made.seen == made.published + made.sampled_out + sum(made.dropped.values())
        assert made.published == capture.consumers[HOOK].consumed[point].durable
        assert made.published == (bus.produced[point].published if point in bus.produced else 0)


def _bus(state, published, dropped=0):
    lost = [0] * len(DropReason)
    lost[DropReason.RING_FULL] = dropped
    made = {
        "seen": published + dropped,
        "published": published,
        "sampled_out": 0,
        "packets": 1,
        "dropped": lost,
    }
    return StreamRecord(state, 1, 1, 8, ["0"], [made], {})


def _note(published):
    made = {
        "seen": published + 5,
        "published": published,
        "sampled_out": 5,
        "packets": 1,
        "dropped": [0] * len(DropReason),
    }
    hook = {"state": "attached", "cursor": 1, "lag": 0.5, "consumed": [], "gauges": [[0.0] * 8]}
    return {
        "state": "attached", "generation": 1, "head": 3, "depth": 8, "names": ["0"], "produced": [made],
        "readers": {HOOK: hook},
    }  # fmt: skip


@pytest.mark.parametrize(("noted", "arrived"), [(30, 20), (20, 20), (20, 30)])
def test_what_died_with_the_host_is_dropped(noted, arrived):
    """Rows in its queue count as dropped (crash); a note older than the bus's rows is corrected by them."""
    found = mirrored(_note(noted), _bus(ProducerState.ATTEMPT_OVER, arrived - 4, dropped=4))
    [made], [used] = found.produced, found.readers[HOOK].consumed
    assert made["published"] == used["durable"] == arrived
    assert made["dropped"][DropReason.CRASH] == max(0, noted - arrived)
    assert made["seen"] == made["published"] + made["sampled_out"] + sum(made["dropped"])
    assert found.readers[HOOK].state is ReaderState.CHECKPOINTED


def test_a_hook_point_that_no_note_names_is_counted_by_the_bus():
    """A host that dies between its first packet and its first note about it has published what arrived."""
    note = _note(0) | {"names": [], "produced": []}
    note["readers"][HOOK]["gauges"] = []
    found = mirrored(note, _bus(ProducerState.ATTEMPT_OVER, 16, dropped=4))
    [made], [used] = found.produced, found.readers[HOOK].consumed
    assert (found.names, made["seen"], made["published"], used["durable"]) == (["0"], 20, 20, 20)
    assert len(found.readers[HOOK].gauges) == 1


def test_a_living_host_has_rows_on_their_way():
    """While it lives, rows in its queue are published and not durable yet, and nothing is dropped."""
    found = mirrored(_note(30), _bus(ProducerState.ATTACHED, 20))
    assert found.produced[0]["published"] == 30
    assert found.readers[HOOK].consumed == [{"position": 20, "durable": 20, "lapped": 0, "rolled_back": 0}]
    assert found.readers[HOOK] == ReaderRecord(
        ReaderState.ATTACHED, 1, 0.5, found.readers[HOOK].consumed, [[0.0] * 8]
    )
