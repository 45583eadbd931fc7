"""API server requests of the benchmark, a Job watch in a thread, and pods without a kubelet."""

import json
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kubernetes import client, config

from asysi.contract.crd import GROUP, PLURAL, VERSION
from asysi.contract.runtime import PORTS, Container

Tree = dict[str, Any]
ROOTS = {
    "jobs": "/apis/batch/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    PLURAL: f"/apis/{GROUP}/{VERSION}",
}
NODE = "asysi-bench-node"
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"


class Api:
    """One API server; its methods may be called from several threads."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=self._configuration)
        self._configuration.connection_pool_maxsize = 16
        self._api = client.ApiClient(self._configuration)

    def call(self, method: str, path: str, body: Any = None, kind: str = "", **query: str) -> Tree:
        """Return the body of the response; raises RuntimeError if the API server refuses."""
        headers = {"Accept": "application/json", "Content-Type": kind or "application/json"}
        request = self._api.param_serialize(
            method, path, query_params=list(query.items()), header_params=headers,
            body=json.dumps(body) if kind == APPLY else body, auth_settings=["BearerToken"],
        )  # fmt: skip
        answer = self._api.call_api(*request, _request_timeout=60)
        content = answer.read()
        if answer.status >= 300 and not (method == "DELETE" and answer.status == 404):
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:500]!r}")
        return json.loads(content) if content[:1] == b"{" else {"text": content.decode()}

    def apply(self, namespace: str, tree: Tree) -> Tree:
        """Apply an experiment on the server, as `kubectl apply --server-side` does."""
        path = f"{where(PLURAL, namespace)}/{tree['metadata']['name']}"
        return self.call("PATCH", path, tree, APPLY, fieldManager="kubectl", force="true")

    def writes_seen(self) -> Counter[str]:
        """Return the number of writes to experiments by verb, as counted by the API server."""
        counted: Counter[str] = Counter()
        for line in self.call("GET", "/metrics")["text"].splitlines():
            if line.startswith("apiserver_request_total{") and f'resource="{PLURAL}"' in line:
                labels, _, value = line.rpartition(" ")
                verb = labels.partition('verb="')[2].partition('"')[0]
                if verb in {"POST", "PUT", "PATCH", "APPLY", "DELETE"}:
                    counted[verb] += int(float(value))
        return counted

    def cpu(self) -> float:
        """Return the CPU seconds used by the API server."""
        lines = self.call("GET", "/metrics")["text"].splitlines()
        found = next(line for line in lines if line.startswith("process_cpu_seconds_total "))
        return float(found.rpartition(" ")[2])


def where(kind: str, namespace: str) -> str:
    """Return the path of a kind in a namespace."""
    return f"{ROOTS.get(kind, '/api/v1')}/namespaces/{namespace}/{kind}"


class Jobs:
    """Records when each Job of a namespace is first seen, with its own watch."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._seen: dict[str, float] = {}
        self._news = threading.Condition()
        self._api, self._namespace = api, namespace
        threading.Thread(target=self._follow, daemon=True).start()

    def wait(self, name: str, seconds: float = 60) -> float:
        """Return when a Job was first seen (perf_counter)."""
        with self._news:
            if not self._news.wait_for(lambda: name in self._seen, seconds):
                raise TimeoutError(f"no Job {name} within {seconds} s")
            return self._seen[name]

    def count(self) -> int:
        """Return the number of Jobs seen."""
        return len(self._seen)

    def _follow(self) -> None:
        from kubernetes import watch

        jobs = client.BatchV1Api(client.ApiClient(self._api._configuration))
        for event in watch.Watch().stream(
            jobs.list_namespaced_job, self._namespace, _preload_content=False, _request_timeout=3600
        ):
            now = time.perf_counter()
            with self._news:
                self._seen.setdefault(event["raw_object"]["metadata"]["name"], now)
                self._news.notify_all()


def now() -> str:
    """Return the current time in the Kubernetes format."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Worker:
    """Serves /status on finish's port as finish does, with growing counters."""

    def __init__(self) -> None:
        began = time.monotonic()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                rows = int((time.monotonic() - began) * 1000)
                said = json.dumps(
                    {
                        "phase": "running",
                        "cpus": "1",
                        "capture": {"seen": rows, "published": rows, "dropped": {}},
                    }
                ).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_args: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", PORTS[Container.FINISH]), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def end(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()


class Pod:
    """The pod of an experiment, with this program acting as scheduler and kubelet."""

    INITS = ("prepare", "archiver", "sae", "hook")
    MAINS = ("host", "finish")

    def __init__(self, api: Api, namespace: str, experiment: str) -> None:
        self._api, self._pods = api, where("pods", namespace)
        deadline = time.monotonic() + 30
        while True:
            found = api.call("GET", self._pods, labelSelector=f"asysi.dev/experiment={experiment}")["items"]
            if found or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self._path = f"{self._pods}/{found[0]['metadata']['name']}"
        self._states = {name: {"waiting": {"reason": "PodInitializing"}} for name in self.INITS + self.MAINS}

    def bind(self) -> None:
        """Bind it to the node."""
        time.sleep(1)
        pod = self._api.call("GET", self._path)
        if not pod["spec"].get("nodeName"):
            target = {"kind": "Node", "name": NODE, "apiVersion": "v1"}
            self._api.call("POST", f"{self._path}/binding", {"metadata": pod["metadata"], "target": target})

    def runs(self, *names: str) -> None:
        """Mark containers as running."""
        self._states |= {name: {"running": {"startedAt": now()}} for name in names}
        self._say()

    def ended(self, *names: str, phase: str = "Running", message: str = "") -> None:
        """Mark containers as terminated successfully."""
        for name in names:
            began = self._states[name].get("running", {}).get("startedAt", now())
            self._states[name] = {
                "terminated": {
                    "exitCode": 0,
                    "reason": "Completed",
                    "message": message,
                    "startedAt": began,
                    "finishedAt": now(),
                }
            }
        self._say(phase)

    def _say(self, phase: str = "Running") -> None:
        def status(name: str) -> Tree:
            running = "running" in self._states[name]
            return {
                "name": name,
                "state": self._states[name],
                "ready": running,
                "started": running,
                "restartCount": 0,
                "image": "asysi-worker",
                "imageID": "",
            }

        self._api.call(
            "PATCH",
            f"{self._path}/status",
            {
                "status": {
                    "phase": phase,
                    "podIP": "127.0.0.1",
                    "podIPs": [{"ip": "127.0.0.1"}],
                    "startTime": now(),
                    "initContainerStatuses": [status(name) for name in self.INITS],
                    "containerStatuses": [status(name) for name in self.MAINS],
                }
            },
            MERGE,
        )
