"""The SAE worker on a real ring: the books balance to the row, whatever ends or kills it."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pod import SECONDS, WorkerPod

import asysi_ring
from asysi.bus.mailbox import CaptureWord, Gauge
from asysi.bus.packet import HEADER_DTYPE, MAGIC, ROW_DTYPE, VERSION, Dtype, RowFlag
from asysi.bus.ring import CppShardedSPMCBus
from asysi.bus.stream import shard_of
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Container, Exit
from asysi.contract.spec import ScanExperiment
from asysi.monitor.worker import Worker
from asysi.sae.checkpoint import read_checkpoint
from asysi.sae.export import load
from asysi.sae.worker import READER, SAETrainerWorker

POINTS = ["layer.0", "layer.1"]
ROWS, WIDTH, SHARDS = 24, 16, 2
TRAINER = {
    "latents": 64,
    "k": 4,
    "batch": 32,
    "buffer": {"batches": 4, "sequences": 20},
    "checkpointSeconds": 1,
}


class Pod(WorkerPod):
    """A pod whose bus has a producer, and an SAE worker."""

    def __init__(self, folder: Path, *, trainers=({},), attempt=0, chunks=256):
        spec = {
            "model": {"uri": "python://nothing:here"},
            "workload": {"scan": {}},
            "capture": {"hookPoints": ["**"]},
            "sae": {"train": [{**TRAINER, **changes} for changes in trainers]},
        }
        super().__init__(folder, spec, shm=folder / f"shm-{attempt}", attempt=attempt)
        asysi_ring.create(
            str(self.shm / "bus"), shards=SHARDS, chunks=chunks, chunk_bytes=8192, readers=[READER],
            policy="overwrite",
        )  # fmt: skip
        asysi_ring.create(
            str(self.shm / "capture" / "rank-0"), shards=1, chunks=32, chunk_bytes=4096, readers=["hook"],
            policy="drop_new",
        )  # fmt: skip
        self.writer = asysi_ring.Writer(str(self.shm / "bus"))
        self.control = asysi_ring.Control(str(self.shm / "bus"))
        self.steps = 0

    def publish(self, steps, *, wait=True):
        """Publish packets of every point; with `wait` no faster than the worker reads."""
        for _ in range(steps):
            for point in POINTS:
                self._publish(point)
            self.steps += 1
            while wait and self.control.lag(READER) > 0.5:
                time.sleep(0.001)

    def _publish(self, point):
        rng = np.random.default_rng([self.steps, *point.encode()])
        values = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
        header = np.zeros(1, HEADER_DTYPE)
        header["magic"], header["version"], header["header_bytes"] = MAGIC, VERSION, HEADER_DTYPE.itemsize
        header["account"], header["step"], header["attempt"] = (
            self.writer.account(point),
            self.steps,
            self.attempt,
        )
        header["width"], header["dtype"] = WIDTH, Dtype.FLOAT32
        records = np.zeros(ROWS, ROW_DTYPE)
        records["sequence"] = np.arange(ROWS) // 8
        records["flags"][: 8 if self.steps % 4 == 0 else 0] = RowFlag.HOLDOUT
        assert self.writer.publish_block(
            shard_of(point, SHARDS), header, records, values.ctypes.data, WIDTH * 4, None, ROWS,
            Dtype.FLOAT32, 0,
        )  # fmt: skip

    def start(self, *command):
        process = self.launch(*(command or ("-m", "asysi.sae")))
        self.until(lambda: self.control.reader_state(READER) == "attached" or process.poll() is not None)
        return process

    def worker(self):
        """Return the worker in this process, attached to the bus."""
        experiment = ScanExperiment.model_validate(json.loads(self.config.read_text()))
        frame = Worker(Container.SAE, experiment, self.shm, self.output, self.workspace, self.attempt, port=0)
        return frame, SAETrainerWorker(frame, CppShardedSPMCBus(self.shm / "bus").consumer(READER))

    def ended(self, process):
        """Ask the worker to go once the stream has ended, as the pod's end does; return its exit code."""
        self.until(lambda: self.control.reader_state(READER) in {"finalised", "checkpointed"})
        process.terminate()
        return process.wait(SECONDS)

    def books(self):
        """Return each point's books; all rows published must have their fate."""
        books = []
        for point, produced, consumed in zip(
            self.control.accounts(), self.control.produced(), self.control.consumed(READER), strict=True
        ):
            assert (
                produced["published"] == consumed["durable"] + consumed["lapped"] + consumed["rolled_back"]
            ), point
            books.append(consumed)
        return books

    def counts(self, trainer="topk"):
        """Return each point's counts as the checkpoint has them."""
        checkpoint = read_checkpoint(self.output / "checkpoints" / f"{trainer}.ckpt")
        return [checkpoint.words["points"][point]["counts"] for point in POINTS]

    def results(self, trainer="topk"):
        """Return each point's counts at the end; the last checkpoint is from before the drain."""
        record = json.loads((self.output / "sae" / trainer / "training.json").read_text())
        return [record["points"][point] for point in POINTS]

    def close(self):
        super().close()
        self.writer.close()
        self.control.close()


