"""The native core, without Python and without its module."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"


@pytest.fixture(scope="session")
def core(tmp_path_factory) -> Path:
    """The core's own test, built."""
    program = tmp_path_factory.mktemp("core") / "ring_test"
    options = [
        "-std=c++20",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-ffp-contract=off",
        "-pthread",
    ]
    source = NATIVE / "tests" / "ring_test.cpp"
    subprocess.run(["c++", *options, f"-I{NATIVE / 'include'}", source, "-o", program], check=True)
    return program


def test_the_core_holds_at_every_instruction(core):
    """Its own claims hold: above all that kill -9 at any single instruction leaves exact books."""
    ran = subprocess.run([core], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("ok ") == 12


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
    assert "CONSUMER mode" in ran.stdout
