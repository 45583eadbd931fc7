"""A pod of fakes: what `manifests.build` renders, with stand-ins for the workers' programs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asysi.contract.spec import ScanExperiment
from asysi_operator.local.job import run_objects
from asysi_operator.manifests import build

_FAKE = Path(__file__).with_name("fake_container.py")
_RUNNER = """
import json, sys
from pathlib import Path
from asysi_operator.local.job import run_objects
from asysi.contract.errors import ConfigError
call = json.loads(sys.argv[1])
try:
    sys.exit(run_objects(call["objects"], Path(call["output"]), plain=True, overwrite=call["overwrite"],
                         when_full=call["when_full"], queues=call["queues"],
                         shared=Path(call["shared"]), scratch=Path(call["scratch"])))
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""

Plan = dict[str, Any] | list[dict[str, Any]]


class FakePod:
    """Runs a pod of fakes in folders of its own and reads what they noted."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output"
        # The queue server's socket lies in it: the address of a Unix socket has 107 bytes at most.
        self.shared, self.scratch = Path(tempfile.mkdtemp(prefix="asysi-pod-")), folder / "scratch"
        self.journal_file = folder / "journal"
        self.scratch.mkdir()
        self.plans: dict[str, Plan] = {
            **{name: {} for name in ("archiver", "sae", "hook", "finish")},
            "prepare": {"seconds": 0},
            "host": {"seconds": 0.2},
        }
        self.spec: dict[str, Any] = {}
        self.runner: subprocess.Popen[str] | None = None

    def objects(self, **changes: Any) -> list[dict[str, Any]]:
        """Return the rendered objects, their commands replaced."""
        spec = {
            "model": {"uri": "file://model"},
            "data": {"uri": "jsonl://data"},
            "workload": {"scan": {}},
            "capture": {"hookPoints": ["*"], "size": "1Mi"},
            "bus": {"size": "1Mi"},
            "lifecycle": {"gracePeriodSeconds": 2, **changes},
            **self.spec,
        }
        experiment = ScanExperiment.model_validate({"metadata": {"name": "fake"}, "spec": spec})
        objects = build(experiment, local=True)
        pod = objects[-1]["spec"]["template"]["spec"]
        for container in [*pod["initContainers"], *pod["containers"]]:
            plan = self.plans[container["name"]]
            lives = plan if isinstance(plan, list) else [plan]
            container["command"] = ["python", "-I", "-S", str(_FAKE), container["name"], json.dumps(lives)]
            if "livenessProbe" in container:
                container["livenessProbe"] |= {"periodSeconds": 0.2, "terminationGracePeriodSeconds": 0.3}
        return objects

    def run(
        self,
        *,
        kill_once: str | None = None,
        overwrite: bool = False,
        when_full: str = "stop",
        **lifecycle: Any,
    ) -> int:
        """Run the pod here, to its end."""
        return run_objects(
            self.objects(**lifecycle), self.output, plain=True, kill_once=kill_once, overwrite=overwrite,
            when_full=when_full, queues=self.spec.get("mode") == "CONSUMER",
            shared=self.shared, scratch=self.scratch,
        )  # fmt: skip

    def begin(self, *, when_full: str = "stop", **lifecycle: Any) -> "subprocess.Popen[str]":
        """Run the pod in a process of its own."""
        call = {
            "when_full": when_full, "queues": self.spec.get("mode") == "CONSUMER",
            "objects": self.objects(**lifecycle), "output": str(self.output), "overwrite": False,
            "shared": str(self.shared), "scratch": str(self.scratch),
        }  # fmt: skip
        self.runner = subprocess.Popen(
            [sys.executable, "-c", _RUNNER, json.dumps(call)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.runner

    def finished(self) -> tuple[int, str]:
        """Wait for the runner's end and return its exit code and what it said."""
        assert self.runner is not None
        said, wrong = self.runner.communicate(timeout=60)
        return self.runner.returncode, said + wrong

    def journal(self) -> list[str]:
        """Return what the fakes noted, in its order."""
        return self.journal_file.read_text().splitlines() if self.journal_file.exists() else []

    def await_note(self, note: str) -> None:
        """Wait until a fake has noted `note`."""
        until(lambda: note in self.journal())

    def events(self, container: str) -> list[tuple[str, int | None]]:
        """Return the events of a container and their codes."""
        lines = [json.loads(line) for line in (self.output / "events.jsonl").read_text().splitlines()]
        return [(line["event"], line["code"]) for line in lines if line["container"] == container]

    def leftovers(self) -> list[str]:
        """Return what is in the run's folders."""
        return sorted(path.name for folder in (self.shared, self.scratch) for path in folder.iterdir())

    def processes(self) -> list[int]:
        """Return the fakes that live, found by their journal's path in their environment."""
        mark = f"FAKE_JOURNAL={self.journal_file}".encode()
        return [pid for pid in _pids() if pid != os.getpid() and mark in _environment(pid)]


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for `condition`, and fail when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePod]:
    """A pod of fakes; whatever it left running is killed."""
    fake = FakePod(tmp_path)
    monkeypatch.setenv("FAKE_JOURNAL", str(fake.journal_file))
    yield fake
    if fake.runner is not None and fake.runner.poll() is None:
        fake.runner.kill()
        fake.runner.communicate()
    for pid in fake.processes():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(fake.shared, ignore_errors=True)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Waits for a condition with a deadline."""
    return until
