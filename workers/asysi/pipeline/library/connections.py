"""Connections to one address, over httpcore: what httpx does around it costs more than many a call."""

import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

import httpcore
import httpx

CONNECT_ERRORS = (httpcore.ConnectError, httpcore.ConnectTimeout)
"""Nobody has heard the request."""
BROKEN_OFF = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.ProxyError,
    httpcore.ConnectionNotAvailable,
)
"""The server may have done the work."""
_Connection = httpcore.AsyncHTTPConnection | httpcore.AsyncConnectionPool


@dataclass(frozen=True, slots=True)
class Response:
    """A response that was read to its end.

    Attributes:
        status: its code.
        headers: by name, in any case.
        content: its body.
    """

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def text(self) -> str:
        """The body as text; what is not UTF-8 in it is replaced."""
        return self.content.decode(errors="replace")


class Connections:
    """As many connections as there are calls at once, the last one used first.

    A pool looks at every connection for every call, which costs more than the call from a few dozen on.

    Args:
        url: where requests are posted.
        headers: what every request carries.
        connect: seconds that a connection may take, > 0.
    """

    def __init__(self, url: str, headers: Mapping[str, str], connect: float) -> None:
        parsed = httpx.URL(url)
        self._url = httpcore.URL(
            scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path
        )
        self._headers = _raw({"Host": parsed.netloc.decode(), "Accept": "*/*", **headers})
        self._extensions = {"timeout": {"connect": connect}}
        # One for all of them: to read the certificates takes longer than many a call.
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
            await one.aclose()  # the server has closed it meanwhile
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
    """Return the proxy that the environment names for an address."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urllib.request.getproxies().get(parts.scheme)
