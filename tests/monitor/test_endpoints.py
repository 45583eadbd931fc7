"""The HTTP endpoints of a worker, and the frame that it runs in."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Container
from asysi.contract.spec import ScanExperiment
from asysi.contract.telemetry import BODY_LIMIT
from asysi.monitor.endpoints import serve
from asysi.monitor.health import Health
from asysi.monitor.metrics import counter
from asysi.monitor.worker import Worker

WATCHED = ScanExperiment.model_validate(
    {
        "metadata": {"name": "x"},
        "spec": {
            "model": {"uri": "file://m"},
            "workload": {"scan": {}},
            "capture": {"hookPoints": ["*"]},
        },
    }
)


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """A hook worker whose rings do not exist yet, on a free port of this machine."""
    monkeypatch.setenv("ASYSI_BIND", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Worker(Container.HOOK, WATCHED, tmp_path, tmp_path, tmp_path, attempt=3, port=port)


@pytest.fixture
def server(worker):
    """The worker's endpoints."""
    server = serve(worker)
    yield server
    server.shutdown()
    server.server_close()


def get(server, path):
    """Return status and body of a GET."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.server_address[1]}{path}", timeout=10
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_ready_means_that_startup_is_over(worker, server):
    """/readyz is 503 until the worker says that it is ready."""
    assert get(server, "/readyz")[0] == 503
    worker.health.ready()
    assert get(server, "/readyz")[0] == 200


def test_alive_means_a_recent_heartbeat_once_started(worker, server):
    """A slow start is alive; a started loop that no longer beats is not, and the answer says for how long."""
    worker.health = Health(grace=0.0)
    assert get(server, "/livez")[0] == 200
    worker.health.ready()
    code, body = get(server, "/livez")
    assert code == 503
    assert "last heartbeat 0." in body


def test_metrics_show_the_registry_and_the_pulse(worker, server):
    """/metrics holds the worker's series, heartbeat and attempt; rings that are not there show nothing."""
    counter(worker.registry, "asysi_archive_bytes_total").inc(5)
    _, body = get(server, "/metrics")
    assert "asysi_archive_bytes_total 5.0" in body
    assert "asysi_attempt 3.0" in body
    assert 'asysi_ready{container="hook"} 0.0' in body
    [beat] = [line for line in body.splitlines() if line.startswith("asysi_heartbeat_timestamp_seconds{")]
    assert abs(float(beat.split()[-1]) - time.time()) < 60
    assert "asysi_data_bus_push_total{" not in body


def test_status_is_the_workers_own(worker, server):
    """/status is JSON of what the worker answers, and of the processors that it may use."""
    worker.status = lambda: {"rate": 0.5}
    code, body = get(server, "/status")
    assert code == 200
    answer = json.loads(body)
    assert answer.pop("cpus")
    assert answer == {"rate": 0.5}


@pytest.mark.parametrize("status", [lambda: {"x": "y" * BODY_LIMIT}, lambda: 1 / 0, lambda: {"x": object()}])
def test_a_status_that_is_too_large_or_fails_is_an_error_of_its_own(worker, server, status):
    """A status beyond the limit, an exception in it, and what JSON cannot hold are a short 500."""
    worker.status = status
    code, body = get(server, "/status")
    assert code == 500
    assert len(body) < 2000
    assert json.loads(body)["error"]


def test_metrics_that_fail_are_an_error_of_their_own(worker, server):
    """A collector that raises makes /metrics a short 500."""

    class Broken:
        def collect(self):
            raise RuntimeError("boom")

    worker.registry.register(Broken) if False else worker.registry._collector_to_names.update({Broken(): []})
    assert get(server, "/metrics") == (500, '{"error": "RuntimeError: boom"}')


def test_other_paths_do_not_exist(server):
    """Anything else is 404 and names what there is."""
    code, body = get(server, "/")
    assert code == 404
    assert "/metrics" in body


def test_clients_that_say_nothing_do_not_keep_probes_out(server):
    """Silent connections fill their slots and are hung up on; afterwards a probe is answered."""
    silent = [socket.create_connection(server.server_address) for _ in range(40)]
    for client in silent:
        client.close()
    deadline = time.monotonic() + 30
    code = 0
    while code == 0 and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError, urllib.error.URLError):
            code, _ = get(server, "/livez")
    assert code == 200


def test_a_taken_port_is_bad_configuration(worker, server):
    """A port that somebody listens on is a ConfigError that names it."""
    with pytest.raises(ConfigError, match=f"hook cannot listen on 127.0.0.1:{worker.port}: .* in use"):
        serve(worker)


# -- the frame


