"""The machine and the software versions of a measurement."""

import os
import platform
import subprocess
from pathlib import Path

PEERS = ("iceoryx2", "pyzmq", "faster-fifo", "redis", "eclipse-zenoh", "numpy", "xxhash")


def facts(peers_python: Path) -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    ask = "import importlib.metadata as m, sys; print(*(m.version(name) for name in sys.argv[1:]))"
    versions = output([str(peers_python), "-c", ask, *PEERS]).split()
    return {
        "processor": model.strip(),
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "15-minute load": round(os.getloadavg()[2], 2),
        "python": platform.python_version(),
        "compiler": output(["c++", "--version"]).splitlines()[0],
        **dict(zip(PEERS, versions, strict=True)),
        "redis-server": output(["redis-server", "--version"]).split("v=")[1].split()[0],
        "asysi": output(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]).strip(),
    }


def output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