@pytest.fixture
def pod(tmp_path):
    pods = []

    def make(**options):
        pods.append(Pod(tmp_path, **options))
        return pods[-1]

    yield make
    for each in pods:
        each.close()


@pytest.fixture(autouse=True)
def _like_the_worker():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def test_terminated_then_to_the_end(pod):
    """SIGTERM leaves a checkpoint of all that was read and 143; the next process ends the work."""
    run = pod()
    process = run.start()
    run.publish(60)
    run.until(lambda: run.control.consumed(READER)[0]["position"] > 20 * ROWS)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == Exit.TERMINATED, run.text()
    read = [books["durable"] for books in run.control.consumed(READER)]
    assert read == [counts["received"] for counts in run.counts()]
    process = run.start()
    run.publish(60)
    run.writer.close("complete")
    assert run.ended(process) == Exit.OK, run.text()
    assert run.control.reader_state(READER) == "finalised"
    for books, counts, gauges in zip(run.books(), run.results(), run.control.gauges(READER), strict=True):
        assert (books["durable"], books["lapped"], books["rolled_back"]) == (120 * ROWS, 0, 0)
        assert counts["trained"] == 120 * ROWS - counts["held_out"] == gauges[Gauge.TRAINED]
        assert 0 < gauges[Gauge.FVU] < 2
    for point in POINTS:
        folder = run.output / "sae" / "topk" / point
        assert load(folder).encode(torch.randn(5, WIDTH)).shape == (5, 64)
        metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
        record = json.loads((run.output / "sae" / "topk" / "training.json").read_text())["points"][point]
        assert record["why"] is None
        assert record["curve"][-1] == [record[key] for key in ("trained", "loss", "fvu", "l0", "dead")]
        assert (metadata["hook_name"], metadata["asysi"]["trained"]) == (point, 120 * ROWS - 30 * 8)


def test_killed_at_any_moment(pod):
    """Killed by -9 twice while packets are lapped too, it goes on, and every row has exactly one fate."""
    run = pod(chunks=64)
    rng = np.random.default_rng()
    for _ in range(2):
        process = run.start()
        deadline = time.monotonic() + rng.uniform(0.5, 2.5)
        while time.monotonic() < deadline:
            run.publish(5, wait=False)
            time.sleep(0.005)
        process.kill()
        process.wait()
    process = run.start()
    run.publish(50)
    run.writer.close("complete")
    assert run.ended(process) == Exit.OK, run.text()
    for books, counts in zip(run.books(), run.results(), strict=True):
        assert books["durable"] == counts["received"] == counts["trained"] + counts["held_out"]


_DIES_BEFORE_THE_BOOKS = """
import os, signal
from asysi.bus.ring import RingConsumer
from asysi.contract.runtime import Container
from asysi.monitor.process import run_worker
from asysi.sae.worker import main
RingConsumer.acknowledge = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
run_worker(Container.SAE, main)
"""


