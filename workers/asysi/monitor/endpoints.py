"""The HTTP endpoints of a worker: `/metrics`, `/livez`, `/readyz` and `/status`."""

import json
import os
import socketserver
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler
from socket import socket

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from asysi.contract.cpus import format_cpu_list
from asysi.contract.errors import ConfigError
from asysi.contract.telemetry import BODY_LIMIT
from asysi.monitor.metrics import gauge_family
from asysi.monitor.rings import collectors
from asysi.monitor.worker import Worker

_CONNECTIONS = 16
_CLIENT_SECONDS = 5.0
_BIND = "ASYSI_BIND"


def serve(worker: Worker) -> "Server":
    """Serve the worker's endpoints from a daemon thread: `worker.port` of `ASYSI_BIND`, or of all interfaces.

    Raises:
        ConfigError: the address is in use or does not belong to this machine.
    """
    bind = os.environ.get(_BIND) or "0.0.0.0"  # noqa: S104 - a pod's probes come from the node
    try:
        server = Server((bind, worker.port), worker)
    except OSError as error:
        raise ConfigError(
            f"{worker.container} cannot listen on {bind}:{worker.port}: {error.strerror}; "
            "free the port, or give another"
        ) from error
    worker.registry.register(_Pulse(worker))
    ProcessCollector(registry=worker.registry)
    for collector in collectors(worker.container, worker.experiment.spec, worker.shm):
        worker.registry.register(collector)
    threading.Thread(target=server.serve_forever, name="endpoints", daemon=True).start()
    return server


class Server(socketserver.ThreadingTCPServer):
    """Limits the number and duration of concurrent connections, so that no client can exhaust a worker."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64
    block_on_close = False

    def __init__(self, address: tuple[str, int], worker: Worker) -> None:
        self.worker = worker
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: socket | tuple[bytes, socket], client_address: object) -> None:
        """Handle the request in a new thread, or close the connection if too many are open."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: socket | tuple[bytes, socket], client_address: object) -> None:
        """Handle the request, then release the slot."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: object) -> None:
        """Ignore errors such as clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    """Handles one request per connection (HTTP/1.0)."""

    server: Server
    timeout = _CLIENT_SECONDS

    def do_GET(self) -> None:
        worker = self.server.worker
        match self.path.partition("?")[0]:
            case "/livez":
                self._verdict(worker.health.alive, f"last heartbeat {worker.health.age:.1f} s ago\n")
            case "/readyz":
                self._verdict(worker.health.started, "started\n" if worker.health.started else "starting\n")
            case "/metrics":
                self._answer(*_metrics(worker, self.headers.get("Accept", "")))
            case "/status":
                self._answer(*_status(worker))
            case _:
                self._answer(404, "text/plain", b"there are /metrics, /livez, /readyz and /status\n")

    def _verdict(self, good: bool, text: str) -> None:
        self._answer(200 if good else 503, "text/plain", text.encode())

    def _answer(self, code: int, content_type: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Log nothing: probes arrive every few seconds."""


Answer = tuple[int, str, bytes]


def _metrics(worker: Worker, accept: str) -> Answer:
    encode, content_type = choose_encoder(accept)
    try:
        return 200, content_type, encode(worker.registry)
    except Exception as error:  # noqa: BLE001 - the endpoint must always respond
        return _failure(f"{type(error).__name__}: {error}")


def _status(worker: Worker) -> Answer:
    try:
        body = json.dumps({"cpus": format_cpu_list(os.sched_getaffinity(0)), **worker.status()}).encode()
    except Exception as error:  # noqa: BLE001 - as above
        return _failure(f"{type(error).__name__}: {error}")
    if len(body) > BODY_LIMIT:
        return _failure(f"status has {len(body)} bytes, more than {BODY_LIMIT}")
    return 200, "application/json", body


def _failure(reason: str) -> Answer:
    return 500, "application/json", json.dumps({"error": reason[:1000]}).encode()


class _Pulse(Collector):
    """Metrics of every worker: heartbeat, readiness and attempt."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterable[Metric]:
        health, container = self._worker.health, str(self._worker.container)
        heartbeat, ready, attempt = (
            gauge_family(name)
            for name in ("asysi_heartbeat_timestamp_seconds", "asysi_ready", "asysi_attempt")
        )
        heartbeat.add_metric([container], time.time() - health.age)
        ready.add_metric([container], float(health.started))
        attempt.add_metric([], self._worker.attempt)
        return heartbeat, ready, attempt
