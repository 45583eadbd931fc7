"""HTTP connections to one URL, using httpcore directly because of httpx's overhead per call."""

import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

import httpcore
import httpx

CONNECT_ERRORS = (httpcore.ConnectError, httpcore.ConnectTimeout)
"""The request did not reach the server."""
BROKEN_OFF = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.ProxyError,
    httpcore.ConnectionNotAvailable,
)
"""The server may have processed the request."""
_Connection = httpcore.AsyncHTTPConnection | httpcore.AsyncConnectionPool


@dataclass(frozen=True, slots=True)
class Response:
    """A completely read response.

    Attributes:
        status: status code.
        headers: headers, case-insensitive.
        content: body.
    """

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def text(self) -> str:
        """The body as text; invalid UTF-8 is replaced."""
        return self.content.decode(errors="replace")


class Connections:
    """One connection per concurrent call, reused last-in, first-out.

    httpcore's pool scans all connections on every call, which dominates with more than a few dozen.

    Args:
        url: URL to post requests to.
        headers: headers of every request.
        connect: connect timeout in seconds, > 0.
    """

    def __init__(self, url: str, headers: Mapping[str, str], connect: float) -> None:
        parsed = httpx.URL(url)
        self._url = httpcore.URL(
            scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path
        )
        self._headers = _raw({"Host": parsed.netloc.decode(), "Accept": "*/*", **headers})
        self._extensions = {"timeout": {"connect": connect}}
        # Shared by all connections: loading the certificates is slow.
        self._tls = httpx.create_ssl_context(verify=parsed.scheme == "https")
        self._proxy = _proxy(url)
        self._idle: list[_Connection] = []

    async def post(self, body: bytes, headers: Mapping[str, str]) -> Response:
        """Return the response to a request.

        Raises:
            httpcore.ConnectError, httpcore.ConnectTimeout: the server cannot be reached.
            Exception: one of `BROKEN_OFF`.
        """
        request = httpcore.Request(
            b"POST",
            self._url,
            headers=[*self._headers, (b"Content-Length", str(len(body)).encode()), *_raw(headers)],
            content=body,
            extensions=self._extensions,
        )
        one = await self._take()
        try:
            response = await one.handle_async_request(request)
            content = await response.aread()
            await response.aclose()
        except BaseException:
            await one.aclose()
            raise
        self._idle.append(one)
        return Response(response.status, httpx.Headers(response.headers), content)

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            await self._idle.pop().aclose()

    async def _take(self) -> _Connection:
        while self._idle:
            one = self._idle.pop()
            if isinstance(one, httpcore.AsyncConnectionPool) or not (one.is_closed() or one.has_expired()):
                return one
            await one.aclose()  # closed by the server in the meantime
        return self._new()

    def _new(self) -> _Connection:
        if self._proxy is None:
            return httpcore.AsyncHTTPConnection(self._url.origin, ssl_context=self._tls)
        if self._proxy.startswith("socks"):
            return httpcore.AsyncSOCKSProxy(self._proxy, ssl_context=self._tls)
        address = httpx.Proxy(self._proxy)
        auth = address.raw_auth
        return httpcore.AsyncHTTPProxy(str(address.url), proxy_auth=auth, ssl_context=self._tls)


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]


def _proxy(url: str) -> str | None:
    """Return the proxy for a URL from the environment, or None."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urllib.request.getproxies().get(parts.scheme)
