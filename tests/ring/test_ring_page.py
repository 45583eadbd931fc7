"""docs/ring.md: its examples run, and its table of errors is complete."""

import re
import subprocess
import sys
from pathlib import Path

import asysi_ring

PAGE = (Path(__file__).parents[2] / "docs" / "ring.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the page's examples in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_python_examples_run(folder):
    """In order, in one process, as they stand but for the folder."""
    program = "".join(blocks("python")).replace("/dev/shm/asysi/example", folder)
    assert folder in program
    command = [sys.executable, "-W", "error", "-c", program + "print(mean, missed)"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    mean, missed = ran.stdout.split()
    assert (float(mean) != 0, missed) == (True, "0")


def test_the_program_in_cpp_runs(build, folder, tmp_path):
    """Compiled with the headers alone it prints both of its packets."""
    (source,) = blocks("cpp")
    (tmp_path / "program.cpp").write_text(source)
    (program,) = build((str(tmp_path / "program.cpp"),))
    ran = subprocess.run([program, folder], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "packet 1: 1.5\npacket 2: 0\n"), ran.stderr


def test_every_error_has_its_row():
    """Each error of the ring is in the table, and no other."""
    table = set(re.findall(r"^\| `(\w+Error)` \|", PAGE, re.MULTILINE))
    errors = {
        name for name in dir(asysi_ring) if isinstance(error := getattr(asysi_ring, name), type)
        and issubclass(error, asysi_ring.RingError) and error is not asysi_ring.RingError
    }  # fmt: skip
    assert table == errors | {"ValueError", "FileNotFoundError", "OSError"}
