"""Servers that the tests of buses share, one of each for a run of tests; they do not outlive it."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from asysi.bus.queue_server import KEY
from asysi_operator.local import container_entry

_ENTRY = Path(container_entry.__file__)
_WHERE = "ASYSI_TEST_SERVER_"
"""Prefix of the variables that tell the processes of a test where the servers are."""


def queue_server() -> Path:
    """Return the folder of the tests' queue server."""
    return _shared("QUEUE", lambda folder: [sys.executable, "-m", "asysi.bus.serve_queues", str(folder)], KEY)


def redis_server() -> str:
    """Return the URL of the tests' Redis, which writes every command to disk before it answers."""
    return f"unix://{_shared('REDIS', redis_command, REDIS_SOCKET) / REDIS_SOCKET}"


REDIS_SOCKET = "redis.sock"


def redis_command(folder: Path) -> list[str]:
    """Return the command of a Redis in a folder."""
    return [
        "redis-server", "--port", "0", "--unixsocket", str(folder / REDIS_SOCKET), "--dir", str(folder),
        "--appendonly", "yes", "--appendfsync", "always", "--save", "", "--logfile", str(folder / "log"),
    ]  # fmt: skip


def started(command: Sequence[str], ready: Path) -> subprocess.Popen[bytes]:
    """Start a server that ends with this process, and wait until its file is there."""
    enter = [sys.executable, "-I", "-S", str(_ENTRY), str(os.getpid()), ""]
    process = subprocess.Popen([*enter, *command], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None, f"{command[0]} has ended"
        assert time.monotonic() < deadline, f"{command[0]} does not listen"
        time.sleep(0.005)
    return process


def _shared(name: str, command: Callable[[Path], Sequence[str]], ready: str) -> Path:
    known = os.environ.get(_WHERE + name)
    if known is not None:
        return Path(known)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    process = started(command(folder), folder / ready)
    os.environ[_WHERE + name] = str(folder)

    def stop() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return folder
