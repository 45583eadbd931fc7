"""A namespace of a real cluster, workers that are stubs, and an operator with nothing but the chart's Role.

Between the operator and the API server stands a proxy: it notes every request, lets watches fall silent, and
kills the operator after any write, before it hears of it. The operator itself holds no hook for tests. Both
run beside the tests; what asks workers needs pods that can be reached from there.
"""

import copy
import hashlib
import http.client
import json
import os
import platform
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import psutil
import pytest
import yaml

from asysi.contract.crd import GROUP, PLURAL
from asysi_operator.cluster import CHILDREN, EXPERIMENTS, KINDS, PODS, ResourceKind
from asysi_operator.manifests.labels import EXPERIMENT
from asysi_operator.observation import Observed
from asysi_operator.reconcile import OperatorSettings, plan

ROOT = Path(__file__).parents[3]
IMAGE = "asysi-stub:e2e"
SETTINGS = OperatorSettings(IMAGE, "Never")
Tree = dict[str, Any]

OTHERS = {
    one.kind: one
    for one in (
        ResourceKind("Event", "", "v1", "events"),
        ResourceKind("Role", "rbac.authorization.k8s.io", "v1", "roles"),
        ResourceKind("RoleBinding", "rbac.authorization.k8s.io", "v1", "rolebindings"),
        ResourceKind("ServiceAccount", "", "v1", "serviceaccounts"),
        ResourceKind("CustomResourceDefinition", "apiextensions.k8s.io", "v1", "customresourcedefinitions"),
    )
}
CLUSTERWIDE = {"Namespace": "/api/v1/namespaces"}

SMALL: Tree = {
    "model": {"uri": "python://stub:model"},
    "data": {"uri": "jsonl:///data/text.jsonl"},
    "workload": {"scan": {}},
    "capture": {"hookPoints": ["*"], "size": "1Mi"},
    "bus": {"size": "1Mi", "shards": 1},
    "sae": {"enabled": False},
    "archive": {"cpus": 0.02, "memory": "260Mi"},
    "output": {"claim": "results"},
    "resources": {
        "prepare": {"cpus": 0.02, "memory": "520Mi"},
        "hook": {"cpus": 0.02, "memory": "260Mi"},
        "host": {"cpus": 0.02, "memory": "260Mi", "shm": "1Mi"},
        "finish": {"cpus": 0.02, "memory": "260Mi"},
    },
    "lifecycle": {"gracePeriodSeconds": 3},
}
"""As little as the contract lets an experiment ask for."""


def laid_over(base: Tree, change: Tree) -> Tree:
    """Return `base` with `change` laid over it, key by key."""
    tree = copy.deepcopy(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = laid_over(tree[key], value) if both else value
    return tree


def until(holds: Callable[[], Any], what: str | Callable[[], Any], timeout: float = 60) -> Any:
    """Return what `holds` says as soon as that is something; else say what was waited for."""
    deadline = time.monotonic() + timeout
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:.0f} s: {what() if callable(what) else what}")
        time.sleep(0.1)
    return found


# -- The cluster


