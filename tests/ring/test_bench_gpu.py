"""The benchmark for a GPU, as far as a machine without one can tell."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"


def test_the_lane_compiles_without_cuda(tmp_path, program):
    """Nothing of CUDA is needed to build it, and the compiler has nothing to say."""
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    built = subprocess.run(
        [program("c++"), *flags, GPU / "lane.cpp", "-o", tmp_path / "lane.so", "-ldl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="only a machine without a GPU can refuse")
def test_without_a_gpu_nothing_is_measured(tmp_path):
    """It says so, ends with 2 and leaves no table."""
    command = [sys.executable, GPU / "measure.py", "--out", tmp_path / "out"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stderr) == (2, "no CUDA device: nothing is measured here\n")
    assert not (tmp_path / "out").exists()
