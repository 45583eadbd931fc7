"""Builds the native part of the pack with g++ and runs the benchmark: `python run.py [--out DIR] [...]`.

It needs torch with CUDA, numpy, g++ and Python's headers, but no network and no root. Wheels that the machine
lacks are unpacked next to the sources; nothing is installed. Arguments are passed to
benchmarks/gpu/measure.py.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATHS = [HERE / "workers", HERE / "operator", HERE / "native"]
FLAGS = [
    "-std=c++20",
    "-O3",
    "-DNDEBUG",
    "-shared",
    "-fPIC",
    "-pthread",
    "-ffp-contract=off",
    "-fvisibility=hidden",
]
MODULES = {
    "asysi_ring/_core": ["bindings.cpp", "bind_writer.cpp", "bind_reader.cpp", "bind_lane.cpp"],
    "_count": ["weights.cpp"],
}


def unpack(wheels: Path, to: Path) -> None:
    """Unpack the wheels whose package this machine lacks."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as content:
            tops = {name.partition("/")[0].removesuffix(".py") for name in content.namelist()}
            names = [name for name in tops if name.isidentifier()]
            if not all(importlib.util.find_spec(name) for name in names):
                content.extractall(to)


def build(to: Path) -> None:
    """Compile the native modules once."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    native = HERE / "native"
    import pybind11

    includes = [
        f"-I{native / 'include'}",
        f"-I{pybind11.get_include()}",
        f"-I{sysconfig.get_path('include')}",
    ]
    jobs = []
    for name, sources in MODULES.items():
        target = (
            (native / f"{name}{suffix}") if "/" in name else HERE / f"workers/asysi/weights/{name}{suffix}"
        )
        if target.exists():
            continue
        files = [str(native / "src" / source) for source in sources]
        jobs.append(subprocess.Popen(["g++", *FLAGS, *includes, *files, "-o", str(target), "-ldl"]))
    codes = [job.wait() for job in jobs]
    if any(codes):
        sys.exit("g++ could not build the native part: it needs C++20 and Python's headers (Python.h)")


def main() -> int:
    unpacked = HERE / "unpacked"
    if not unpacked.exists() and (HERE / "wheels").exists():
        unpack(HERE / "wheels", unpacked)
    paths = [*map(str, PATHS), *sys.path[1:], str(unpacked)]
    sys.path[:] = [sys.path[0], *paths]
    build(HERE)
    arguments = sys.argv[1:] if "--out" in sys.argv else ["--out", str(HERE / "result"), *sys.argv[1:]]
    command = [sys.executable, str(HERE / "benchmarks/gpu/measure.py"), *arguments]
    return subprocess.run(
        command, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