class Lab:
    """A namespace of its own, seen and changed by an administrator."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        from kubernetes import client, config

        self.namespace = namespace
        configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        configuration.connection_pool_maxsize = 32  # tests ask from many threads at once
        self._api = client.ApiClient(configuration)

    def close(self) -> None:
        """Let go of the connection."""
        self._api.close()

    @property
    def server(self) -> tuple[str, str | None]:
        """Address of the API server, and the file with its authority."""
        return self._api.configuration.host, self._api.configuration.ssl_ca_cert

    def ask(
        self, method: str, path: str, body: Tree | None = None, content: str = "application/json"
    ) -> tuple[int, Tree]:
        """Make a request and return the status and the answer."""
        headers = {"Accept": "application/json", "Content-Type": content}
        request = self._api.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        answer = self._api.call_api(*request, _request_timeout=(5, 30))
        said = answer.read()
        # A kind that the API server does not know yet is answered in plain text.
        return answer.status, json.loads(said) if said.startswith(b"{") else {"message": said.decode()}

    def path(self, kind: str, name: str = "") -> str:
        """Return the path of a kind, or of one object."""
        if kind in CLUSTERWIDE:
            return f"{CLUSTERWIDE[kind]}/{name}".rstrip("/")
        where = (KINDS | OTHERS)[kind]
        spread = "" if kind == "CustomResourceDefinition" else f"/namespaces/{self.namespace}"
        return f"{where.root}{spread}/{where.plural}/{name}".rstrip("/")

    def create(self, body: Tree, *, fine: tuple[int, ...] = ()) -> Tree:
        """Create an object."""
        status, answer = self.ask("POST", self.path(body["kind"]), body)
        assert status < 300 or status in fine, answer
        return answer

    def get(self, kind: str, name: str) -> Tree | None:
        """Return an object, None when there is none."""
        status, answer = self.ask("GET", self.path(kind, name))
        assert status in {200, 404}, answer
        return answer | {"kind": kind} if status == 200 else None

    def all(self, kind: str, *, of: str = "") -> list[Tree]:
        """Return every object of a kind, or those of one experiment."""
        selector = quote(f"{EXPERIMENT}={of}" if of else "")
        status, answer = self.ask("GET", f"{self.path(kind)}?labelSelector={selector}")
        assert status == 200, answer
        return [item | {"kind": kind, "apiVersion": answer["apiVersion"]} for item in answer["items"]]

    def edit(self, kind: str, name: str, change: Tree) -> tuple[int, Tree]:
        """Lay a change over an object."""
        return self.ask("PATCH", self.path(kind, name), change, "application/merge-patch+json")

    def delete(self, kind: str, name: str, *, grace: int | None = None) -> None:
        """Delete an object, if it is there."""
        query = "?propagationPolicy=Background" + (
            f"&gracePeriodSeconds={grace}" if grace is not None else ""
        )
        status, answer = self.ask("DELETE", self.path(kind, name) + query)
        assert status in {200, 202, 404, 409}, answer

    # Experiments

    def apply(self, name: str, spec: Tree | None = None, *, fine: tuple[int, ...] = (), **told: str) -> Tree:
        """Create an experiment with changes to the small spec, its stubs told what to do."""
        return self.create(
            {
                "apiVersion": "asysi.dev/v1alpha1",
                "kind": "ScanExperiment",
                "metadata": {
                    "name": name,
                    "namespace": self.namespace,
                    "labels": {f"stub/{container}": what for container, what in told.items()},
                },
                "spec": laid_over(SMALL, spec or {}),
            },
            fine=fine,
        )

    def status(self, name: str) -> Tree:
        """Return an experiment's status."""
        return (self.get("ScanExperiment", name) or {}).get("status") or {}

    def condition(self, name: str, kind: str) -> Tree:
        """Return a condition of an experiment."""
        return next((one for one in self.status(name).get("conditions", ()) if one["type"] == kind), {})

    def until_phase(self, name: str, phase: str, timeout: float = 90) -> Tree:
        """Wait for an experiment's phase and return its status."""
        deadline = time.monotonic() + timeout
        while (status := self.status(name)).get("phase") != phase:
            if time.monotonic() > deadline:
                raise AssertionError(f"{name} is not {phase} within {timeout:.0f} s:\n{self.account(name)}")
            time.sleep(0.1)
        return status

    def account(self, name: str) -> str:
        """Return all that is known of an experiment, for a test that fails: status, Jobs, pods, events."""
        jobs = self.all("Job", of=name)
        about = {name, *(item["metadata"]["name"] for item in (*jobs, *self.all("Pod", of=name)))}
        events = [one for one in self.all("Event") if one["involvedObject"]["name"].startswith(tuple(about))]
        found = {
            "now": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "status": self.status(name),
            "jobs": [{"metadata": _own(one), "status": one.get("status")} for one in jobs],
            "pods": [{"metadata": _own(one), "status": one["status"]} for one in self.all("Pod", of=name)],
            "events": [
                f"{one['lastTimestamp'] or one['eventTime']} {one['involvedObject']['kind']} "
                f"{one['involvedObject']['name']}: {one['reason']} {one['message']}"
                for one in sorted(events, key=lambda one: one["lastTimestamp"] or one["eventTime"])
            ],
        }
        return str(yaml.safe_dump(found, sort_keys=False, width=200))

    def events(self, name: str) -> list[tuple[str, str]]:
        """Return reason and message of every event about an experiment."""
        return [
            (one["reason"], one["message"])
            for one in self.all("Event")
            if one["involvedObject"]["kind"] == "ScanExperiment" and one["involvedObject"]["name"] == name
        ]

    def children(self, *, of: str = "") -> list[Tree]:
        """Return every object that was made for experiments, pods too."""
        found = [item for kind in (*CHILDREN, PODS) for item in self.all(kind.kind, of=of)]
        return [item for item in found if EXPERIMENT in (item["metadata"].get("labels") or {})]

    def strays(self) -> list[str]:
        """Return what is wrong with what is there: orphans, doubles, and what a plan would still change."""
        experiments = {one["metadata"]["uid"]: one for one in self.all("ScanExperiment")}
        children = self.children()
        jobs = {one["metadata"]["uid"]: one for one in children if one["kind"] == "Job"}
        wrong = []
        for item in children:
            owner = item["metadata"].get("ownerReferences", [{}])[0].get("uid")
            if owner not in (jobs if item["kind"] == "Pod" else experiments):
                wrong.append(f"orphan: {item['kind']} {item['metadata']['name']}")
        for uid, experiment in experiments.items():
            name = experiment["metadata"]["name"]
            mine = [one for one in children if one["metadata"]["labels"][EXPERIMENT] == name]
            own = [one for one in mine if one["kind"] not in {"Pod", "PersistentVolumeClaim"}]
            wrong += [f"double: {kind} of {name}" for kind in _doubles([one["kind"] for one in own])]
            living = [one for one in mine if one["kind"] == "Pod" and _lives(one)]
            wrong += [f"double: {len(living)} pods of {name}"] if len(living) > 1 else []
            observed = Observed(
                experiment,
                datetime.now(UTC),
                [one for one in mine if one["kind"] != "Pod"],
                [one for one in mine if one["kind"] == "Pod"],
            )
            actions = plan(observed, SETTINGS).actions
            wrong += [f"not yet done for {name} ({uid}): {one!r:.300}" for one in actions]
        return wrong


