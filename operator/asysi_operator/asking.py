"""Asks workers in pods for their /status: bounded in bytes and in time, no redirects, no proxies."""

import http.client
import time

from asysi_operator.answers import LIMIT, Answer, read_answer

SECONDS = 2.0
"""Seconds that one answer may take, from the first byte of the request to the last of the answer."""
_PIECE = 64 * 1024


def ask(address: str, port: int, *, seconds: float = SECONDS) -> Answer | None:
    """Return what a worker says, None when it says nothing of use in time."""
    until = time.monotonic() + seconds
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    try:
        connection.request("GET", "/status", headers={"Accept": "application/json", "Connection": "close"})
        response = connection.getresponse()
        return read_answer(_body(response, until)) if response.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _body(response: http.client.HTTPResponse, until: float) -> bytes:
    """Raises ValueError for a body that is too long, or too slow."""
    body = b""
    while piece := response.read1(_PIECE):
        body += piece
        if len(body) > LIMIT or time.monotonic() > until:
            raise ValueError("the answer is too long, or takes too long")
    return body
