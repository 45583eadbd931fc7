"""Asks workers over HTTP: bounded in bytes and in time, no redirects, no proxies."""

import http.client
import time

from asysi.contract.telemetry import BODY_LIMIT, RunStatus

SECONDS = 2.0
"""Seconds that one answer may take, from the first byte of the request to the last of the answer."""
_PIECE = 64 * 1024


def ask(address: str, port: int, *, seconds: float = SECONDS) -> RunStatus | None:
    """Return what a worker's `/status` says, None when it says nothing of use in time."""
    code, body = get(address, port, "/status", seconds=seconds)
    return RunStatus.read(body) if code == 200 else None


def get(address: str, port: int, path: str, *, seconds: float = SECONDS) -> tuple[int, bytes]:
    """Return code and body of an answer; 0 and nothing where there is none, or too much, or too late."""
    until = time.monotonic() + seconds
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    try:
        connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
        response = connection.getresponse()
        return response.status, _body(response, until)
    except (OSError, http.client.HTTPException, ValueError):
        return 0, b""
    finally:
        connection.close()


def _body(response: http.client.HTTPResponse, until: float) -> bytes:
    """Raises ValueError for a body that is too long, or too slow."""
    body = b""
    while piece := response.read1(_PIECE):
        body += piece
        if len(body) > BODY_LIMIT or time.monotonic() > until:
            raise ValueError("the answer is too long, or takes too long")
    return body
