"""Questions over HTTP to the run's own processes, asked beside the loop, so a hung worker stops nothing."""

from concurrent.futures import Future, ThreadPoolExecutor

from asysi.contract.telemetry import RunStatus
from asysi_operator.status_client import ask, get

_HERE = "127.0.0.1"


class Asker:
    """Asks on threads of its own; nothing leaves the machine, no redirect is followed."""

    def __init__(self, threads: int = 8) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="asking")

    def is_well(self, port: int, path: str, timeout: float) -> "Future[bool]":
        """Ask whether `path` answers with a code from 200 to 399 within `timeout` seconds."""
        return self._pool.submit(_is_well, port, path, timeout)

    def status(self, port: int, timeout: float) -> "Future[RunStatus | None]":
        """Ask for a worker's status: None when it says nothing of use within `timeout` seconds."""
        return self._pool.submit(ask, _HERE, port, seconds=timeout)

    def close(self) -> None:
        """Ask nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _is_well(port: int, path: str, timeout: float) -> bool:
    code, _ = get(_HERE, port, path, seconds=timeout)
    return 200 <= code < 400
