"""The archiver as a process on a real ring: what it declares durable is in the files, whatever kills it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.packets import header_of, packet_of, rows_of
from tests.pod import WorkerPod
from tests.s3 import SECRET, S3Server, s3_server

import asysi_ring
from asysi.archive.dataset import MScanDataset
from asysi.archive.errors import MScanError
from asysi.archive.format import METRICS_DTYPE
from asysi.archive.segment import open_segment
from asysi.archive.series import resume
from asysi.archive.uploading import segments_to_upload
from asysi.archive.verify import verify
from asysi.archive.writer import MScanWriter, SeqInfo
from asysi.bus.packet import Dtype, Quantization
from asysi.contract.runtime import Exit
from asysi.store.results import UploadRecord, upload_segments

POINTS = ["layer.0", "layer.1", "layer.2"]
ROWS, WIDTH = 10, 64


class Pod(WorkerPod):
    """A pod whose bus has a producer, and an archiver."""

    def __init__(self, folder: Path, archive=None, readers=("archiver",), output=None):
        spec = {
            "model": {"uri": "python://nothing:here"},
            "workload": {"scan": {}},
            "capture": {"hookPoints": ["**"]},
            "archive": archive or {},
            "output": output or {},
        }
        super().__init__(folder, spec)
        self.bus = self.shm / "bus"
        asysi_ring.create(
            str(self.bus), shards=2, chunks=64, chunk_bytes=16384, readers=readers, policy="overwrite"
        )
        self.writer = asysi_ring.Writer(str(self.bus))
        self.control = asysi_ring.Control(str(self.bus))
        self.published = {point: [] for point in POINTS}
        self.process = None
        self.steps = 0

    def start(self):
        self.process = self.launch("-m", "asysi.archive")
        self.until(lambda: self.control.reader_state("archiver") == "attached", self.process)

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        """Ask it to go once its stream has ended, as the pod's end does; return its exit code."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < deadline:
            if self.control.reader_state("archiver") in {"finalised", "checkpointed"}:
                self.process.terminate()
                break
            time.sleep(0.02)
        return self.process.wait(timeout=30)

    def publish(self, steps):
        """Publish `steps` steps: a packet at every hook point, whose payload is its step."""
        for _ in range(steps):
            for index, point in enumerate(POINTS):
                header = header_of(width=WIDTH, step=self.steps, account=self.writer.account(point))
                rows = rows_of(ROWS, sample=self.steps)
                payload = np.full((ROWS, WIDTH), self.steps, np.float32)
                assert self.writer.publish_block(
                    index % 2, header, rows, payload.ctypes.data, payload.strides[0], None, ROWS,
                    Dtype.FLOAT32, Quantization.BF16,
                )  # fmt: skip
                self.published[point].append(self.steps)
            self.steps += 1

    def publish_slowly(self, steps):
        """Publish without lapping the archiver."""
        for _ in range(steps):
            self.until(lambda: self.control.lag("archiver") < 0.5, self.process)
            self.publish(1)

    def books(self):
        """published, and what the archiver made of it, of each hook point."""
        produced, consumed = self.control.produced(), self.control.consumed("archiver")
        return {
            point: {**books, "published": made["published"]}
            for point, made, books in zip(self.control.accounts(), produced, consumed, strict=True)
        }

    def dataset(self):
        for path in sorted((self.folder / "output" / "archive").glob("*.mscan")):
            assert verify(path) == []
        return MScanDataset(self.folder / "output")

    def check(self):
        """The books balance, and the files hold exactly the rows that they call durable, bit by bit."""
        dataset = self.dataset()
        for point, books in self.books().items():
            assert books["published"] == len(self.published[point]) * ROWS
            assert books["published"] == books["durable"] + books["lapped"] + books["rolled_back"], books
            steps = [int(p.header["step"]) for p in dataset.packets(point)]
            assert len(steps) * ROWS == books["durable"]
            assert steps == sorted(set(steps))
            for step, block in zip(steps, dataset.tensors(point), strict=True):
                bits = np.array([step], np.float32).view(np.uint32)
                rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).view(np.float32)
                assert (block == rounded).all()
        return dataset

    def close(self):
        super().close()
        self.writer.close()
        self.control.close()


