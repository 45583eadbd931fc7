"""Bad and hostile experiments: refused with the name of what is wrong, nothing made of them, no harm left.

The mutations are made by walking the schema: at every place values of other types, out of range, too long, of
hostile content, unknown keys and keys of a pod, features that do not exist yet; and by hand what
breaks the rules between fields. They go to a real API server, those that it admits to the operator's
decision, and some to a real operator from their creation to their recovery.
"""

import copy
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from asysi.contract.available import REFUSALS
from asysi.contract.crd import GROUP, PLURAL, VERSION, structural
from asysi.contract.fields import Path as SpecPath
from asysi.contract.fields import written
from asysi.contract.frozen import MUTABLE
from asysi.contract.spec import ScanExperiment, Spec
from asysi_operator.observation import Observed
from asysi_operator.reconcile import Apply, OperatorSettings, Plan, plan

Tree = dict[str, Any]
ROOT = Path(__file__).parents[2]
KINDS = ("jobs", "configmaps", "persistentvolumeclaims", "networkpolicies")
LABEL = "asysi.dev/experiment"
GOOD: Tree = {
    "apiVersion": f"{GROUP}/{VERSION}",
    "kind": "ScanExperiment",
    "metadata": {"name": "experiment"},
    "spec": {
        "model": {"uri": "file:///inputs/files/model"},
        "data": {"uri": "jsonl:///inputs/files/text.jsonl"},
        "inputs": [{"claim": "files"}],
        "workload": {"scan": {}},
        "capture": {"hookPoints": ["encoder.layer.*.output"]},
        "sae": {"train": [{"name": "topk"}]},
        "scheduling": {
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes"}],
        },
        "lifecycle": {"suspend": True},
    },
}
HOSTILE = (
    "../../etc/passwd",
    "/etc/passwd",
    "a b",
    "$(id)",
    "Ünïcode",
    "a\x00b",
    "NaN",
    "-",
    "{{ x }}",
    "a\n",
)
FOREIGN: Tree = {
    "serviceAccountName": "cluster-admin",
    "automountServiceAccountToken": True,
    "hostNetwork": True,
    "hostPID": True,
    "hostPath": {"path": "/"},
    "privileged": True,
    "securityContext": {"runAsUser": 0, "privileged": True},
    "volumes": [{"name": "root", "hostPath": {"path": "/"}}],
    "volumeMounts": [{"name": "root", "mountPath": "/host"}],
    "initContainers": [{"name": "own", "image": "own"}],
    "env": [{"name": "LD_PRELOAD", "value": "/tmp/own.so"}],
    "nodeName": "node-1",
    "../../etc": "x",
}
"""Keys that a pod, or a mistaken program, would take for orders."""
BY_HAND: dict[str, tuple[Tree, str]] = {
    "two workloads": ({"workload": {"scan": {}, "custom": {"image": "i", "command": ["c"]}}}, "workload"),
    "no workload": ({"workload": {"scan": None}}, "workload"),
    "a scan of nothing": ({"data": None}, "data"),
    "Redis without CONSUMER mode": ({"bus": {"redis": {"url": "redis://r"}}}, "bus.redis"),
    "replicas without CONSUMER mode": ({"consumers": {"replicas": 2}}, "consumers.replicas"),
    "a bus larger than prepare": ({"bus": {"size": "4Gi"}}, "bus.size"),
    "a capture ring larger than prepare": ({"capture": {"size": "4Gi"}}, "capture.size"),
    "rings larger than all limits": (
        {"bus": {"size": "60Gi"}, "resources": {"prepare": {"memory": "64Gi"}}},
        "bus.size",
    ),
    "a prepare that holds no rings": ({"resources": {"prepare": {"memory": "300Mi"}}}, "prepare.memory"),
    "a hook of a byte": ({"resources": {"hook": {"memory": "1"}}}, "hook.memory"),
    "an archiver of a byte": ({"archive": {"memory": "1"}}, "archive.memory"),
    "a /dev/shm larger than its host": ({"resources": {"host": {"shm": "8Gi"}}}, "shm"),
    "a floor above the ceiling": ({"capture": {"sampling": {"rate": 0.1, "minRate": 0.2}}}, "minRate"),
    "more firing than there are": ({"sae": {"train": [{"k": 9, "latents": 8}]}}, "latents"),
    "two trainers of a name": ({"sae": {"train": [{"name": "a"}, {"name": "a"}]}}, "name"),
    "nobody reads": ({"sae": {"enabled": False}, "archive": {"enabled": False}}, "archive"),
    "an input twice": ({"inputs": [{"claim": "files"}, {"claim": "files"}]}, "input"),
    "a revision of a folder": ({"model": {"revision": "main"}}, "revision"),
    "a count without random": ({"capture": {"positions": {"count": 3}}}, "count"),
    "a separator without concat": ({"data": {"tokens": {"separatorToken": "x"}}}, "separatorToken"),
    "a selector that is not a label": ({"scheduling": {"nodeSelector": {"../..": "x"}}}, "nodeSelector"),
    "a toleration of nothing": ({"scheduling": {"tolerations": [{"operator": "Equal"}]}}, "operator"),
    "a value of anything": (
        {"scheduling": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
        "value",
    ),
    "a way out of the inputs": ({"model": {"uri": "file:///inputs/files/../../etc"}}, "spec.model.uri"),
    "a claim that is not mounted": ({"model": {"uri": "file:///inputs/other/model"}}, "spec.model.uri"),
    "a tokenizer elsewhere": ({"model": {"tokenizer": "/inputs/other"}}, "spec.model.tokenizer"),
    "a relative model": ({"model": {"uri": "file://models/minilm"}}, "spec.model.uri"),
    "relative data": ({"data": {"uri": "jsonl://text.jsonl"}}, "spec.data.uri"),
    "data above the root": ({"data": {"uri": "jsonl:///../etc/shadow"}}, "spec.data.uri"),
    "a folder of the node": ({"output": {"uri": "/var/lib/kubelet"}}, "spec.output.uri"),
    "a model by FTP": ({"model": {"uri": "ftp://host/model"}}, "spec.model.uri"),
    "a model without a scheme": ({"model": {"uri": "/etc/passwd"}}, "spec.model.uri"),
}
"""What breaks a rule between fields, or one that only a cluster has, and what a refusal has to name."""


@dataclass(frozen=True)
class Bad:
    """An experiment with one thing wrong."""

    what: str
    tree: Tree
    name: str
    """What a refusal has to name."""

    def is_named_in(self, message: str) -> bool:
        """Whether a refusal names what is wrong: its path, that of the part it lies in, or its key."""
        above = self.name.rpartition(".")[0]
        key = re.split(r"[.\[]", self.name)[-1].rstrip("]")
        return (
            self.name in message
            or (above.count(".") > 0 and above in message)
            or (not key.isdecimal() and re.search(rf"\b{re.escape(key)}\b", message) is not None)
        )


def overlaid(base: Tree, change: Tree) -> Tree:
    """Return a tree with another laid over it; None removes a key."""
    tree = copy.deepcopy(base)
    for key, value in change.items():
        if value is None:
            tree.pop(key, None)
        elif isinstance(value, dict) and isinstance(tree.get(key), dict):
            tree[key] = overlaid(tree[key], value)
        else:
            tree[key] = copy.deepcopy(value)
    return tree


def placed(path: SpecPath, value: Any) -> Tree:
    """Return the good experiment with a value at a path."""
    tree = copy.deepcopy(GOOD)
    part: Any = tree
    for step, after in itertools.pairwise(path):
        empty: Any = [] if isinstance(after, int) else {}
        if isinstance(step, int):
            part.extend([empty] if not part else [])
            part = part[step]
        else:
            part = part.setdefault(step, empty)
    if isinstance(path[-1], int):
        part[:] = [value]
    else:
        part[path[-1]] = value
    return tree


def mutations() -> list[Bad]:
    """Return every mutation: what is wrong with each is refused wherever it is looked at."""
    root = structural(Spec)
    found = [Bad("the spec is a list", GOOD | {"spec": []}, "spec")]
    found += [Bad(f"{name} as a name", _renamed(name), "metadata.name") for name in ("A", "a_b", "x" * 53)]
    found += list(_at_places(root, ("spec",)))
    found += [
        Bad(what, GOOD | {"spec": overlaid(GOOD["spec"], change)}, name)
        for what, (change, name) in BY_HAND.items()
    ]
    return list({json.dumps(bad.tree, sort_keys=True): bad for bad in found}.values())


def _renamed(name: str) -> Tree:
    return GOOD | {"metadata": {"name": name}}


def _at_places(schema: Tree, path: SpecPath) -> Iterator[Bad]:
    for what, value in _wrong(schema, path):
        yield Bad(f"{written(path)}: {what}", placed(path, value), written(path))
    for key, value in _unknown(schema, path):
        yield Bad(f"{written(path)}: unknown {key}", placed((*path, key), value), written((*path, key)))
    for key, member in schema.get("properties", {}).items():
        yield from _at_places(member, (*path, key))
    if "items" in schema:
        yield from _at_places(schema["items"], (*path, 0))
    if "additionalProperties" in schema:
        yield from _at_places(schema["additionalProperties"], (*path, "key"))


def _wrong(schema: Tree, path: SpecPath) -> Iterator[tuple[str, Any]]:
    others: dict[str, Any] = {"text": "text", "whole": 7, "part": 1.5, "truth": True, "list": [], "map": {}}
    kinds = {
        "object": {"map"},
        "array": {"list"},
        "string": {"text"},
        "integer": {"whole"},
        "number": {"whole", "part"},
        "boolean": {"truth"},
    }
    for what, value in others.items():
        if what not in kinds[schema["type"]]:
            yield f"a {what}", value
    yield from {"object": _wrong_map, "array": _wrong_list, "string": _wrong_text}.get(
        schema["type"], _wrong_number
    )(schema)
    if any(refusal.pattern == written(path).replace("[0]", "[]") for refusal in REFUSALS):
        yield from (("of no feature", value) for value in _unavailable(schema, path))


def _wrong_map(schema: Tree) -> Iterator[tuple[str, Any]]:
    if "additionalProperties" in schema:
        yield "too many keys", {f"k{number}": "v" for number in range(schema["maxProperties"] + 1)}
        yield "a hostile key", {"../../etc": {}}


def _wrong_list(schema: Tree) -> Iterator[tuple[str, Any]]:
    yield "a list in a list", [[[]]]
    yield "null in a list", [None]
    yield "too long a list", [{}] * (schema["maxItems"] + 1)
    if schema.get("minItems"):
        yield "an empty list", []


def _wrong_text(schema: Tree) -> Iterator[tuple[str, Any]]:
    if "enum" in schema:
        yield from ((f"the word {word!r}", word) for word in ("nonsense", "", schema["enum"][0].swapcase()))
        return
    yield "too long a text", "x" * (schema["maxLength"] + 1)
    yield "a huge text", "x" * 100_000
    if schema.get("minLength"):
        yield "no text", ""
    if pattern := schema.get("pattern"):
        for text in (*HOSTILE, "0Gi", "-1Gi", "1e9Gi"):
            if not re.fullmatch(pattern.rstrip("$"), text):
                yield f"the text {text!r}", text


def _wrong_number(schema: Tree) -> Iterator[tuple[str, Any]]:
    yield from ((f"the text {text!r}", text) for text in ("NaN", ".inf", "1e400", ""))
    if "minimum" in schema:
        yield "too little", schema["minimum"] - (0 if schema.get("exclusiveMinimum") else 1)
        yield "far too little", -(2**40)
    if "maximum" in schema:
        yield "too much", schema["maximum"] + (0 if schema.get("exclusiveMaximum") else 1)
        yield "far too much", 2**60


def _unavailable(schema: Tree, path: SpecPath) -> Iterator[Any]:
    """Yield values that the schema takes and no feature does."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        yield {"deep": {"er": [1, FOREIGN]}}
    elif "enum" in schema:
        default = schema.get("default")
        yield from (word for word in schema["enum"] if word not in {default, "none", "fp8", "int8", "all"})
    elif schema["type"] == "string" and path[-1] not in {"output", "tokenizer"}:
        yield "memory://x"
    elif schema["type"] == "array" and schema["items"]["type"] == "string":
        yield [schema["items"].get("enum", ["x"])[-1]]


def _unknown(schema: Tree, path: SpecPath) -> Iterator[tuple[str, Any]]:
    if "properties" not in schema:
        return
    yield f"{next(iter(schema['properties']))}x", {}
    chosen = [(key, value) for key, value in FOREIGN.items() if key not in schema["properties"]]
    start = sum(len(str(step)) for step in path)
    for turn in range(len(chosen) if len(path) < 3 else 3):
        key, value = chosen[(start + turn) % len(chosen)]
        yield key, value


MUTATIONS = mutations()


def test_there_are_enough_of_them() -> None:
    """The walk finds at least 500 mutations, and each is of its own."""
    assert len(MUTATIONS) >= 500
    assert len({json.dumps(bad.tree, sort_keys=True) for bad in MUTATIONS}) == len(MUTATIONS)


def decide(tree: Tree, children: list[Tree] | None = None, generation: int = 1) -> Plan:
    """Return what the operator decides about an experiment whose host has not started."""
    identity = {"namespace": "lab", "uid": "1", "generation": generation}
    there = tree | {"metadata": {**tree["metadata"], **identity}}
    return plan(Observed(there, datetime(2026, 1, 2, tzinfo=UTC), children or []), OperatorSettings())


def made_by(decided: Plan) -> list[Tree]:
    """Return the objects of a plan as the API server would keep them."""
    applied = [action.manifest for action in decided.actions if isinstance(action, Apply)]
    return [item | {"metadata": item["metadata"] | {"uid": f"u{i}"}} for i, item in enumerate(applied)]


def test_the_operator_refuses_each_by_name() -> None:
    """Even without the API server's schema: no write at all, and a message that names the field."""
    wrong = []
    for bad in MUTATIONS:
        decided = decide(bad.tree)
        if decided.refusal is None or decided.actions:
            wrong.append(f"{bad.what}: taken")
        elif not bad.is_named_in(decided.refusal.message):
            wrong.append(f"{bad.what}: {decided.refusal.message}")
    assert wrong == []


def test_each_recovers_when_it_is_reverted() -> None:
    """A good experiment's objects survive each bad edit untouched, and its revert leaves nothing to do."""
    objects = made_by(decide(GOOD))
    assert {item["kind"] for item in objects} >= {"Job", "ConfigMap", "NetworkPolicy"}
    assert decide(GOOD, objects).actions == []
    touched = [bad.what for bad in MUTATIONS if decide(bad.tree, objects, 2).actions]
    assert touched == []
    assert decide(GOOD, objects, 3).actions == []


class Api:
    """One API server, asked without a client's own checks."""

    def __init__(self, kubeconfig: Path) -> None:
        from kubernetes import config

        self._api = config.new_client_from_config(str(kubeconfig))
        self.kubeconfig = kubeconfig

    def call(self, method: str, path: str, body: Any = None, **query: str) -> tuple[int, Tree]:
        """Return code and body of an answer."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = self._api.param_serialize(
            method, path, query_params=list(query.items()), auth_settings=["BearerToken"],
            header_params={"Accept": "application/json", "Content-Type": kind}, body=body,
        )  # fmt: skip
        answer = self._api.call_api(*request, _request_timeout=30)
        content = answer.read()
        if not answer.headers.get("Content-Type", "").startswith("application/json"):
            return answer.status, {"message": content.decode()}  # a kind that is not served yet: plain text
        return answer.status, json.loads(content)

    def experiments(self, namespace: str, name: str = "") -> str:
        """Return the path of experiments, or of one."""
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"
        return f"{path}/{name}" if name else path

    def made(self, namespace: str, name: str) -> set[str]:
        """Return the kinds and identities of what carries an experiment's label."""
        roots = {"jobs": "/apis/batch/v1", "networkpolicies": "/apis/networking.k8s.io/v1"}
        found = set()
        for kind in KINDS:
            path = f"{roots.get(kind, '/api/v1')}/namespaces/{namespace}/{kind}"
            _code, items = self.call("GET", path, labelSelector=f"{LABEL}={name}")
            found |= {f"{kind} {item['metadata']['uid']}" for item in items["items"]}
        return found


def wait_for(holds: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Return what `holds` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def api(kubeconfig: Path) -> Iterator[Api]:
    """Return an API server that knows the committed definition."""
    api = Api(kubeconfig)
    definition = yaml.safe_load((ROOT / "crds" / f"{GROUP}_{PLURAL}.yaml").read_text())
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    named = f"{path}/{definition['metadata']['name']}"
    known = api.call("GET", named)[0] == 200
    code, said = api.call("PATCH", named, definition) if known else api.call("POST", path, definition)
    assert code in {200, 201}, said
    newest = copy.deepcopy(GOOD)  # with the latest field, which an older definition does not know
    newest["spec"]["output"] = {"whenDeleted": "Retain"}
    wait_for(
        lambda: (
            api.call("POST", api.experiments("default"), newest, dryRun="All", fieldValidation="Strict")[0]
            == 201
        ),
        "the definition is served",
    )
    yield api
    if not known:
        api.call("DELETE", named)


@pytest.fixture(scope="module")
def namespace(api: Api) -> Iterator[str]:
    """Return a namespace of its own."""
    name = f"asysi-bad-{os.getpid()}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    wait_for(
        lambda: api.call("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default")[0] == 200, "a namespace"
    )
    yield name
    api.call("DELETE", api.experiments(name))
    api.call("DELETE", f"/api/v1/namespaces/{name}")


@pytest.mark.e2e
def test_each_is_refused_by_the_api_server_or_by_the_operator(api: Api, namespace: str) -> None:
    """What the API server admits, the operator refuses as it is stored; each time with the field's name."""
    wrong, by_whom = [], {"API server": 0, "operator": 0}
    for bad in MUTATIONS:
        code, said = api.call(
            "POST", api.experiments(namespace), bad.tree, dryRun="All", fieldValidation="Strict"
        )
        if code == 201:
            by_whom["operator"] += 1
            decided = decide(said)
            message = decided.refusal.message if decided.refusal and not decided.actions else "taken"
        else:
            by_whom["API server"] += 1
            message = said["message"]
        if not bad.is_named_in(message):
            wrong.append(f"{bad.what}: {code} {message[:300]}")
    assert wrong == []
    assert min(by_whom.values()) >= 10, by_whom


@pytest.mark.e2e
def test_unknown_keys_vanish_where_nobody_is_strict(api: Api, namespace: str) -> None:
    """A client that asks for no validation gets foreign keys dropped: none is stored, so none can act."""
    unknown = [bad for bad in MUTATIONS if ": unknown " in bad.what and "workload" not in bad.what]
    assert len(unknown) >= 50
    _code, good = api.call("POST", api.experiments(namespace), GOOD, dryRun="All")
    kept = []
    for bad in unknown:
        code, said = api.call(
            "POST", api.experiments(namespace), bad.tree, dryRun="All", fieldValidation="Ignore"
        )
        if code == 201 and bad.name.rpartition(".")[2] in json.dumps(said["spec"]):
            kept.append(bad.what)
        elif code == 201 and decide(said).refusal is None:
            assert said["spec"].keys() == good["spec"].keys()
    assert kept == []


@pytest.mark.e2e
@pytest.mark.parametrize("body", [b'{"spec": NaN}', b"{", b"\xff\xfe", b"[" * 50_000])
def test_what_is_no_json_is_refused(api: Api, namespace: str, body: bytes) -> None:
    """NaN, half a document, other encodings and endless nesting do not reach the schema."""
    request = api._api.param_serialize(
        "POST", api.experiments(namespace), auth_settings=["BearerToken"],
        header_params={"Accept": "application/json", "Content-Type": "application/json"},
    )  # fmt: skip
    method, url, headers, *_rest = request
    answer = api._api.rest_client.pool_manager.request(method, url, headers=headers, body=body, timeout=30)
    assert answer.status == 400


def _edits() -> list[tuple[str, Tree]]:
    """Return an edit of each frozen part of the spec."""
    edits: dict[str, Tree] = {
        "spec.mode": {"mode": "CONSUMER"},
        "spec.model": {"model": {"dtype": "float16"}},
        "spec.data": {"data": {"holdout": {"seed": 7}}},
        "spec.inputs": {"inputs": [{"claim": "others"}]},
        "spec.workload": {"workload": {"scan": {"passes": 7}}},
        "spec.capture": {"capture": {"hookPoints": ["*"]}},
        "spec.bus": {"bus": {"shards": 7}},
        "spec.sae": {"sae": {"cpus": 7}},
        "spec.archive": {"archive": {"compression": "zstd"}},
        "spec.weights": {"weights": {"enabled": True}},
        "spec.output.claim": {"output": {"claim": "others"}},
        "spec.output.size": {"output": {"size": "7Gi"}},
        "spec.output.storageClassName": {"output": {"storageClassName": "fast"}},
        "spec.output.accessModes": {"output": {"accessModes": ["ReadWriteMany"]}},
        "spec.resources": {"resources": {"host": {"gpus": 1}}},
        "spec.consumers": {"mode": "CONSUMER", "consumers": {"replicas": 7}},
        "spec.finish": {"finish": {"spliceTokens": 7}},
        "spec.scheduling": {"scheduling": {"queueName": "other"}},
        "spec.lifecycle.startDeadlineSeconds": {"lifecycle": {"startDeadlineSeconds": 7}},
        "spec.lifecycle.maxRestarts": {"lifecycle": {"maxRestarts": 7}},
        "spec.lifecycle.gracePeriodSeconds": {"lifecycle": {"gracePeriodSeconds": 7}},
    }
    parts = {f"spec.{field.alias or name}" for name, field in Spec.model_fields.items()}
    assert parts - {"spec.lifecycle", "spec.output"} <= edits.keys()
    return list(edits.items())


@pytest.mark.e2e
def test_frozen_fields_are_refused_by_name_once_the_host_has_started(api: Api, namespace: str) -> None:
    """Each frozen part may change before the host's start, and is refused by its path after it."""
    tree = GOOD | {"metadata": {"name": "frozen"}}
    one = api.experiments(namespace, "frozen")
    assert api.call("POST", api.experiments(namespace), tree)[0] == 201
    for name, edit in _edits():
        code, said = api.call("PATCH", one, {"spec": edit}, dryRun="All")
        assert code == 200, f"{name} before the start: {said}"
    started = {"status": {"startTime": "2026-01-01T00:00:00Z"}}
    assert api.call("PATCH", f"{one}/status", started)[0] == 200
    for name, edit in _edits():
        code, said = api.call("PATCH", one, {"spec": edit, "status": {"startTime": None}}, dryRun="All")
        assert code == 422, name
        assert f"{name}: Forbidden: {name} is frozen once the host has started" in said["message"]
    others = {"lifecycle.suspend": False, "output.whenDeleted": "Retain"}
    for field in MUTABLE:
        part, _, key = field.partition(".")
        change = {"spec": {part: {key: others.get(field, 7)}}}
        assert api.call("PATCH", one, change, dryRun="All")[0] == 200, field
    api.call("DELETE", one)


@pytest.fixture(scope="module")
def operator(api: Api, namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real operator for the namespace; returns its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("operator") / "log"
    command = [sys.executable, "-m", "asysi_operator", "--namespace", namespace, "--metrics-port", str(port)]
    environment = {**os.environ, "KUBECONFIG": str(api.kubeconfig)}
    with log.open("w") as said:
        process = subprocess.Popen(command, stderr=said, env=environment)
    yield log
    process.terminate()
    assert process.wait(30) == 0, log.read_text()[-2000:]


def _admitted() -> list[Bad]:
    """Return some of what only the operator refuses."""
    chosen = (
        "a way out of the inputs",
        "a claim that is not mounted",
        "a folder of the node",
        "a model by FTP",
        "spec.workload.scan.loss: of no feature",
        "spec.capture.positions.mode: of no feature",
        "spec.data.uri: of no feature",
        "spec.output.uri: of no feature",
    )
    return [next(bad for bad in MUTATIONS if bad.what == what) for what in chosen]


@pytest.mark.e2e
@pytest.mark.parametrize("bad", _admitted(), ids=lambda bad: bad.what.replace(" ", "-"))
def test_from_bad_to_good_and_back(api: Api, namespace: str, operator: Path, bad: Bad) -> None:
    """A bad one makes nothing; mended it gets its objects; broken again it keeps them, mended it goes on."""
    name = f"bad-{_admitted().index(bad)}"
    one = api.experiments(namespace, name)

    def accepted(wanted: str, generation: int) -> str | None:
        status = api.call("GET", one)[1].get("status", {})
        found = next((c for c in status.get("conditions", []) if c["type"] == "Accepted"), {})
        current = found.get("observedGeneration") == generation and found.get("status") == wanted
        return f"{status['phase']} {found['message']}" if current else None

    def settled(wanted: str, generation: int) -> str:
        said: str = wait_for(lambda: accepted(wanted, generation), f"{name} {wanted}: {operator.read_text()}")
        return said

    code, said = api.call("POST", api.experiments(namespace), bad.tree | {"metadata": {"name": name}})
    assert code == 201, said
    refusal = settled("False", 1)
    assert refusal.startswith("Refused ")
    assert bad.is_named_in(refusal)
    assert api.made(namespace, name) == set()

    _replace(api, one, GOOD["spec"])
    settled("True", 2)
    made = wait_for(lambda: _whole(api.made(namespace, name)), f"{name} has its objects")
    _replace(api, one, bad.tree["spec"])
    assert bad.is_named_in(settled("False", 3))
    assert api.made(namespace, name) == made
    _replace(api, one, GOOD["spec"])
    assert "Refused" not in settled("True", 4)
    assert api.made(namespace, name) == made
    api.call("DELETE", one)


def _whole(made: set[str]) -> set[str]:
    return made if {item.split()[0] for item in made} == set(KINDS) else set()


def _replace(api: Api, one: str, spec: Tree) -> None:
    there = api.call("GET", one)[1]
    code, said = api.call("PUT", one, there | {"spec": spec})
    assert code == 200, said


def test_the_good_experiment_is_good() -> None:
    """What every mutation begins with is accepted."""
    assert ScanExperiment.model_validate(GOOD)
    assert decide(GOOD).refusal is None
