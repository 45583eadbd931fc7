"""What the runner decides without acting: back-off, the Job's failure policy, binding, environment."""

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.cpus import parse_cpu_list
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Env
from asysi_operator.local import backoff
from asysi_operator.local.attempts import log_end
from asysi_operator.local.containers import LocalContainer
from asysi_operator.local.cpu_binding import bound
from asysi_operator.local.environment import Setting, environment
from asysi_operator.local.policy import Judgement, judge
from asysi_operator.local.verdict import read_verdict
from asysi_operator.manifests.job import failure_rules


@given(st.integers(1, 60))
def test_backoff_doubles_up_to_its_longest(crashes):
    """The delay begins with 0.2 s, doubles with each crash in a row, and stays at 5 s."""
    assert backoff.delay(1) == 0.2
    assert backoff.delay(crashes + 1) == min(5.0, 2 * backoff.delay(crashes))


def test_health_forgives():
    """A crash after 10 s of life counts as the first one; a sooner one as one more."""
    assert backoff.crashes_after(7, 10.0) == 1
    assert backoff.crashes_after(7, 9.9) == 8


@pytest.mark.parametrize(
    ("codes", "judgement"),
    [
        ({"prepare": 0, "host": 0, "finish": 0}, Judgement.COMPLETE),
        ({"prepare": 0, "host": 0, "finish": 0, "sae": 143}, Judgement.COMPLETE),
        ({"prepare": 2}, Judgement.FAIL),
        ({"prepare": 1}, Judgement.RETRY),
        ({"prepare": 0, "host": 2, "finish": 1}, Judgement.FAIL),
        ({"prepare": 0, "host": 137, "finish": 1}, Judgement.RETRY),
        ({"prepare": 0, "host": 1, "finish": 143}, Judgement.RETRY),
        ({"prepare": 0, "host": 0, "finish": 1}, Judgement.FAIL),
        ({"prepare": 0, "host": 0, "finish": 2}, Judgement.FAIL),
        ({"prepare": 0, "host": 0, "finish": 137}, Judgement.RETRY),
    ],
    ids=str,
)
def test_the_jobs_failure_policy(codes, judgement):
    """Exit 2 fails the Job, a dead host counts, a bad verdict on a whole stream fails it."""
    assert judge(codes, ["host", "finish"], failure_rules()) is judgement


def test_processor_lists():
    """Lists of processors read as taskset reads them."""
    assert parse_cpu_list("0") == {0}
    assert parse_cpu_list("0-2,5") == {0, 1, 2, 5}


def test_binding_to_absent_processors_is_refused():
    """Processors that are not there are refused by name; of a range, those that are there are taken."""
    here = min(os.sched_getaffinity(0))
    assert bound({"host": f"{here}-4095"})["host"] <= os.sched_getaffinity(0)
    with pytest.raises(ConfigError, match=r"binding\.cpus\.sae is 4095"):
        bound({"host": str(here), "sae": "4095"})


def test_environment_is_translated():
    """Mounts become the run's folders, the pod's home does not hide the user's, secrets are inherited."""
    container = LocalContainer(
        name="host",
        command=("python",),
        env=(
            {"name": "ASYSI_SHM", "value": "/dev/shm/asysi"},
            {"name": "ASYSI_CONFIG", "value": "/etc/asysi/experiment.json"},
            {"name": "HOME", "value": "/tmp"},
            {"name": "DEEP", "value": "/workspace/a/b"},
            {"name": "OTHER", "value": "/workspaces"},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ),
        memory=7,
    )
    mounts = {
        Env.SHM: Path("/r"), Env.OUTPUT: Path("/o"), Env.WORKSPACE: Path("/w"), Env.CONFIG: Path("/c/e.json"),
    }  # fmt: skip
    inherited = {"HOME": "/home/me", "HF_TOKEN": "mine", "HF_HUB_OFFLINE": "1"}
    made = environment(container, Setting(mounts, 3, 4711, Path("/t")), inherited)
    assert made["ASYSI_SHM"] == "/r"
    assert made["ASYSI_CONFIG"] == "/c/e.json"
    assert (made["DEEP"], made["OTHER"]) == ("/w/a/b", "/workspaces")
    assert (made["HOME"], made["HF_TOKEN"], made["HF_HUB_OFFLINE"]) == ("/home/me", "mine", "1")
    assert (made["ASYSI_ATTEMPT"], made["ASYSI_PORT"], made["ASYSI_MEMORY"]) == ("3", "4711", "7")


@pytest.mark.parametrize("huge", ["1e999", "1" + "0" * 400, "NaN", "-Infinity"])
def test_a_figure_beyond_numbers_is_none(tmp_path, huge):
    """A verdict whose figure no number can be, or that is nested without end, is read as far as it goes."""
    file = tmp_path / "verdict.json"
    file.write_text('{"level": "ok", "points": [{"path": "a", "saes": [{"fvu": %s}]}]}' % huge)  # noqa: UP031
    found = read_verdict(file)
    assert found is not None
    assert found.figures == (("a", None, ""),)
    file.write_text('{"level": ' + "[" * 100_000)
    assert read_verdict(file) is None


def test_the_end_of_a_log_is_read_alone(tmp_path):
    """Of a log however long only its end is read, whole lines of it."""
    log = tmp_path / "host.log"
    with log.open("wb") as file:
        file.truncate(256 << 20)
        file.seek(0, os.SEEK_END)
        file.write(b"".join(b"\nline %d" % number for number in range(20)))
    tracemalloc.start()
    said = log_end(log)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said.splitlines() == [f"line {number}" for number in range(12, 20)]
    assert peak < 1 << 20
    assert log_end(tmp_path / "none.log") == ""
    (tmp_path / "one.log").write_bytes(b"\xff" + b"x" * 100_000)
    assert len(log_end(tmp_path / "one.log")) <= 16_384
