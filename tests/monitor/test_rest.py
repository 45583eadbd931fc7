"""A worker that is done: quiet, alive, its own memory freed, and 0 when it is asked to go."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import weakref
from types import SimpleNamespace

import pytest

from asysi.contract.runtime import Env, Exit
from asysi.monitor import process
from asysi.monitor.rest import idle_until_terminated
from asysi.monitor.worker import StopSignal
from asysi_ring import Control, Reader, RingError, Writer, create

pytestmark = pytest.mark.timeout(120)


class Holder:
    """What a worker holds while it works."""

    def status(self):
        """Return an answer."""
        return {"rows": 7}


def test_what_the_worker_held_is_freed_and_its_last_answer_stays():
    """Resting holds the answer, not the one who gave it."""
    holder, health = Holder(), SimpleNamespace(ready=lambda: None, beat=lambda: None)
    worker = SimpleNamespace(status=holder.status, attempt=0, health=health, stop=StopSignal(terminated=True))
    freed = weakref.ref(holder)
    del holder
    assert idle_until_terminated(worker) == Exit.OK
    assert freed() is None
    assert worker.status() == {"rows": 7}


@pytest.mark.parametrize(("ended", "code"), [(False, Exit.TERMINATED), (True, Exit.OK)])
def test_only_what_is_cut_short_ends_with_143(monkeypatch, ended, code):
    """SIGTERM during the work is 143; after the stream's end, even in the same moment, it is 0."""
    answers = iter([False, ended])
    monkeypatch.setattr(process, "has_ended", lambda _worker: next(answers))
    worker = SimpleNamespace(stop=StopSignal(terminated=True))
    assert process._work(worker, lambda _worker: Exit.OK) == code


@pytest.fixture
def archiver(tmp_path):
    """Return a function that starts the archiver on an empty stream, and its ring's folder."""
    (tmp_path / "shm").mkdir()
    bus = str(tmp_path / "shm" / "bus")
    create(bus, shards=1, chunks=64, chunk_bytes=4096, readers=["archiver"], policy="overwrite")
    spec = {
        "model": {"uri": "python://nothing:here"},
        "workload": {"scan": {}},
        "capture": {"hookPoints": ["**"]},
    }
    tree = {
        "apiVersion": "asysi.dev/v1alpha1",
        "kind": "ScanExperiment",
        "metadata": {"name": "x"},
        "spec": spec,
    }
    (tmp_path / "experiment.json").write_text(json.dumps(tree))
    started = []

    def start(port):
        environment = {
            **os.environ,
            Env.CONFIG: str(tmp_path / "experiment.json"),
            Env.SHM: str(tmp_path / "shm"),
            Env.OUTPUT: str(tmp_path / "output"),
            Env.WORKSPACE: str(tmp_path),
            Env.PORT: str(port),
            "ASYSI_BIND": "127.0.0.1",
        }
        started.append(subprocess.Popen([sys.executable, "-m", "asysi.archive"], env=environment))
        return started[-1]

    yield start, bus
    for one in started:
        one.kill()
        one.wait()


def test_a_worker_that_is_done_waits(archiver, tmp_path):
    """Done, it lives, answers /livez, writes nothing more, and ends with 0 when asked; so does its heir."""
    start, bus = archiver
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Writer(bus) as writer, Control(bus) as control:
        writer.close("complete")
        for life in range(2):
            done = start(port)
            _until(lambda: control.reader_state("archiver") == "finalised")
            _until(lambda: _livez(port) == 200)
            if life == 0:  # its lock is held: nobody else may be this reader
                with pytest.raises(RingError):
                    Reader(bus, "archiver").close()
            written = _written(tmp_path / "output")
            assert done.poll() is None
            done.send_signal(signal.SIGTERM)
            assert done.wait(30) == Exit.OK
            assert _written(tmp_path / "output") == written


def _written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def _livez(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5) as answer:
            return answer.status
    except (urllib.error.URLError, OSError):
        return None


def _until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