def _own(item: Tree) -> Tree:
    """Return what of an object's metadata says where it is in its life."""
    wanted = (
        "name",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "finalizers",
    )
    return {key: item["metadata"][key] for key in wanted if key in item["metadata"]}


def _doubles(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _lives(pod: Tree) -> bool:
    return pod["status"].get("phase") in {"Pending", "Running"} and "deletionTimestamp" not in pod["metadata"]


@pytest.fixture(scope="session")
def stub(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of the stubs, known to the node: one static program, packed here; nothing is fetched."""
    folder = tmp_path_factory.mktemp("stub")
    flags = ["-std=c++20", "-O2", "-static", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    _shell_out("g++", *flags, "-o", str(folder / "worker"), str(Path(__file__).with_name("stub.cpp")))
    archive = _packed(folder)
    if script := os.environ.get("ASYSI_CLUSTER"):
        _shell_out(script, "load", str(archive))
    elif shutil.which("kind"):
        _shell_out("kind", "load", "image-archive", str(archive), "--name", "asysi-test")
    else:
        pytest.skip("needs a way to bring an image to the node: ASYSI_CLUSTER, or kind")
    return IMAGE


def _packed(folder: Path) -> Path:
    """Return an image archive, as `docker load` reads it, with the folder's `worker` as its only file."""
    layer, archive = folder / "layer.tar", folder / "image.tar"
    with tarfile.open(layer, "w") as tar:
        tar.add(folder / "worker", "worker")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    described: dict[str, Any] = {
        "config.json": {
            "architecture": machine,
            "os": "linux",
            "config": {"Entrypoint": ["/worker"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer.read_bytes()).hexdigest()}"],
            },
        },
        "manifest.json": [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}],
    }
    with tarfile.open(archive, "w") as tar:
        tar.add(layer, "layer.tar")
        for name, content in described.items():
            (folder / name).write_text(json.dumps(content))
            tar.add(folder / name, name)
    return archive


