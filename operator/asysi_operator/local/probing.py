"""HTTP requests to the run's own processes, made in threads so that a hung worker does not block the loop."""

from concurrent.futures import Future, ThreadPoolExecutor

from asysi.contract.telemetry import RunStatus
from asysi_operator.status_client import fetch_status, get

_HERE = "127.0.0.1"


class ProbeClient:
    """HTTP client with its own threads; connects to localhost only and follows no redirects."""

    def __init__(self, threads: int = 8) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="asking")

    def is_well(self, port: int, path: str, timeout: float) -> "Future[bool]":
        """Check whether `path` responds with a status code from 200 to 399 within `timeout` seconds."""
        return self._pool.submit(_is_well, port, path, timeout)

    def status(self, port: int, timeout: float) -> "Future[RunStatus | None]":
        """Request a worker's status: None if there is no valid response within `timeout` seconds."""
        return self._pool.submit(fetch_status, _HERE, port, seconds=timeout)

    def close(self) -> None:
        """Cancel pending requests and accept no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _is_well(port: int, path: str, timeout: float) -> bool:
    code, _ = get(_HERE, port, path, seconds=timeout)
    return 200 <= code < 400
