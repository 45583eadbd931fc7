"""The benchmark for a GPU, as far as a machine without one can tell."""

import importlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
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


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """What a dry run of everything but the experiment left."""
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, GPU / "measure.py", "--out", out, "--dry-run", "--stages", "values,hosts,sae"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text()


def test_the_script_runs_as_far_as_a_cpu_goes(dry):
    """Hosts by the public frame at two rates and with each conversion, and a trainer: nothing is dropped, no
    error is swallowed, a figure for each; the page says that it is a dry run.
    """
    result, page = dry
    ours = {name: row for name, row in result["hosts"].items() if name.startswith("asysi")}
    assert set(ours) == {
        "asysi, rate 1.0",
        "asysi, rate 0.1",
        *(f"asysi, rate 1.0, {name}" for name in ("bf16", "fp8", "int8")),
    }
    for row in ours.values():
        assert (row["errors"], row["steps dropped"], row["steps"]) == (0, 0, 4)
        assert row["ms"] > 0
    assert result["sae"]["cpu"]["loss after"] < result["sae"]["cpu"]["loss before"]
    assert result["sae"]["cpu"]["rows/s"] > 0
    assert page.startswith("no card (a dry run)")
    assert all(name in page for name in ours)


def test_its_values_are_those_of_plain_hooks(dry):
    """Every row is there and within what its conversion may change, also when the tensor changes behind the
    hook.
    """
    found = {name: row for name, row in dry[0]["values"].items() if name != "seconds"}
    assert {"llama, none", "in place, none", "llama, int8"} <= set(found)
    of_device = {name: row for name, row in found.items() if name.startswith("operators")}
    assert [row["converted"] for row in of_device.values()] == ["bf16", "fp8", "int8_channel"]
    assert all(row["unlike the reference"] == 0 for row in of_device.values())
    assert all(row["largest difference"] > 0 for row in of_device.values())
    for row in found.values():
        assert row["all rows"]
        assert row["within"]
        assert row["errors"] == 0
        assert row["converted"] != "none" or row["largest difference"] == 0.0


def test_a_value_out_of_bounds_is_seen(monkeypatch):
    """The comparison accepts half a step of int8 and a bit of bfloat16, and no more."""
    monkeypatch.syspath_prepend(str(GPU))
    measure = importlib.import_module("measure")
    want = np.array([[1.0, 100.0], [2.0, -50.0]], np.float32)
    scales = np.array([1.0, 0.5], np.float32)
    half = scales[:, None] / 2
    assert measure.compare([("none", want, None)], want)["within"]
    assert not measure.compare([("none", want + 1e-3, None)], want)["within"]
    assert measure.compare([("int8", want + half, scales)], want)["within"]
    assert not measure.compare([("int8", want + 1.1 * half, scales)], want)["within"]
    assert measure.compare([("int8_channel", want + half.T, scales)], want)["within"]
    assert not measure.compare([("int8_channel", want + 1.1 * half.T, scales)], want)["within"]
    assert measure.compare([("fp8", want * (1 + 2**-5), scales)], want)["within"]
    assert not measure.compare([("fp8", want * (1 + 2**-3), scales)], want)["within"]
    assert measure.compare([("bf16", want * (1 + 2**-9), None)], want)["within"]
    assert not measure.compare([("bf16", want * (1 + 2**-7), None)], want)["within"]
    assert not measure.compare([("none", want[:1], None)], want)["all rows"]


@pytest.mark.long
def test_an_experiment_runs_from_its_start_to_its_report(tmp_path):
    """`asysi run` on the script's own model and text: the verdict is good, and both hook points are
    trained on.
    """
    command = [sys.executable, GPU / "measure.py", "--out", tmp_path, "--dry-run", "--stages", "experiment"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["experiment"]["asysi run"]
    assert (found["exit"], found["report"], found["level"]) == (0, True, "ok")
    assert found["rows kept"] == [3600, 3600]
    assert min(found["trained"]) > 3000


def test_the_pack_holds_what_a_bare_machine_needs(tmp_path, monkeypatch):
    """Sources that git knows, the script that builds and runs them, no tests, far below 48 MiB; a wheel is
    unpacked where its package is missing, and only there.
    """
    out = tmp_path / "pack"
    command = [sys.executable, GPU / "pack.py", "--out", out, "--no-wheels"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    for name in (
        "run.py",
        "benchmarks/gpu/measure.py",
        "native/src/bindings.cpp",
        "workers/asysi/cli/__init__.py",
    ):
        assert (out / name).is_file(), name
    assert not list(out.rglob("test_*"))
    assert sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) < 8 * 2**20
    monkeypatch.syspath_prepend(str(out))
    monkeypatch.delitem(sys.modules, "run", raising=False)
    run = importlib.import_module("run")
    recipe = (out / "native" / "CMakeLists.txt").read_text()
    for name, sources in run.MODULES.items():
        built = " ".join(f"src/{source}" for source in sources)
        assert f"pybind11_add_module({name.rpartition('/')[2]} {built})" in recipe
    for name in ("json", "asysi_not_here"):
        with zipfile.ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
            wheel.writestr(f"{name}-1.dist-info/METADATA", "")
    run.unpack(tmp_path, tmp_path / "unpacked")
    assert [one.name for one in (tmp_path / "unpacked").iterdir() if one.name.isidentifier()] == [
        "asysi_not_here"
    ]
