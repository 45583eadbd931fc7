"""While nobody sleeps, a push costs no allocation and no system call."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
MARK = "getppid("
SCENARIOS = ["overwrite", "drop_new", "overwrite_unread", "drop_new_unread"]


@pytest.fixture(scope="session")
def push_path(tmp_path_factory, program) -> Path:
    """The program that marks its pushes, built."""
    built = tmp_path_factory.mktemp("push") / "push_path"
    options = [
        "-std=c++20",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-ffp-contract=off",
        "-pthread",
    ]
    source = NATIVE / "tests" / "push_path.cpp"
    subprocess.run([program("c++"), *options, f"-I{NATIVE / 'include'}", source, "-o", built], check=True)
    return built


@pytest.fixture
def traced(program):
    """Run under strace; return its output, and the system calls of the marking thread between the marks."""
    strace = program("strace")

    def trace(command: list, to: Path) -> tuple[str, list[str]]:
        ran = subprocess.run(
            [strace, "-f", "-o", to, *command], capture_output=True, text=True, check=False, timeout=120
        )
        assert ran.returncode == 0, ran.stderr
        lines = to.read_text().splitlines()
        first, last = (at for at, line in enumerate(lines) if MARK in line)
        thread = lines[first].split()[0]  # a reader that was woken makes calls of its own meanwhile
        calls = (re.match(rf"{thread} +(\w+)\(", line) for line in lines[first + 1 : last])
        return ran.stdout.strip(), [call[1] for call in calls if call]

    return trace


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_push_asks_nothing_of_kernel_and_heap(traced, push_path, tmp_path, scenario):
    """1,000 rounds of publish, claim, pull and release, or of publish alone, take neither."""
    allocations, calls = traced([push_path, scenario], tmp_path / "trace")
    assert allocations == "0"
    assert calls == []


def test_one_allocation_among_thousands_of_pushes_is_seen(traced, push_path, tmp_path):
    """The count of the test above is not always 0."""
    allocations, _ = traced([push_path, "overwrite", "planted"], tmp_path / "trace")
    assert allocations == "1"


def test_a_sleeping_reader_costs_the_push_one_call(traced, push_path, tmp_path):
    """Whoever sleeps is woken by one futex call, and even then nothing is allocated."""
    allocations, calls = traced([push_path, "sleeper"], tmp_path / "trace")
    assert allocations == "0"
    assert calls == ["futex"]


PROGRAM = """
import gc, os, sys, tracemalloc
import numpy as np
from asysi.bus.packet import HEADER_DTYPE, Dtype
from asysi_ring import Writer, create

folder, rows, plant = sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3
create(folder, shards=1, chunks=8, chunk_bytes=1 << 18, readers=["r"], policy="overwrite", pins=2)
source = np.ones((rows, 1024), np.float32)
header = np.zeros(1, HEADER_DTYPE)
kept = []
with Writer(folder) as writer:
    header["account"], header["width"] = writer.account("layer.0"), 1024
    address, stride, dtype = source.ctypes.data, source.strides[0], int(Dtype.FLOAT32)

    def push(times):
        for _ in range(times):
            writer.publish_block(0, header, None, address, stride, None, rows, dtype, 0)
            if plant:
                kept.append(bytearray(64))

    push(100)
    gc.collect()
    gc.disable()
    os.getppid()
    push(1000)
    os.getppid()
    blocks = sys.getallocatedblocks()
    push(1000)
    blocks = sys.getallocatedblocks() - blocks
    tracemalloc.start()
    push(10)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    push(1000)
    now, peak = tracemalloc.get_traced_memory()
    print(blocks, now - before, peak - before)
"""


@pytest.mark.parametrize("rows", [1, 16], ids=["4 KiB", "64 KiB"])
def test_a_push_from_python_leaves_nothing_behind(traced, folder, tmp_path, rows):
    """1,000 calls of publish_block make no system call, keep nothing, and need less than 1 KiB meanwhile."""
    printed, calls = traced([sys.executable, "-c", PROGRAM, folder, str(rows)], tmp_path / "trace")
    blocks, kept, peak = map(int, printed.split())
    assert calls == []
    assert blocks < 10  # of 1,000 pushes: what the loop itself leaves
    assert kept < 100
    assert peak < 1024


def test_memory_that_a_push_from_python_would_keep_is_seen(traced, folder, tmp_path):
    """With 64 bytes kept a push, the numbers of the test above are large."""
    printed, _ = traced([sys.executable, "-c", PROGRAM, folder, "1", "planted"], tmp_path / "trace")
    blocks, kept, _ = map(int, printed.split())
    assert blocks >= 1000
    assert kept > 64_000
