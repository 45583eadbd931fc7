"""The native core, without Python and without its module."""

import shutil
import subprocess
import sys
from pathlib import Path

NATIVE = Path(__file__).parents[2] / "native"


def build(source: Path, folder: Path) -> Path:
    """Compile a program that knows the headers alone."""
    program = folder / source.stem
    options = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-unknown-pragmas"]
    options += ["-ffp-contract=off", "-pthread", f"-I{NATIVE / 'include'}"]
    subprocess.run(["c++", *options, source, "-o", program], check=True)
    return program


def test_the_core_holds_at_every_instruction(tmp_path):
    """Its own claims hold: above all that kill -9 at any single instruction leaves exact books."""
    core = build(NATIVE / "tests" / "ring_test.cpp", tmp_path)
    ran = subprocess.run([core], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("ok ") == 15


def test_the_example_plays(tmp_path):
    """A C++ program without Python sends packets there and back, and each comes back as it should."""
    program = build(NATIVE / "examples" / "pingpong.cpp", tmp_path)
    ran = subprocess.run([program, "64", "200"], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "64 KiB, 200 rounds" in ran.stdout


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
