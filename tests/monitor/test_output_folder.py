"""An output folder under several hands: real processes, their locks, and workers in a foreign folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_WORKER = """
import sys, time
from asysi.contract.runtime import Container
from asysi.monitor.process import run_worker

def main(worker):
    print(f"attempt {worker.attempt}", flush=True)
    while not worker.stop.requested:
        time.sleep(0.01)
    return 0

run_worker(Container(sys.argv[1]), main)
"""


class Folder:
    """An output folder and the workers that were started in it."""

    def __init__(self, path: Path, experiment: Callable[..., Any]) -> None:
        self.path, self.output, self._experiment = path, path / "output", experiment
        self.running: list[subprocess.Popen[str]] = []

    def start(
        self, container: str, spec: Any = None, *, attempt: int = 0, **metadata: Any
    ) -> "subprocess.Popen[str]":
        """Start a worker of an experiment."""
        tree = self._experiment(spec or {})
        tree["metadata"] |= metadata
        config = self.path / f"{len(self.running)}.json"
        config.write_text(json.dumps(tree))
        environment = os.environ | {
            "ASYSI_CONFIG": str(config),
            "ASYSI_SHM": str(self.path / "shm"),
            "ASYSI_OUTPUT": str(self.output),
            "ASYSI_WORKSPACE": str(self.path / "workspace"),
            "ASYSI_ATTEMPT": str(attempt),
        }
        self.running.append(
            subprocess.Popen(
                [sys.executable, "-c", _WORKER, container],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return self.running[-1]

    def enters(self, container: str, spec: Any = None, **more: Any) -> int:
        """Start a worker that is let in; return the number of its attempt, and end it."""
        process = self.start(container, spec, **more)
        number = entered(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
        return number

    def refuses(self, container: str, spec: Any = None, **more: Any) -> str:
        """Start a worker that is not let in; return its words."""
        process = self.start(container, spec, **more)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2, said
        assert "Traceback" not in said
        return said


def entered(process: "subprocess.Popen[str]") -> int:
    """Wait until a worker does its work; return the number of its attempt."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("attempt "), process.stderr and process.stderr.read()
    return int(line.split()[1])


@pytest.fixture
def folder(tmp_path: Path, minimal: Callable[..., Any]) -> Iterator[Folder]:
    """An output folder; workers that still run at the end are killed."""
    made = Folder(tmp_path, minimal)
    yield made
    for process in made.running:
        process.kill()
        process.communicate()


def begin(folder: Folder) -> None:
    """Leave behind what a run leaves."""
    (folder.output / "checkpoints").mkdir(exist_ok=True)
    (folder.output / "checkpoints" / "topk.ckpt").touch()


def test_prepare_takes_the_folder_and_the_others_find_it_so(folder: Folder) -> None:
    """The folder is recorded as the experiment's; its own workers enter, also in later attempts."""
    assert folder.enters("prepare", uid="a") == 0
    recorded = json.loads((folder.output / "identity.json").read_text())
    assert (recorded["namespace"], recorded["name"], recorded["uid"]) == ("default", "minimal", "a")
    begin(folder)
    for container in ("archiver", "sae", "hook", "host", "finish"):
        assert folder.enters(container, uid="a", attempt=1) == 1
    assert folder.enters("prepare", uid="a", attempt=1) == 1


@pytest.mark.parametrize("container", ["prepare", "pipeline", "archiver", "sae", "hook", "host", "finish"])
def test_a_foreign_folder_is_refused_by_name(folder: Folder, container: str) -> None:
    """A worker that finds the folder of another experiment leaves with 2, names it and touches nothing."""
    folder.enters("prepare", uid="a", name="other")
    begin(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.output.rglob("*") if path.is_file()}
    said = folder.refuses(container, uid="b")
    assert str(folder.output) in said
    assert "default/other" in said
    assert "spec.output.path" in said
    assert {path: path.stat().st_mtime_ns for path in folder.output.rglob("*") if path.is_file()} == before


def test_a_restored_experiment_goes_on_behind_the_first_one(folder: Folder) -> None:
    """Another uid of the same name continues, and the first one may not any more."""
    folder.enters("prepare", uid="a")
    begin(folder)
    folder.enters("prepare", uid="b")
    folder.enters("archiver", uid="b", attempt=1)
    assert "has become that of" in folder.refuses("archiver", uid="a")


def test_nobody_takes_a_folder_from_under_a_worker(folder: Folder) -> None:
    """A pod that outlives its experiment keeps the folder until it is gone; the successor waits for it."""
    folder.enters("prepare", uid="a")
    old = folder.start("archiver", uid="a")
    entered(old)
    begin(folder)
    new = folder.start("prepare", uid="b")
    time.sleep(1.5)
    assert new.poll() is None
    assert json.loads((folder.output / "identity.json").read_text())["uid"] == "a"
    old.kill()
    entered(new)
    assert json.loads((folder.output / "identity.json").read_text())["uid"] == "b"


def test_a_folder_that_stays_in_use_is_refused(folder: Folder) -> None:
    """Whoever does not get the folder in the grace period and a little says so, and leaves with 2."""
    spec = {"lifecycle": {"gracePeriodSeconds": 1}}
    folder.enters("prepare", spec, uid="a")
    entered(folder.start("archiver", spec, uid="a"))
    assert "is in use by workers of another experiment" in folder.refuses("prepare", spec, uid="b")


def test_shards_of_a_pipeline_enter_side_by_side(folder: Folder) -> None:
    """Several pods of one experiment may begin at once."""
    shards = [folder.start("pipeline", uid="a") for _ in range(3)]
    assert [entered(shard) for shard in shards] == [0, 0, 0]


def test_resuming_by_hand(folder: Folder) -> None:
    """Without a uid nothing is known about the owner: the user says it with output.resume, or is refused."""
    folder.enters("prepare")
    begin(folder)
    assert "may still run" in folder.refuses("prepare")
    assert folder.enters("prepare", {"output": {"resume": True}}) == 0
    assert folder.enters("prepare", attempt=1) == 1