def _shell_out(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def lab(kubeconfig: Path, volumes: None, stub: str, begun: None) -> Iterator[Lab]:
    """A namespace that enforces Pod Security's level restricted, with a claim for results."""
    lab = Lab(kubeconfig, f"asysi-lab-{os.getpid()}-{random.randrange(10**6)}")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    lab.create({"kind": "Namespace", "metadata": {"name": lab.namespace, "labels": labels}})
    definition = yaml.safe_load((ROOT / "crds" / f"{GROUP}_{PLURAL}.yaml").read_text())
    path = lab.path("CustomResourceDefinition", definition["metadata"]["name"])
    lab.ask("PATCH", f"{path}?fieldManager=tests&force=true", definition, "application/apply-patch+yaml")
    until(lambda: lab.ask("GET", lab.path(EXPERIMENTS.kind))[0] == 200, "the definition is known")
    lab.create(
        {
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "results"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
    )
    yield lab
    for one in lab.all("ScanExperiment"):
        lab.delete("ScanExperiment", one["metadata"]["name"])
    lab.ask("DELETE", lab.path("Namespace", lab.namespace))
    lab.close()


# -- The proxy


@dataclass(frozen=True)
class Request:
    """A request of the operator, and how it was answered."""

    time: float
    """Monotonic."""
    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes
    code: int

    @property
    def verbs(self) -> frozenset[tuple[str, str, str]]:
        """Group, resource and verb that it needs of a Role; none for what every user may ask."""
        parts = self.path.strip("/").split("/")
        if len(parts) < (3 if parts[0] == "api" else 4):
            return frozenset()  # what there is to be asked for
        group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
        rest = rest[2:] if rest[0] == "namespaces" and len(rest) > 2 else rest
        resource, named = "/".join([rest[0], *rest[2:]]), len(rest) > 1
        if self.method == "GET":
            verb = "get" if named else "watch" if "watch" in self.query else "list"
        else:
            verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "PUT": "update"}[self.method]
        applied = self.method == "PATCH" and self.code == 201  # an apply that creates needs both
        return frozenset((group, resource, one) for one in ([verb, "create"] if applied else [verb]))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_args: object) -> None:
        """Say nothing: a client that was killed resets its connections."""


