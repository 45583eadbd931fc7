"""The core on arm64: cross-compiled, run under qemu-user.

The emulated processor runs on this one, whose memory order is stronger: what is shown is that the code
compiles, that its layout is the same, and that it works with both kinds of atomics that arm64 has. The memory
orders are the models' business.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # compiled here, on a machine that may be busy
COMPILER = "aarch64-linux-gnu-g++"
# A loop of load-linked and store-conditional, and the single instructions of Armv8.1 (LSE).
ATOMICS = {"ll/sc": "-mno-outline-atomics", "lse": "-march=armv8.1-a"}
INSTRUCTIONS = {"ll/sc": r"\tld(a)?xr\t", "lse": r"\t(cas|swp|ldadd|ldset|ldclr)(a|l|al)\t"}


@pytest.fixture(params=ATOMICS)
def atomics(request) -> str:
    """Each way of doing atomics."""
    return request.param


FAULTS = ("tests/faults_kill.cpp", "-static", "-DASYSI_TESTPOINTS", ATOMICS["lse"])
LAYOUT = ("tests/layout.cpp", "-static", ATOMICS["lse"])


def core(atomics: str) -> tuple[str, ...]:
    """The native tests with one kind of atomics."""
    return ("tests/ring_test.cpp", "-static", ATOMICS[atomics])


def stress(atomics: str) -> tuple[str, ...]:
    """Everything at once with one kind of atomics."""
    return ("tests/stress.cpp", "-static", ATOMICS[atomics])


@pytest.fixture(scope="module")
def programs(build) -> dict[tuple[str, ...], Path]:
    """Every program, cross-compiled, two at a time."""
    all_of_them = [*map(core, ATOMICS), *map(stress, ATOMICS), FAULTS, LAYOUT]
    return dict(zip(all_of_them, build(*all_of_them, compiler=COMPILER), strict=True))


@pytest.fixture
def run(build, programs):
    """Run a program under qemu-user; return what it printed."""

    def emulate(program: tuple[str, ...], *arguments: str) -> str:
        command = [build.tool("qemu-aarch64"), programs[program], *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return emulate


def test_the_core_holds_on_arm64(run, atomics):
    """Its own claims hold, but for those that single-step, which qemu-user cannot."""
    printed = run(core(atomics), "plain")
    assert printed.count("ok ") == 11


def test_everything_at_once_holds_on_arm64(run, build, programs, atomics):
    """The stress balances with both kinds of atomics, and each program has the kind that it was built for."""
    assert run(stress(atomics), "40000").startswith("ok 40000 packets")
    objdump = [build.tool("aarch64-linux-gnu-objdump"), "-d", "--no-show-raw-insn", programs[stress(atomics)]]
    disassembly = subprocess.run(objdump, capture_output=True, text=True, check=True).stdout
    publish = re.search(r"<[^>]*asysi[^>]*Chunks[^>]*take[^>]*>:\n(.*?)\n\n", disassembly, re.DOTALL)
    code = publish[1] if publish else disassembly
    assert re.search(INSTRUCTIONS[atomics], code)


def test_faults_hold_on_arm64(run):
    """Killed at every testpoint, producer and readers leave exact books there too."""
    tally = json.loads(run(FAULTS, "60"))
    assert min(tally["labels"].values()) >= 1


def test_the_layout_is_the_same_on_arm64(run, build):
    """Every shared structure has the same offsets and sizes as here."""
    (here,) = build(("tests/layout.cpp",))
    assert json.loads(run(LAYOUT)) == json.loads(
        subprocess.run([here], capture_output=True, check=True).stdout
    )