@pytest.fixture
def pod(tmp_path):
    made = []

    def make(**options):
        made.append(Pod(tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_to_the_end(pod):
    """At the end of the stream every row is in the files, the books say so, and the exit code is 0."""
    one = pod()
    one.start()
    one.publish_slowly(200)
    one.writer.close("complete")
    assert one.wait() == Exit.OK
    assert one.control.reader_state("archiver") == "finalised"
    dataset = one.check()
    assert all(books["durable"] == 2000 for books in one.books().values())
    records = dataset.metrics("layer.1")
    assert sorted(set(records["step"].tolist())) == list(range(200))
    assert np.array_equal(records["max"], records["min"])
    assert dataset.segments[0].metadata["experiment"] == "test"


def test_kills(pod):
    """Killed with -9 again and again, the archiver goes on in new segments and the books stay exact."""
    one = pod(archive={"rotate": "200Ki"})
    generator = random.Random(3)
    for _ in range(4):
        one.start()
        for _ in range(generator.randrange(1, 4)):
            one.publish_slowly(generator.randrange(5, 60))
            time.sleep(generator.random() * 0.5)
        one.kill()
        one.publish(generator.randrange(0, 90))
    one.start()
    one.publish_slowly(20)
    one.writer.close("complete")
    assert one.wait() == Exit.OK
    dataset = one.check()
    assert all(books["durable"] > 0 for books in one.books().values())
    assert any(books["rolled_back"] > 0 for books in one.books().values())
    assert len(dataset.segments) >= 4
    assert not list((one.folder / "output" / "archive").glob(".*"))


def test_half_a_row_is_not_durable(tmp_path):
    """After a kill between the two chunks of a flush, rows without their payload are not durable."""
    rows = np.zeros(6, METRICS_DTYPE)
    packet = packet_of(np.ones((4, 2), "<f4"))
    with MScanWriter(tmp_path / "attempt-0002-segment-0006.mscan", {}, attempt=2, segment=6) as writer:
        writer.append_records(rows, SeqInfo("a"))
        writer.append_records(rows, SeqInfo("b"))
        writer.append_tensor(packet)
    assert resume(tmp_path, 2, tensors=True) == (7, {"a": 4})
    assert resume(tmp_path, 2, tensors=False) == (7, {"a": 6, "b": 6})
    assert resume(tmp_path, 1, tensors=True) == (0, {})


def test_marked_durable_survives(pod):
    """Whatever the books call durable at the moment of a kill is in the files."""
    one = pod()
    one.start()
    one.publish_slowly(50)
    one.until(lambda: any(books["durable"] for books in one.books().values()))
    one.publish_slowly(50)
    one.kill()
    promised = {point: books["durable"] for point, books in one.books().items()}
    one.start()
    one.writer.close("complete")
    assert one.wait() == Exit.OK
    one.check()
    assert all(books["durable"] >= promised[point] for point, books in one.books().items())


def test_lapped(pod):
    """An archiver that comes late archives what is left, and what was overwritten counts as lapped."""
    one = pod()
    one.publish(500)
    one.start()
    one.writer.close("complete")
    assert one.wait() == Exit.OK
    one.check()
    assert all(books["lapped"] > 0 for books in one.books().values())


def test_attempt_over(pod):
    """When the host has died, the archiver keeps what it saw and says that it is only a checkpoint."""
    one = pod()
    one.start()
    one.publish_slowly(20)
    one.writer.close("attempt_over")
    assert one.wait() == Exit.OK
    assert one.control.reader_state("archiver") == "checkpointed"
    one.check()


def test_terminated(pod):
    """SIGTERM closes the segment, declares it durable, and ends in 143; a restart goes on."""
    one = pod(archive={"tensors": False, "compression": "zstd"})
    one.start()
    one.publish_slowly(40)
    one.until(lambda: one.control.lag("archiver") == 0)
    assert one.kill(signal.SIGTERM) == Exit.TERMINATED
    assert all(books["durable"] == 400 for books in one.books().values())
    assert len(one.dataset().metrics()) == 1200
    one.start()
    one.publish_slowly(10)
    one.writer.close("complete")
    assert one.wait() == Exit.OK
    assert len(one.dataset().metrics("layer.2")) == 500
    assert not list(one.dataset().packets())
    assert all(books["durable"] == 500 for books in one.books().values())


def test_rotation(pod):
    """Segments are closed at the size asked for, and follow one another without a gap."""
    one = pod(archive={"rotate": "100Ki"})
    one.start()
    one.publish_slowly(300)
    one.writer.close("complete")
    assert one.wait() == Exit.OK
    dataset = one.check()
    assert len(dataset.segments) > 1
    assert [s.number for s in dataset.segments] == list(range(len(dataset.segments)))
    assert [s.path.name for s in dataset.segments][1] == "attempt-0000-segment-0001.mscan"


def test_storage_failure(pod):
    """When storage fails the archiver stops with exit code 1 and a message; the books stay exact."""
    one = pod()
    one.start()
    archive = one.folder / "output" / "archive"
    one.until(archive.exists)
    archive.rmdir()
    archive.write_text("not a folder")
    one.publish(5)
    assert one.wait() == Exit.FAILED
    assert "archive" in one.termination.read_text()
    archive.unlink()
    one.start()
    one.writer.close("complete")
    assert one.wait() == Exit.OK
    assert all(books["rolled_back"] + books["durable"] == 50 for books in one.books().values())


def test_another_run(pod):
    """An archive of another run in the same folder is refused with a sentence and exit code 2."""
    one, other = pod(), pod()
    one.start()
    one.publish_slowly(20)
    one.writer.close("complete")
    assert one.wait() == Exit.OK
    (one.folder / "output" / "archive").rename(other.folder / "output" / "archive")
    other.publish(1)
    other.process = subprocess.Popen(
        [sys.executable, "-m", "asysi.archive"],
        env={
            **os.environ,
            "ASYSI_CONFIG": str(other.folder / "experiment.json"),
            "ASYSI_SHM": str(other.folder / "shm"),
            "ASYSI_OUTPUT": str(other.folder / "output"),
            "ASYSI_WORKSPACE": str(other.folder / "workspace"),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    _, said = other.process.communicate(timeout=30)
    assert other.process.returncode == Exit.CONFIG
    assert "belongs to another run" in said


def test_torn_segments_of_earlier_attempts_are_mended(tmp_path):
    """Where everything was killed at once, the next archiver makes earlier segments readable too."""
    torn = tmp_path / "attempt-0000-segment-0000.mscan"
    MScanWriter(torn, {}, points=[("a", None, 4)]).flush()
    with pytest.raises(MScanError):
        open_segment(torn)
    assert resume(tmp_path, 1, tensors=True) == (0, {})
    assert next(iter(open_segment(torn).points.values())).path == "a"


@pytest.fixture(scope="module")
def s3():
    with s3_server("bucket") as server:
        yield server


class TestStore:
    """`output.uri` in a store: closed segments go there; what is durable stays what is in the folder."""

    def start(self, pod, server, **archive):
        one = pod(archive={"rotate": "64Ki", **archive}, output={"uri": "s3://bucket/run/"})
        one.environment |= server.variables()
        return one

    @staticmethod
    def stored(server):
        return {key.removeprefix("run/archive/") for key in server.keys("run/archive/")}

    def test_killed_and_finished(self, pod, s3, monkeypatch):
        """Whatever kills the archiver, the store gets every segment whole, and finish sends the rest."""
        one = self.start(pod, s3)
        for _ in range(2):
            before = len(self.stored(s3))
            one.start()
            one.publish_slowly(60)
            one.until(lambda before=before: len(self.stored(s3)) > before, one.process)
            one.kill()
        one.start()
        one.publish_slowly(10)
        one.writer.close("complete")
        assert one.wait() == Exit.OK
        local = one.check()
        assert {segment.path.name for segment in local.segments} >= self.stored(s3)
        s3.reach(monkeypatch)
        upload_left(one)
        remote = MScanDataset("s3://bucket/run")
        assert len(remote.segments) == len(local.segments) > 4
        for point in POINTS:
            assert remote.metrics(point).tobytes() == local.metrics(point).tobytes()
        left = b"".join(path.read_bytes() for path in one.folder.rglob("*") if path.is_file())
        assert SECRET.encode() not in left
        assert SECRET not in one.text()

    def test_store_away(self, pod):
        """A store that does not answer costs no row: all are durable in the folder."""
        server = S3Server("bucket")
        one = self.start(pod, server)
        one.start()
        one.publish_slowly(60)
        one.until(lambda: "tried again" in one.text(), one.process)
        one.publish_slowly(60)
        one.writer.close("complete")
        assert one.wait() == Exit.OK
        one.check()
        assert all(books["durable"] + books["lapped"] == 1200 for books in one.books().values())
        assert not (one.output / "uploaded.json").exists()
        assert "its endpoint does not answer" in one.text()


def upload_left(one):
    """Upload what the archiver left, as finish does."""
    closed, torn = segments_to_upload(one.output, UploadRecord(one.output, "s3://bucket/run").segments())
    assert torn == []
    upload_segments(one.output, "s3://bucket/run", closed)
