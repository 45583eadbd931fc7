"""Questions over HTTP to the run's own processes, asked beside the loop, so a hung worker stops nothing."""

import http.client
from concurrent.futures import Future, ThreadPoolExecutor

ANSWER_LIMIT = 2**20
"""Bytes of an answer that are read."""


class Asker:
    """Asks on threads of its own; nothing leaves the machine, no redirect is followed."""

    def __init__(self, threads: int = 8) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="asking")

    def is_well(self, port: int, path: str, timeout: float) -> "Future[bool]":
        """Ask whether `path` answers with a code from 200 to 399 within `timeout` seconds."""
        return self._pool.submit(_is_well, port, path, timeout)

    def read(self, port: int, path: str, timeout: float) -> "Future[bytes]":
        """Ask for the body of `path`: empty when there is none, or when it is longer than the limit."""
        return self._pool.submit(_read, port, path, timeout)

    def close(self) -> None:
        """Ask nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _is_well(port: int, path: str, timeout: float) -> bool:
    return 200 <= _get(port, path, timeout)[0] < 400


def _read(port: int, path: str, timeout: float) -> bytes:
    code, body = _get(port, path, timeout)
    return body if code == 200 and len(body) <= ANSWER_LIMIT else b""


def _get(port: int, path: str, timeout: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_LIMIT + 1)
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
