"""HTTP client for worker status: bounded in bytes and time; no redirects, no proxies."""

import http.client
import io
import socket
import time
from typing import Any

from asysi.contract.telemetry import BODY_LIMIT, RunStatus

SECONDS = 2.0
"""Total timeout in seconds, from the first byte of the request to the last byte of the response."""
_PIECE = 64 * 1024
_LEAST = 0.001
"""Seconds that a connection may take at least: a timeout of 0 would mean not to wait at all."""


def fetch_status(address: str, port: int, *, seconds: float = SECONDS) -> RunStatus | None:
    """Return a worker's `/status`, or None if there is no valid response in time."""
    code, body = get(address, port, "/status", seconds=seconds)
    return RunStatus.read(body) if code == 200 else None


def get(address: str, port: int, path: str, *, seconds: float = SECONDS) -> tuple[int, bytes]:
    """Return status code and body; 0 and an empty body if the response is missing, too long or too late."""
    until = time.monotonic() + seconds
    connection = _Connection(address, port, until)
    try:
        connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
        response = connection.getresponse()
        return response.status, _body(response)
    except (OSError, http.client.HTTPException, ValueError):
        return 0, b""
    finally:
        connection.end()


def _body(response: http.client.HTTPResponse) -> bytes:
    """Return a body; raises ValueError for one that is too long."""
    body = b""
    while piece := response.read1(_PIECE):
        body += piece
        if len(body) > BODY_LIMIT:
            raise ValueError("the answer is too long")
    return body


class _Connection(http.client.HTTPConnection):
    """A connection whose reads all end at one moment: a socket's own timeout begins again with each byte."""

    def __init__(self, address: str, port: int, until: float) -> None:
        super().__init__(address, port, timeout=max(_LEAST, until - time.monotonic()))
        self._until = until
        self._socket: socket.socket | None = None

    def connect(self) -> None:
        """Connect; what is read comes through `_Reads`."""
        super().connect()
        self._socket = self.sock
        self.sock = _Reads(self._socket, self._until)

    def end(self) -> None:
        """Close the connection, also where an answer still reads from it."""
        if self._socket is not None:
            self._socket.close()


class _Reads(io.RawIOBase):
    """A socket as far as an HTTP client needs one; to close it is up to the connection."""

    def __init__(self, connected: socket.socket, until: float) -> None:
        super().__init__()
        self._socket, self._until = connected, until
        self.sendall = connected.sendall

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return what an answer is read from."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come; raises TimeoutError once it is too late."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer takes too long")
        self._socket.settimeout(left)
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        """Do nothing: an answer is read after the client has let go of the connection."""
