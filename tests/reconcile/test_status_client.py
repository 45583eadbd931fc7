"""What workers say is read without trust."""

import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.status import LedgerStatus, RowCounts, SaeStatus
from asysi.contract.telemetry import BODY_LIMIT, RunStatus, Summary
from asysi_operator.status_client import fetch_status

words = st.sampled_from(
    [
        *("phase", "cpus", "capture", "seen", "published", "sampledOut", "dropped", "consumers", "archiver"),
        *(
            "durable",
            "points",
            "fvu",
            "l0",
            "dead",
            "trained",
            "ledger",
            "balanced",
            "unbalanced",
            "problems",
        ),
    ]
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["0-3", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=6),
    max_leaves=20,
)


@given(anything)
def test_whatever_is_said_fits_the_status(said):
    """Any JSON is read without an error, and what is taken from it fits the schema of the status."""
    answer = RunStatus.read(json.dumps(said).encode())
    ended = Summary.read(json.dumps(said))
    for found in (answer, ended):
        if found is not None:
            RowCounts.model_validate(dict(found.counters))
    if ended is not None:
        LedgerStatus.model_validate({"unbalanced": list(ended.unbalanced)})
    if answer is not None:
        assert all(isinstance(value, float) for value in answer.sae.values())
        SaeStatus.model_validate(dict(answer.sae))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'"text"'])
def test_what_is_no_object_is_no_answer(body):
    """What is not a JSON object says nothing."""
    assert RunStatus.read(body) is None


@pytest.fixture
def worker():
    """Return a function that serves one kind of answer and returns its port."""
    servers = []

    def serve(code, body, headers=()):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(code)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):  # who asked has had enough
                    for piece in [body] if isinstance(body, bytes) else body:
                        self.wfile.write(piece)

            def log_message(self, *_args):
                """Say nothing."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].server_port

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_worker_is_asked(worker):
    """What a worker answers arrives."""
    assert fetch_status("127.0.0.1", worker(200, b'{"cpus": "1-2"}')).cpus == "1-2"


def test_a_redirect_is_not_followed(worker):
    """A worker cannot send the operator elsewhere."""
    elsewhere = worker(200, b'{"cpus": "1"}')
    port = worker(302, b"", [("Location", f"http://127.0.0.1:{elsewhere}/status")])
    assert fetch_status("127.0.0.1", port) is None


def test_an_endless_answer_is_cut_off(worker):
    """More than the limit is not read."""
    assert fetch_status("127.0.0.1", worker(200, b" " * (BODY_LIMIT + 1) + b"{}")) is None


def test_a_dripping_answer_is_cut_off(worker):
    """An answer that comes byte by byte is given up in time, although no single byte is late."""

    class Drip:
        def __iter__(self):
            for piece in (b"{", *[b" "] * 40, b"}"):
                time.sleep(0.05)
                yield piece

    assert fetch_status("127.0.0.1", worker(200, Drip()), seconds=0.3) is None


@pytest.fixture
def talker():
    """Return a function that serves bytes as they are, one after another for ever, and returns its port."""
    ended = threading.Event()
    servers = []

    def serve(begin, then, pause):
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def talk():
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(begin)
                    while not ended.wait(pause):
                        connection.sendall(then)

        threading.Thread(target=talk, daemon=True).start()
        return server.getsockname()[1]

    yield serve
    ended.set()
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("begin", "then"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X-More: x\r\n"),
        (b"HTTP/1.1 ", b"2"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["a-header", "headers", "the-first-line", "answers-before-the-answer"],
)
def test_what_comes_before_the_body_is_cut_off_in_time_too(talker, begin, then):
    """A worker that never ends its headers holds nobody up: the deadline is that of the whole answer."""
    port, began = talker(begin, then, 0.02), time.monotonic()
    asked = threading.Thread(
        target=fetch_status, args=("127.0.0.1", port), kwargs={"seconds": 0.3}, daemon=True
    )
    asked.start()
    asked.join(5)
    assert not asked.is_alive(), f"it still waits after {time.monotonic() - began:.1f} s"


def test_nobody_there_is_no_answer(worker):
    """A port on which nobody listens says nothing, and does not fail."""
    assert fetch_status("127.0.0.1", 1) is None
