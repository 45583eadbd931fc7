"""Ctrl-C, SIGTERM and kill -9 of the runner."""

import os
import signal
from pathlib import Path

import pytest


def test_interrupt_once(pod):
    """One Ctrl-C reaches the host alone; the stream ends in band, finish judges it, the code is 130."""
    pod.plans["host"] = {"early": True}
    runner = pod.begin()
    pod.await_note("host started")
    runner.send_signal(signal.SIGINT)
    code, said = pod.finished()
    assert code == 130
    assert "again to kill" in said
    assert "host interrupted" in pod.journal()
    for name in ("host", "finish", "hook", "sae", "archiver"):
        assert f"{name} ended 0" in pod.journal()
    assert (pod.leftovers(), pod.processes()) == ([], [])


def test_interrupt_twice(pod, wait_until):
    """A second Ctrl-C kills everything at once and still cleans up."""
    runner = pod.begin(gracePeriodSeconds=60)
    pod.await_note("host started")
    runner.send_signal(signal.SIGINT)
    runner.send_signal(signal.SIGINT)
    wait_until(lambda: runner.poll() is not None)
    assert pod.finished()[0] == 130
    assert (pod.leftovers(), pod.processes()) == ([], [])
    assert not any(line.endswith("ended 143") for line in pod.journal())


def test_interrupt_before_the_model_runs(pod):
    """Ctrl-C during preparation ends the run with 130 and leaves nothing behind."""
    pod.plans["prepare"] = {"seconds": 60}
    runner = pod.begin()
    pod.await_note("prepare started")
    runner.send_signal(signal.SIGINT)
    assert pod.finished()[0] == 130
    assert (pod.leftovers(), pod.processes(), pod.output.exists()) == ([], [], False)


def test_interrupt_of_an_unready_host(pod):
    """Ctrl-C while the host cannot hear it yet is repeated until it does."""
    pod.plans["host"] = {"early": True}
    runner = pod.begin()
    pod.await_note("hook started")  # the host is about to start: its interpreter has not even come up
    pod.await_note("finish started")
    runner.send_signal(signal.SIGINT)
    assert pod.finished()[0] == 130
    assert "host ended 0" in pod.journal()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminate(pod, number):
    """SIGTERM, or the end of the terminal, is passed on, main containers first; the code is 143."""
    pod.plans["host"] = {}
    runner = pod.begin()
    pod.await_note("host started")
    pod.await_note("finish started")
    runner.send_signal(number)
    assert pod.finished()[0] == 143
    ended = [line.split()[0] for line in pod.journal() if line.endswith("ended 143")]
    assert set(ended[:2]) == {"host", "finish"}
    assert ended[2:] == ["hook", "sae", "archiver"]
    assert (pod.leftovers(), pod.processes()) == ([], [])


def test_kill_the_runner(pod, wait_until):
    """When the runner is killed its containers die with it, and the next run removes what it left."""
    pod.plans["host"] = {}
    runner = pod.begin()
    pod.await_note("host started")
    os.kill(runner.pid, signal.SIGKILL)
    pod.finished()
    wait_until(lambda: pod.processes() == [])
    assert len(pod.leftovers()) == 3, "rings, scratch folder and lock"

    pod.plans["host"] = {"seconds": 0.1}
    assert pod.run(overwrite=True) == 0
    assert pod.leftovers() == []


def test_a_worker_killed_by_hand(pod, wait_until):
    """kill -9 of one sidecar from outside: it comes back, nobody else is touched, the run ends well."""
    pod.plans["host"] = {"seconds": 2}
    pod.begin()
    pod.await_note("host started")
    victims = [pid for pid in pod.processes() if b"sae" in _arguments(pid)]
    assert len(victims) == 1
    os.kill(victims[0], signal.SIGKILL)
    wait_until(lambda: pod.journal().count("sae started") == 2)
    assert pod.finished()[0] == 0
    assert pod.events("sae")[1:3] == [("exited", 137), ("restarted", None)]
    assert pod.journal().count("hook started") == 1


def _arguments(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
