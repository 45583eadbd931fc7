"""The arithmetic behind docs/benchmarks/ring.md."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "benchmarks" / "ring"
OWN = ("plan", "results", "table", "task", "plot", "machine", "compare")


@pytest.fixture(scope="module")
def bench() -> dict[str, ModuleType]:
    """Return the benchmark's modules that need no peer; they leave sys.modules, for their names are short."""
    sys.path.insert(0, str(BENCH))
    try:
        return {name: importlib.import_module(name) for name in OWN}
    finally:
        sys.path.remove(str(BENCH))
        for name in OWN:
            sys.modules.pop(name, None)


def answer(*messages: int, pushed: int = 100, took_ns: int = 1000) -> dict:
    """What a crew says of a task; every part ends after `took_ns`."""
    readers = [{"messages": n, "wrong": 0, "ended_ns": 5000 + took_ns, "cpu_s": 0.5} for n in messages]
    return {
        "pushed": pushed,
        "started_ns": 5000,
        "ended_ns": 5000 + took_ns,
        "cpu_s": 1.0,
        "readers": readers,
    }


def cell(bench, **changes):
    facts = {"kind": "throughput", "size": 4096, "readers": 1, "guarantee": "lossless", "waiting": "block"}
    return bench["plan"].Cell(**facts | changes)


def test_throughput_is_the_slowest_readers(bench):
    """Of two readers the one that got less counts, from the start to its last message."""
    assert bench["results"].throughput(answer(100, 50), 4096) == pytest.approx(50 * 4096 / 1000)


def test_throughput_is_never_above_the_producers(bench):
    """A ceiling whose reader is faster than its copies is as fast as its copies."""
    fast = answer(100, took_ns=1000) | {"ended_ns": 5000 + 4000}
    assert bench["results"].throughput(fast, 4096) == pytest.approx(100 * 4096 / 4000)


def test_what_is_lost_is_the_unluckiest_readers(bench, tmp_path):
    """Loss is a share of what was pushed; CPU is of all processes, for all that was delivered."""
    row = bench["results"].Row()
    row.add(cell(bench, readers=2), answer(100, 25), tmp_path, 1.0)
    assert row.lost == [0.75]
    assert row.cpu == [pytest.approx(2.0 / (125 * 4096 / 1e9))]


def test_a_failed_task_is_an_error_not_a_number(bench, tmp_path):
    """What a peer raised is kept, and its figures stay empty."""
    row = bench["results"].Row()
    row.add(cell(bench), {"error": "boom"}, tmp_path, 1.0)
    assert row.errors == ["boom"]
    assert row.gigabytes == []


def test_quantiles_are_of_all_repeats_together(bench):
    """The median is of all samples; beside it stand the least and the most of the repeats' own."""
    q = bench["results"].quantiles([np.full(99, 1.0), np.full(1, 9.0)])
    assert (q["samples"], q["p50"], q["p50_low"], q["p50_high"]) == (100, 1.0, 1.0, 9.0)
    assert q["mean"] == pytest.approx(1.08)


def test_the_share_of_the_ceiling_is_taken_repeat_by_repeat(bench):
    """A machine that is slower in one repeat is slower for both: the ratio does not see it."""
    plan, results, table = bench["plan"], bench["results"], bench["table"]
    ours, ceiling = plan.Contestant("C++", "asysi"), plan.Contestant("C++", "ceiling")
    rows = {
        ceiling: results.Row(gigabytes=[10.0, 1.0, 10.0]),
        ours: results.Row(gigabytes=[9.0, 0.9, 9.0]),
    }
    measured = {cell(bench): rows}
    assert table.share_of_ceiling(measured, cell(bench), ours) == pytest.approx(0.9)


@pytest.mark.parametrize(("theirs", "met"), [(1.0, True), (3.0, False)])
def test_a_peer_that_is_better_takes_the_row(bench, theirs, met):
    """First means more throughput than every peer at the same guarantee; what is bare is not a peer."""
    plan, results, table = bench["plan"], bench["results"], bench["table"]
    rows = {
        plan.Contestant("Python", name): results.Row(gigabytes=[value])
        for name, value in (("ceiling", 9.0), ("counters", 9.0), ("asysi", 2.0), ("pyzmq", theirs))
    }
    [aim] = table.first_aims({cell(bench): rows})
    assert aim.met is met


def test_the_lower_latency_is_the_better(bench):
    """In a latency cell the least median wins."""
    plan, results, table = bench["plan"], bench["results"], bench["table"]
    rows = {
        plan.Contestant("Python", name): results.Row(read=[np.array([value])])
        for name, value in (("asysi", 2.0), ("pyzmq", 3.0))
    }
    [aim] = table.first_aims({cell(bench, kind="latency"): rows})
    assert aim.met


def test_every_contestant_runs_once_a_repeat_and_begins_in_turn(bench):
    """Within a cell all that can run do, once a repeat; the first of them changes."""
    full = bench["plan"].full(3)
    steps = list(full.steps())
    assert len(steps) == len(set(steps))
    chosen = full.cells[0]
    begins = [next(who for repeat, at, who in steps if (repeat, at) == (n, chosen)) for n in range(3)]
    assert len(set(begins)) == 3


def test_the_ceiling_runs_once_for_both_guarantees(bench):
    """What has no protocol has no guarantee: it is measured with the lossless rows only."""
    plan = bench["plan"]
    ceiling = plan.Contestant("Python", "ceiling")
    assert cell(bench).takes(ceiling)
    assert not cell(bench, guarantee="drop").takes(ceiling)


def test_a_task_reads_as_it_was_written(bench):
    """A task's line gives the same task back."""
    task = cell(bench, kind="latency").task(
        bench["plan"].Contestant("Python", "redis"), 0.5, 1000, "/a/folder"
    )
    assert bench["task"].Task.parse(task.line()) == task
    assert task.seconds == pytest.approx(1000 / task.rate)


def test_the_page_and_the_pictures_stand_when_a_peer_has_failed(bench, tmp_path):
    """A run in which somebody failed everywhere still makes a page that says so."""
    plan, results, table = bench["plan"], bench["results"], bench["table"]
    measured = plan.quick()
    run: dict = {}
    for _, at, who in measured.steps():
        row = run.setdefault(at, {}).setdefault(who, results.Row())
        if who.name == "zenoh":
            row.errors.append("no route")
        else:
            row.gigabytes, row.lost, row.cpu, row.behind = [1.0], [0.0], [1.0], [0.0]
            row.push = row.arrived = row.read = [np.array([1.0, 2.0])]
    page = table.page(run, measured, {"command": "x", "seconds": 1}, table.Words("intro", "reasons"))
    assert "no route" in page
    assert "| zenoh | failed" in page
    assert bench["plot"].throughput(run).endswith("</svg>\n")
    assert bench["plot"].latency(run).endswith("</svg>\n")


def test_both_crews_can_be_built(bench, tmp_path):
    """The C++ crew compiles, and the Python crew finds this environment's ring without its other packages."""
    include = f"-I{BENCH.parents[1] / 'native' / 'include'}"
    subprocess.run(
        ["c++", "-std=c++20", "-fsyntax-only", "-pthread", include, BENCH / "crew.cpp"], check=True
    )
    env = {"PYTHONPATH": os.pathsep.join(map(str, bench["compare"].packages(tmp_path)))}
    asked = [sys.executable, "-S", "-c", "import asysi_ring; print(asysi_ring.create.__name__)"]
    said = subprocess.run(asked, env=env, check=True, capture_output=True, text=True).stdout
    assert said == "create\n"
