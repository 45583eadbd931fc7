"""The operator's endpoints /metrics, /livez and /readyz, served by a thread independent of the event loop."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client.exposition import choose_encoder

from asysi.contract.errors import ConfigError
from asysi_operator.metrics import REGISTRY


def serve(port: int, ill: Callable[[], str | None], ready: Callable[[], bool]) -> ThreadingHTTPServer:
    """Serve the endpoints on all interfaces.

    Args:
        port: TCP port; 0 picks a free one.
        ill: returns what is wrong, or None.
        ready: whether the cache has synced.

    Raises:
        ConfigError: the port is in use.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/livez":
                    trouble = ill()
                    self._answer(503 if trouble else 200, f"{trouble or 'well'}\n".encode())
                case "/readyz":
                    self._answer(200 if ready() else 503, b"ready\n" if ready() else b"starting\n")
                case "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(200, encode(REGISTRY), content_type)
                case _:
                    self._answer(404, b"there are /metrics, /livez and /readyz\n")

        def _answer(self, code: int, body: bytes, content_type: str = "text/plain") -> None:
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Log nothing: probes arrive every few seconds."""

    try:
        server = ThreadingHTTPServer(("0.0.0.0", port), Handler)  # noqa: S104 - probes come from the node
    except OSError as error:
        raise ConfigError(
            f"the operator cannot listen on port {port}: {error.strerror}; choose another port"
        ) from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
