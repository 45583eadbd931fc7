"""The native core, without Python and without its module."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

NATIVE = Path(__file__).parents[2] / "native"


def output(program: Path, *arguments: str) -> str:
    """Return what a program prints; it must end well."""
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_core_holds_at_every_instruction(build):
    """Its own claims hold: above all that kill -9 at any single instruction leaves exact books."""
    (core,) = build(("tests/ring_test.cpp",))
    assert output(core).count("ok ") == 24


def test_what_the_models_found_does_not_come_back(build):
    """Each interleaving that a model once found wrong is made to happen in the code, and goes well."""
    (found,) = build(("tests/found.cpp", "-DASYSI_TESTPOINTS"))
    assert output(found).count("ok ") == 6


def test_the_example_plays(build):
    """A C++ program without Python sends packets there and back, and each comes back as it should."""
    (pingpong,) = build(("examples/pingpong.cpp",))
    assert "64 KiB, 200 rounds" in output(pingpong, "64", "200")


def test_the_core_reads_no_numbers_through_streams():
    """Beside a CUDA build of torch a stream in the module reads every number as 0: the core has no stream."""
    sources = [*(NATIVE / "include" / "asysi").glob("*.hpp"), *(NATIVE / "src").glob("*.cpp")]
    streams = re.compile(r"#include <(fstream|sstream|iostream|istream|iomanip)>|std::\w*stream\b")
    assert {path.name: streams.findall(path.read_text()) for path in sources} == {p.name: [] for p in sources}


def test_without_its_native_part_the_package_says_so(tmp_path):
    """Installed as pure Python it imports, and whoever uses it is told what to do."""
    shutil.copytree(
        NATIVE / "asysi_ring", tmp_path / "asysi_ring", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    program = """
import asysi_ring
from asysi_ring import Reader, RingError
assert issubclass(RingError, Exception)
try:
    Reader("/somewhere", "r")
except ImportError as error:
    print(type(error).__name__, error)
"""
    without_site = [sys.executable, "-S", "-c", program]  # an editable install would find the native part
    ran = subprocess.run(without_site, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(
        "NativeMissingError asysi_ring.Reader needs the native ring, which is not installed"
    )
    assert "where there is a C++20 compiler, without ASYSI_NATIVE=0" in ran.stdout
    assert "CONSUMER" not in ran.stdout  # a mode that is refused
