"""Everything at once in one process, watched by the sanitizers: no race, no byte outside, nothing undefined.

ThreadSanitizer sees no race between two mappings of one file, so under it all participants share one.
"""

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

PACKETS = os.environ.get("ASYSI_RING_STRESS_PACKETS", "200000")

pytestmark = pytest.mark.timeout(900)  # compiled here, on a machine that may be busy
ADDRESS = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-maybe-uninitialized")
THREAD = (
    *("-g", "-fsanitize=thread", "-DASYSI_ONE_MAPPING", "-Wno-maybe-uninitialized"),
    "-Wl,--wrap=mmap,--wrap=munmap",
)


@pytest.fixture(scope="module")
def programs(build) -> dict[str, Path]:
    """The stress built for both sanitizers, and the core for one."""
    built = build(
        ("tests/stress.cpp", *ADDRESS), ("tests/stress.cpp", *THREAD), ("tests/ring_test.cpp", *ADDRESS)
    )
    return dict(zip(("address", "thread", "core"), built, strict=True))


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program at fixed addresses, which ThreadSanitizer needs on some kernels."""
    command = ["setarch", platform.machine(), "-R", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_nothing_is_found_in_the_ring(programs, sanitizer):
    """A thread a shard, two readers, a hoarder that is evicted, restarts: no report, and exact books."""
    ran = run(programs[sanitizer], PACKETS)
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(rf"ok {PACKETS} packets, [1-9]\d* revoked pins\n", ran.stdout)


@pytest.mark.parametrize(
    ("sanitizer", "mistake", "report"),
    [
        ("thread", "race", "WARNING: ThreadSanitizer: data race"),
        ("address", "overflow", "AddressSanitizer: heap-buffer-overflow"),
        ("address", "undefined", "runtime error: shift exponent"),
    ],
)
def test_a_planted_mistake_is_found(programs, sanitizer, mistake, report):
    """A reader reads after its release, copies too much or shifts too far: the same program reports it."""
    ran = run(programs[sanitizer], "20000", mistake)
    assert ran.returncode != 0
    assert report in ran.stderr


def test_the_core_is_clean_under_the_address_sanitizer(programs):
    """Its own claims hold in that build too, but for those that single-step."""
    ran = run(programs["core"], "plain")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("ok ") == 11
