"""The lane from an accelerator's memory into the ring, against a library that stands for CUDA's runtime.

What runs is the production code, its thread included; only the functions of the runtime are others'.
"""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

NATIVE = Path(__file__).parents[2] / "native"
LANE = NATIVE / "include" / "asysi" / "lane.hpp"
CASES = 19

pytestmark = pytest.mark.timeout(900)  # compiled here, on a machine that may be busy


@pytest.fixture(scope="module")
def standin(build) -> Path:
    """The library that stands for the runtime."""
    (library,) = build(("tests/standin.cpp", "-shared", "-fPIC"))
    return library


def test_the_lane_keeps_its_rules(build, standin):
    """Whatever the device delays, reorders or fails: rows arrive whole and in order, or are counted."""
    (program,) = build(("tests/lane_test.cpp", "-ldl"))
    ran = subprocess.run([program, standin], capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("ok ") == CASES


class Mutant(NamedTuple):
    """A rule that is broken, and the case of lane_test.cpp that must notice."""

    rule: str
    case: str
    changes: tuple[tuple[str, str], ...]


ARRIVE = "rows_arrive_whole_and_in_order"
BY_CHANNEL = "int8_by_channel_travels_with_its_table_and_counts"
MUTANTS = [
    Mutant(
        "the copy does not wait for the gather",
        ARRIVE,
        (
            (
                "int status = runtime_.stream_wait(stream_, task.ready, 0);",
                "int status = DeviceRuntime::success;",
            ),
        ),
    ),
    Mutant(
        "the end of a gather is marked on a stream of whichever device is current",
        "a_default_stream_is_that_of_the_lanes_device",
        (
            (
                "runtime_.record_on(device_, task.ready, stream);",
                "runtime_.event_record(task.ready, stream);",
            ),
        ),
    ),
    Mutant(
        "a packet is committed before its copy is done",
        ARRIVE,
        (("status = runtime_.event_query(task(finished).done);", "status = DeviceRuntime::success;"),),
    ),
    Mutant(
        "packets are committed out of order",
        ARRIVE,
        (
            (
                "for (Claim& claim : task.claims) claim.commit();",
                "for (auto at = task.claims.rbegin(); at != task.claims.rend(); ++at) at->commit();",
            ),
        ),
    ),
    Mutant(
        "a slot is handed out while it is copied",
        ARRIVE,
        (
            (
                "return tasks_.size() - (submitted_.load(std::memory_order_relaxed) -",
                "return tasks_.size() - 0 * (",
            ),
            (">= tasks_.size()) throw", "> 1'000'000) throw"),
        ),
    ),
    Mutant(
        "the step's end of the slot is marked by an event of its last content",
        "a_copy_that_was_not_sent_whole_is_not_published",
        (("intact && one.issued && wait_until", "intact && wait_until"),),
    ),
    Mutant(
        "a chunk is given back while a copy into it is under way",
        "a_chunk_is_not_given_back_under_a_copy",
        (("== DeviceRuntime::not_ready) forsake(one);", "== DeviceRuntime::not_ready) one.issued = false;"),),
    ),
    Mutant(
        "rows that a failed device does not take are forgotten",
        "whatever_fails_every_row_is_accounted_for",
        (
            (
                "next call shall not find it\n            return lose(content.header.account, rows), false;",
                "next call shall not find it\n            return false;",
            ),
        ),
    ),
    Mutant(
        "chunks that will be claimed are not counted",
        "a_step_that_was_given_room_is_published_whole",
        (
            ("unclaimed_.fetch_add(task.counts.size()", "unclaimed_.fetch_add(0"),
            ("unclaimed_.fetch_sub(task.counts.size()", "unclaimed_.fetch_sub(0"),
        ),
    ),
    Mutant(
        "a tail of other size is copied like the chunks before it",
        "one_copy_fills_neighbouring_chunks",
        (("task.claims[at + height].payload().size() == bytes)", "bytes != 0)"),),
    ),
    Mutant(
        "values out of range are counted before the copy of their counts is done",
        BY_CHANNEL,
        (
            ("for (Claim& claim : task.claims) flag_saturated(claim);", ""),
            (
                "task.issued = status == DeviceRuntime::success;",
                "task.issued = status == DeviceRuntime::success;\n"
                "        for (Claim& claim : task.claims) flag_saturated(claim);",
            ),
        ),
    ),
    Mutant(
        "the counts of a second copy are those of the first",
        BY_CHANNEL,
        (("outside += first.records().size() * height;", ""),),
    ),
    Mutant(
        "a table of channels is overwritten with scales of rows",
        BY_CHANNEL,
        (("first.by_channel() ? 0 : first.scales()", "first.scales()"),),
    ),
    Mutant(
        "a query spoils the graph of another thread",
        "a_graph_that_is_captured_meanwhile_is_not_spoiled",
        (("int mode = DeviceRuntime::capture_thread_local;", "int mode = 0;"),),
    ),
    Mutant(
        "a device that hangs holds up the end",
        "a_device_that_hangs_does_not_hold_up_the_end",
        (("- moved > patience_)", "- moved > 1000 * patience_)"),),
    ),
]


@pytest.fixture(scope="module")
def mutants(build, tmp_path_factory) -> list[Path]:
    """A folder of headers for each mutant, with the program that was compiled with it."""
    code = LANE.read_text()

    def compiled(mutant: Mutant) -> Path:
        folder = tmp_path_factory.mktemp("mutant")
        changed = code
        for old, new in mutant.changes:
            assert old in changed, f"{mutant.rule}: lane.hpp has no {old!r} any more"
            changed = changed.replace(old, new)
        shutil.copytree(NATIVE / "include" / "asysi", folder / "include" / "asysi")
        (folder / "include" / "asysi" / "lane.hpp").write_text(changed)
        flags = ["-std=c++20", "-O0", "-w", "-ffp-contract=off", "-pthread", f"-I{folder / 'include'}"]
        to = folder / "lane_test"
        command = [build.tool("c++"), *flags, NATIVE / "tests" / "lane_test.cpp", "-o", to, "-ldl"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return to

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compiled, MUTANTS))


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=[mutant.rule for mutant in MUTANTS])
def test_a_broken_rule_is_noticed(mutants, standin, number):
    """The tests of the lane fail when any of its rules is broken."""
    command = [mutants[number], standin, MUTANTS[number].case]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return  # it hangs: noticed as well
    assert ran.returncode != 0, ran.stdout
