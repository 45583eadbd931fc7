"""The operator's own endpoints: /metrics, /livez and /readyz, from a thread that no stuck loop stops."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client.exposition import choose_encoder

from asysi.contract.errors import ConfigError
from asysi_operator.metrics import REGISTRY


def serve(port: int, ill: Callable[[], str | None], ready: Callable[[], bool]) -> ThreadingHTTPServer:
    """Serve the endpoints on all interfaces.

    Args:
        port: TCP port; 0 takes a free one.
        ill: says what is wrong, None when nothing is.
        ready: whether the watches have brought what was there.

    Raises:
        ConfigError: the port is taken.
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
            """Say nothing: probes come every few seconds."""

    try:
        server = ThreadingHTTPServer(("0.0.0.0", port), Handler)  # noqa: S104 - probes come from the node
    except OSError as error:
        raise ConfigError(
            f"the operator cannot listen on port {port}: {error.strerror}; give another"
        ) from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
