"""The folders of one pod and its workers as real processes, for tests of what crosses processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asysi.contract.runtime import Env

ROOT = Path(__file__).parents[1]
SECONDS = 90.0
"""How long a test waits for a process before it fails."""


def experiment(spec: Mapping[str, Any], name: str = "test") -> dict[str, Any]:
    """Return a `ScanExperiment` as a file holds it."""
    return {
        "apiVersion": "asysi.dev/v1alpha1",
        "kind": "ScanExperiment",
        "metadata": {"name": name},
        "spec": dict(spec),
    }


class WorkerPod:
    """An experiment's folders, and workers that may be killed and started again.

    Args:
        folder: of the pod; everything but `shm` lies in it.
        spec: of the experiment.
        name: of the experiment.
        shm: where its rings are; by default in `folder`.
        attempt: the pod's number.
    """

    def __init__(
        self,
        folder: Path,
        spec: Mapping[str, Any],
        *,
        name: str = "test",
        shm: Path | None = None,
        attempt: int = 0,
    ) -> None:
        self.folder, self.attempt = folder, attempt
        self.shm = shm or folder / "shm"
        self.output, self.workspace = folder / "output", folder / "workspace"
        for path in (self.shm, self.output, self.workspace):
            path.mkdir(parents=True, exist_ok=True)
        self.config = folder / "experiment.json"
        self.config.write_text(json.dumps(experiment(spec, name)))
        self.termination = folder / "termination-message"
        self.environment = {
            **os.environ,
            Env.CONFIG: str(self.config),
            Env.SHM: str(self.shm),
            Env.OUTPUT: str(self.output),
            Env.WORKSPACE: str(self.workspace),
            Env.TERMINATION: str(self.termination),
            Env.ATTEMPT: str(attempt),
            Env.PORT: "0",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        """Variables of every container, as the operator and the local runner set them."""
        self.processes: list[subprocess.Popen[bytes]] = []

    def launch(self, *command: str) -> "subprocess.Popen[bytes]":
        """Start `python command…` in the pod, its stderr appended to the log."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen([sys.executable, *command], env=self.environment, stderr=log, cwd=ROOT)
        self.processes.append(process)
        return process

    def until(self, condition: Callable[[], bool], process: "subprocess.Popen[bytes] | None" = None) -> None:
        """Wait until `condition` holds; fail, with the log, after `SECONDS` or when `process` ends before."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.text()
            assert process is None or process.poll() is None or condition(), self.text()
            time.sleep(0.005)

    def text(self) -> str:
        """Return what the workers have written to stderr."""
        log = self.folder / "log"
        return log.read_text() if log.exists() else ""

    def close(self) -> None:
        """Kill the workers that are left."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
