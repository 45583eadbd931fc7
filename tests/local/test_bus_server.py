"""The queue server of CONSUMER mode belongs to an attempt: it begins before it, and ends it when it dies."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asysi_operator.local.bus_server import NAME


def test_the_server_lives_as_long_as_the_pod(pod: Any) -> None:
    """It is started before prepare, no container is a hook, and nothing of it is left behind."""
    pod.spec = {"mode": "CONSUMER"}
    assert pod.run() == 0
    assert pod.events(NAME) == [("started", None), ("exited", None)]
    assert not pod.events("hook")
    assert pod.leftovers() == []


def test_its_death_ends_the_attempt(pod: Any, wait_until: Callable[[Callable[[], bool]], None]) -> None:
    """Packets and counters are lost with it: the pod is deleted, the run fails and says why."""
    pod.spec = {"mode": "CONSUMER"}
    pod.plans["host"] = {"seconds": 60}
    pod.begin(maxRestarts=0)
    wait_until(lambda: (pod.output / "events.jsonl").exists() and bool(pod.events("host")))
    os.kill(_server_in(pod.shared), signal.SIGKILL)
    code, said = pod.finished()
    assert code == 1
    assert "the queue server ended with exit code 137" in said
    assert pod.events(NAME)[-1] == ("exited", 137)
    assert pod.leftovers() == []


def _server_in(folder: Any) -> int:
    for pid in (path.name for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"asysi.bus.serve_queues" in command and str(folder).encode() in command:
            return int(pid)
    raise AssertionError("there is no server")