EXPERIMENT = {
    "apiVersion": "asysi.dev/v1alpha1",
    "kind": "ScanExperiment",
    "metadata": {"name": "frame"},
    "spec": {
        "model": {"uri": "file:///m"},
        "data": {"uri": "jsonl:///d"},
        "workload": {"scan": {}},
        "capture": {"hookPoints": ["a"]},
    },
}


def run_frame(tmp_path, body, **environment):
    """Start a process whose `main(worker)` is `body`."""
    config = tmp_path / "experiment.json"
    config.write_text(json.dumps(EXPERIMENT))
    code = (
        "import os, signal, time\nfrom asysi.contract.errors import ConfigError\n"
        "from asysi.contract.runtime import Container\nfrom asysi.monitor.process import run_worker\n"
        f"def main(worker):\n    {body}\nrun_worker(Container.SAE, main)\n"
    )
    given = {
        "ASYSI_CONFIG": config, "ASYSI_SHM": tmp_path, "ASYSI_OUTPUT": tmp_path, "ASYSI_WORKSPACE": tmp_path,
        "ASYSI_TERMINATION": tmp_path / "last", "PYTHONPATH": ":".join(sys.path),
    } | environment  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={name: str(value) for name, value in given.items()},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "code", "last"),
    [
        ("return 0", 0, None),
        ("return 1", 1, None),
        ("raise ConfigError('the thing is wrong')", 2, "the thing is wrong"),
        ("raise RuntimeError('boom')", 1, "RuntimeError: boom"),
        ("os.kill(os.getpid(), signal.SIGTERM); return 0", 143, None),
        ("os.kill(os.getpid(), signal.SIGINT); return 0 if worker.stop.interrupted else 9", 0, None),
        ("worker.last_words('é' * 5000); return 0", 0, "é" * 2048),
    ],
)
def test_the_exit_code_and_the_last_words_say_how_it_ended(tmp_path, body, code, last):
    """Success, failure, bad configuration and signals have their codes; messages stay within 4 KiB."""
    process = run_frame(tmp_path, body)
    process.communicate(timeout=60)
    assert process.returncode == code
    said = tmp_path / "last"
    assert (said.read_text() if said.exists() else None) == last


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ASYSI_SHM": ""}, "sae needs ASYSI_SHM in its environment"),
        ({"ASYSI_PORT": "http"}, "ASYSI_PORT is 'http' and must be a whole number"),
        ({"ASYSI_CONFIG": "/nowhere.json"}, "sae cannot read the experiment in /nowhere.json"),
    ],
)
def test_a_broken_environment_is_bad_configuration(tmp_path, environment, sentence):
    """Missing or unreadable environment ends in exit code 2 with a sentence, and no traceback."""
    process = run_frame(tmp_path, "return 0", **environment)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert sentence in log
    assert "Traceback" not in log


def test_sigterm_from_outside_lets_the_loop_finish(tmp_path):
    """The loop sees the request, and its clean end becomes 143."""
    process = run_frame(
        tmp_path,
        "print('up', flush=True)\n    while not worker.stop.terminated: time.sleep(0.01)\n    return 0",
    )
    assert process.stdout.readline() == "up\n"
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.parametrize("state", ["finalised", "checkpointed"])
def test_a_sidecar_started_again_after_the_end_only_waits(tmp_path, state):
    """Kubernetes restarts a sidecar that has ended: it is ready, does no work, and leaves SIGTERM with 0."""
    from asysi.contract.runtime import BUS_RING
    from asysi_ring import Reader, create

    folder = tmp_path / BUS_RING
    create(str(folder), shards=1, chunks=40, chunk_bytes=4096, readers=["sae"], policy="overwrite")
    with Reader(str(folder), "sae") as reader:
        reader.finalise(state)
    before = (folder / "control").read_bytes()
    process = run_frame(tmp_path, "print('worked', flush=True); return 0")
    log = process.stderr.readline()
    assert "waiting for the pod's end" in log
    os.kill(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert (folder / "control").read_bytes() == before
    assert not (tmp_path / "last").exists()


def test_a_signal_after_the_work_does_not_change_its_exit_code(tmp_path):
    """Ctrl-C or a pod's end, while the interpreter ends, leave the code of the work that is done."""
    body = (
        "global late\n"
        "    class Late:\n"
        "        def __del__(self, say=os.write, sleep=time.sleep):\n"
        "            say(1, b'late\\n')\n"
        "            sleep(1)\n"
        "    late = Late()\n"
        "    return 0"
    )
    process = run_frame(tmp_path, body)
    assert process.stdout.readline() == "late\n", process.communicate()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