@dataclass
class Proxy:
    """What stands between an operator and the API server."""

    lab: Lab
    requests: list[Request] = field(default_factory=list)
    silent: threading.Event = field(default_factory=threading.Event)
    """While it is set, no watch brings anything."""
    fuse: int = 0
    """Writes until the operator is killed: the last one is made and never answered; 0 lets it live."""
    kill: Callable[[], None] = lambda: None
    """Kills the operator."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    burnt: bool = False
    """Whether the last write of this operator was made: none that it had under way is made any more."""

    def __post_init__(self) -> None:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        host, authority = self.lab.server
        self.upstream = urlsplit(host)
        self.tls = ssl.create_default_context(cafile=authority)

    @property
    def url(self) -> str:
        """Where an operator finds it."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def writes(self) -> list[Request]:
        """Return the writes that were made."""
        return [one for one in list(self.requests) if one.method != "GET"]

    def pass_on(self, ask: Callable[[], http.client.HTTPResponse]) -> tuple[http.client.HTTPResponse, bool]:
        """Make a write; return the answer, and whether it was the operator's last.

        While there is a fuse, one write follows another: exactly so many are made.

        Raises:
            ConnectionAbortedError: the last one was made before this one.
        """
        if not self.fuse and not self.burnt:
            return ask(), False
        with self.lock:
            if self.burnt:
                raise ConnectionAbortedError
            response = ask()
            if response.status < 300 and self.fuse:
                self.fuse -= 1
                self.burnt = not self.fuse
            return response, self.burnt


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    _connection: http.client.HTTPSConnection | None = None

    def _pass_on(self) -> None:
        proxy, body = self.proxy, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        last = False
        try:
            if self.command == "GET":
                response = self._ask(body)
            else:
                response, last = proxy.pass_on(lambda: self._ask(body))
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            return
        where = urlsplit(self.path)
        request = Request(
            time.monotonic(), self.command, where.path, parse_qs(where.query), body, response.status
        )
        proxy.requests.append(request)
        if last:
            response.read()
            proxy.kill()
            self.close_connection = True
            return
        self._answer(response, watch="watch" in request.query)

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _pass_on  # noqa: N815 - http.server's names

    def _ask(self, body: bytes) -> http.client.HTTPResponse:
        if self._connection is None:
            at = self.proxy.upstream
            self._connection = http.client.HTTPSConnection(
                str(at.hostname), at.port or 443, context=self.proxy.tls, timeout=3600
            )
        kept = {"Authorization", "Accept", "Content-Type"}
        headers = {key: value for key, value in self.headers.items() if key.title() in kept}
        self._connection.request(self.command, self.path, body=body or None, headers=headers)
        return self._connection.getresponse()

    def _answer(self, response: http.client.HTTPResponse, *, watch: bool) -> None:
        try:
            self.send_response_only(response.status)
            self.send_header("Date", response.headers.get("Date", ""))
            self.send_header("Content-Type", response.headers.get("Content-Type", "application/json"))
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while piece := response.read1(65536):
                if not (watch and self.proxy.silent.is_set()):
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
            response.close()
        except (OSError, http.client.HTTPException):
            self.close_connection = True

    def finish(self) -> None:
        """Close what was open on both sides."""
        if self._connection is not None:
            self._connection.close()
        try:
            super().finish()
        except OSError:
            return

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


# -- The operator


@dataclass
class Operator:
    """`python -m asysi_operator` with nothing but the chart's Role, behind a proxy."""

    proxy: Proxy
    folder: Path
    port: int
    nursery: "subprocess.Popen[str]"
    """Forks it: nursery.py."""
    pid: int = 0

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return bool(self.pid) and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE

    def start(self, *options: str, wait: bool = True) -> None:
        """Start it unless it runs, and wait until its watches have brought what is there."""
        if self.alive:
            return
        self._reap()
        self.proxy.burnt = False
        own = f"--namespace={self.proxy.lab.namespace} --metrics-port={self.port} --image={IMAGE}"
        policy = f"--image-pull-policy={SETTINGS.pull_policy}"
        self.pid = self._tell("start", own, policy, *options)
        if wait:
            until(lambda: self.ask("/readyz") == 200, self.said, 30)

    def kill(self) -> None:
        """End it as by kill -9."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
            until(lambda: not self.alive, "it dies", 10)

    def stop(self) -> int:
        """Ask it to end, and return how it did."""
        os.kill(self.pid, signal.SIGTERM)
        until(lambda: not self.alive, self.said, 30)
        return self._reap()

    def _reap(self) -> int:
        pid, self.pid = self.pid, 0
        return self._tell("reap", str(pid)) if pid else 0

    def _tell(self, *words: str) -> int:
        assert self.nursery.stdin is not None
        assert self.nursery.stdout is not None
        self.nursery.stdin.write(f"{' '.join(words)}\n")
        self.nursery.stdin.flush()
        return int(self.nursery.stdout.readline())

    def ask(self, path: str) -> int | None:
        """Return the code with which one of its endpoints answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    def said(self) -> str:
        """Return the end of its log."""
        return (self.folder / "operator.log").read_text()[-4000:]