def test_killed_between_checkpoint_and_books(pod):
    """A kill after the checkpoint was written, before the ring knows of it, loses and repeats nothing."""
    run = pod()
    run.publish(20, wait=False)
    process = run.start("-c", _DIES_BEFORE_THE_BOOKS)
    assert process.wait(SECONDS) == -signal.SIGKILL, run.text()
    assert all(books["durable"] == 0 < books["position"] for books in run.control.consumed(READER))
    run.writer.close("complete")
    _, worker = run.worker()
    assert worker.run() == Exit.OK
    for books, counts in zip(run.books(), run.counts(), strict=True):
        assert (books["durable"], books["rolled_back"]) == (20 * ROWS, 0)
        assert counts["received"] == 20 * ROWS


def test_an_attempt_that_is_over_is_kept_for_the_next(pod):
    """When the host died, all is checkpointed and nothing exported; the next attempt goes on from there."""
    run = pod()
    run.publish(30, wait=False)
    run.writer.close("attempt_over")
    _, worker = run.worker()
    assert worker.run() == Exit.OK
    assert run.control.reader_state(READER) == "checkpointed"
    assert not (run.output / "sae").exists()
    assert all(books["durable"] == 30 * ROWS for books in run.books())
    following = pod(attempt=1)
    following.steps = 30
    following.publish(30, wait=False)
    following.writer.close("complete")
    _, worker = following.worker()
    assert worker.run() == Exit.OK
    assert all(books["durable"] == 30 * ROWS for books in following.books())
    assert all(counts["received"] == 60 * ROWS for counts in following.counts())
    log = read_checkpoint(run.output / "checkpoints" / "topk.ckpt").words["log"]
    assert sorted(log) == [
        f"{attempt}/{shard}" for attempt in (0, 1) for shard in {shard_of(p, SHARDS) for p in POINTS}
    ]


def test_several_trainers_share_a_stream(pod):
    """Each trainer trains on the points that it names; books and gauges are those of the stream."""
    run = pod(trainers=[{"name": "small", "latents": 32}, {"name": "one", "hookPoints": ["layer.1"]}])
    capture = asysi_ring.Control(str(run.shm / "capture" / "rank-0"))
    capture.set(CaptureWord.STEPS_TOTAL, 40)
    run.publish(40, wait=False)
    run.writer.close("complete")
    frame, worker = run.worker()
    assert worker.run() == Exit.OK
    found = sorted(
        str(path.parent.relative_to(run.output / "sae")) for path in run.output.glob("sae/*/*/cfg.json")
    )
    assert found == ["one/layer.1", "small/layer.0", "small/layer.1"]
    assert load(run.output / "sae" / "small" / "layer.0").latents == 32
    assert all(books["durable"] == 40 * ROWS for books in run.books())
    trainers = frame.status()["trainers"]
    assert trainers["one"]["layer.1"]["trained"] == trainers["small"]["layer.1"]["trained"] > 0
    words = read_checkpoint(run.output / "checkpoints" / "one.ckpt").words
    assert words["points"]["layer.1"]["progress"]["steps_total"] == 40
    capture.close()


@pytest.mark.parametrize(
    ("sequences", "opened", "said"), [(0, 0, None), (40, 40, True), (40, 0, False), (40, 39, None)]
)
def test_the_host_says_how_sequences_began(pod, sequences, opened, said):
    """prepend_bos is true when all sequences began with BOS, false when none did, null when only some did."""
    run = pod()
    with asysi_ring.Control(str(run.shm / "capture" / "rank-0")) as capture:
        capture.set(CaptureWord.SEQUENCES, sequences)
        capture.set(CaptureWord.SEQUENCES_OPENED, opened)
    run.publish(20, wait=False)
    run.writer.close("complete")
    _, worker = run.worker()
    assert worker.run() == Exit.OK
    for file in run.output.glob("sae/*/*/cfg.json"):
        assert json.loads(file.read_text())["metadata"]["prepend_bos"] is said


def test_a_glob_that_matches_nothing_is_refused(pod):
    """A trainer without a hook point to train on is an error before anything is read."""
    run = pod(trainers=[{"hookPoints": ["decoder.*"]}])
    (run.workspace / "points.json").write_text(json.dumps([{"path": point} for point in POINTS]))
    with pytest.raises(ConfigError, match=r"spec\.sae\.train\[0\]\.hookPoints.*decoder"):
        run.worker()