@pytest.fixture(scope="module")
def rules(lab: Lab, tool: Callable[[str], str]) -> list[Tree]:
    """The rules of the Role that the chart renders for one namespace."""
    values = f"namespaces={{{lab.namespace}}}"
    rendered = _shell_out(
        tool("helm"), "template", "lab", str(ROOT / "charts" / "asysi"),
        "--set", values, "--show-only", "templates/rbac.yaml",
    )  # fmt: skip
    [role] = [one for one in yaml.safe_load_all(rendered) if one and one["kind"] == "Role"]
    return role["rules"]


@pytest.fixture(scope="module")
def token(lab: Lab, rules: list[Tree]) -> str:
    """A token of a service account that has the chart's Role and nothing else."""
    lab.create({"kind": "ServiceAccount", "metadata": {"name": "operator"}})
    lab.create({"kind": "Role", "metadata": {"name": "operator"}, "rules": rules})
    lab.create(
        {
            "kind": "RoleBinding",
            "metadata": {"name": "operator"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
            "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": lab.namespace}],
        }
    )
    asked = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}}
    status, answer = lab.ask("POST", f"{lab.path('ServiceAccount', 'operator')}/token", asked)
    assert status == 201, answer
    return answer["status"]["token"]


@pytest.fixture(scope="module")
def proxy(lab: Lab) -> Iterator[Proxy]:
    """The proxy of the module's operator."""
    proxy = Proxy(lab)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def operator(proxy: Proxy, token: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator of the module, running; a test may kill it and must start it again."""
    with operating(proxy, token, tmp_path_factory.mktemp("operator")) as operator:
        operator.start()
        yield operator


@pytest.fixture
def skewed(
    proxy: Proxy, token: str, operator: Operator, tmp_path: Path
) -> Iterator[Callable[[int], AbstractContextManager[Operator]]]:
    """A function that replaces the module's operator for a while with one whose clock is off by seconds."""
    _shell_out(
        "g++", "-std=c++20", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror",
        "-o", str(tmp_path / "skew.so"), str(Path(__file__).with_name("skew.cpp")),
    )  # fmt: skip

    @contextmanager
    def replaced(seconds: int) -> Iterator[Operator]:
        operator.kill()
        folder = tmp_path / str(seconds)
        folder.mkdir()
        off = {"LD_PRELOAD": str(tmp_path / "skew.so"), "ASYSI_SKEW": str(seconds)}
        with operating(proxy, token, folder, **off) as other:
            other.start()
            yield other

    yield replaced
    proxy.kill = operator.kill
    operator.start()


@contextmanager
def operating(proxy: Proxy, token: str, folder: Path, **environment: str) -> Iterator[Operator]:
    """Yield an operator that is not started yet, with variables of its own, and kill it in the end."""
    (folder / "kubeconfig").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "lab",
                "clusters": [{"name": "lab", "cluster": {"server": proxy.url}}],
                "users": [{"name": "lab", "user": {"token": token}}],
                "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            }
        )
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        (folder / "operator.log").open("a") as log,
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, "KUBECONFIG": str(folder / "kubeconfig"), **environment},
        ) as nursery,
    ):  # fmt: skip
        operator = Operator(proxy, folder, port, nursery)
        proxy.kill = operator.kill
        yield operator
        operator.kill()


@pytest.fixture(name="until", scope="session")
def _until() -> Callable[..., Any]:
    """Return a function that waits until something holds."""
    return until


@pytest.fixture
def processors(lab: Lab, kubeconfig: Path, tool: Callable[[str], str]) -> Callable[[str, str], str]:
    """Return a function that says which processors the kernel lets a container use."""
    before = [tool("kubectl"), "--kubeconfig", str(kubeconfig), "--namespace", lab.namespace, "exec"]
    return lambda pod, name: _shell_out(
        *before, pod, f"--container={name}", "--", "/worker", "processors"
    ).strip()
