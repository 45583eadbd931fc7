"""Measures the cost and the latency of the operator with many experiments.

    python benchmarks/operator/measure.py [--experiments 1000] [--samples 300] [--burst 400] [--lives 5]
        [--idle 60] [--dry]

It needs a real API server and a controller manager, with full rights, through KUBECONFIG or through
ASYSI_CLUSTER, a script whose verb `env` prints it. Experiments are suspended, so that no pods are needed.
Background experiments share a claim, because unbound claims keep a controller manager busy. Experiments whose
whole life is counted run on a fake node, with this program acting as kubelet and workers. Writes
docs/benchmarks/operator.md and operator.json; with --dry it only prints. All objects are created in a
separate namespace, which is deleted at the end.
"""

import argparse
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import page
import psutil
import yaml
from cluster import NODE, Api, Jobs, Pod, Worker, now, where

from asysi.contract.crd import GROUP, PLURAL, VERSION
from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests import build
from asysi_operator.reconcile import sealed

ROOT = Path(__file__).parents[2]
Tree = dict[str, Any]
PHASES = ("created", "scheduled", "started", "running", "ended", "deleted")


def main() -> int:
    options = parse()
    api = Api(kubeconfig())
    began = time.monotonic()
    with namespace(api) as name, Operator(api, name) as operator:
        jobs = Jobs(api, name)
        alone = latencies(api, jobs, name, "alone", options.samples // 3)
        found: Tree = {"alone": alone, "filling": fill(api, jobs, operator, name, options.experiments)}
        found["idle"] = operator.idle(options.idle)
        found["beside"] = latencies(api, jobs, name, "beside", options.samples)
        found["kubectl"] = by_kubectl(api, jobs, name, min(20, options.samples))
        found["burst"] = burst(api, jobs, name, options.burst)
        found["create"] = bare_creates(api, jobs, name, options.samples)
        found["life"] = lives(api, operator, name, options.lives)
        found["memory"] = operator.memory()
        found["reconciliations"] = operator.histogram("asysi_operator_reconcile_seconds")
        found["waits"] = operator.histogram("asysi_operator_queue_seconds")
    facts = machine(api) | {
        "experiments": options.experiments,
        "samples": options.samples,
        "seconds": round(time.monotonic() - began),
        "command": "python benchmarks/operator/measure.py " + " ".join(sys.argv[1:]),
    }
    text = page.page(found, facts)
    print(text)
    if not options.dry:
        out = ROOT / "docs" / "benchmarks"
        (out / "operator.md").write_text(text)
        record = json.dumps({"facts": facts, "found": found}, indent=1)
        (out / "operator.json").write_text(record + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The operator beside many experiments.")
    parser.add_argument("--experiments", type=int, default=1000, help="suspended experiments that are there")
    parser.add_argument("--samples", type=int, default=300, help="experiments that are timed")
    parser.add_argument("--burst", type=int, default=400, help="experiments that eight clients apply at once")
    parser.add_argument("--lives", type=int, default=5, help="experiments whose whole life is counted")
    parser.add_argument("--idle", type=float, default=60, help="seconds of doing nothing that are measured")
    parser.add_argument("--dry", action="store_true", help="write no files")
    return parser.parse_args()


def kubeconfig() -> Path:
    script = os.environ.get("ASYSI_CLUSTER")
    if script and "KUBECONFIG" not in os.environ:
        said = ["sh", "-c", 'eval "$("$0" env)" && printf "%s\\n%s" "$KUBECONFIG" "$PATH"', script]
        lines = subprocess.run(said, capture_output=True, text=True, check=True).stdout.splitlines()
        os.environ["KUBECONFIG"], os.environ["PATH"] = lines
    if given := os.environ.get("KUBECONFIG"):
        return Path(given)
    sys.exit("set KUBECONFIG, or ASYSI_CLUSTER to a script whose verb `env` prints it")


ADMISSION = "/apis/admissionregistration.k8s.io/v1"


@contextmanager
def namespace(api: Api) -> Iterator[str]:
    """Create a namespace, the CRD and a fake node."""
    name = f"asysi-bench-{os.getpid()}"
    definition = yaml.safe_load((ROOT / "crds" / f"{GROUP}_{PLURAL}.yaml").read_text())
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{definition['metadata']['name']}"
    api.call("PATCH", path, definition, "application/apply-patch+yaml", fieldManager="bench", force="true")
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    amounts = {"cpu": "1000", "memory": "4Ti", "pods": "1000", "ephemeral-storage": "1Ti"}
    ready = {"type": "Ready", "status": "True", "reason": "Bench", "lastHeartbeatTime": now()}
    node = {
        "metadata": {"name": NODE, "labels": {"asysi.dev/bench": "node"}},
        # By far the largest node, and it runs nothing: pods of others must not be scheduled there.
        "spec": {"taints": [{"key": "asysi.dev/bench", "effect": "NoSchedule"}]},
        "status": {"capacity": amounts, "allocatable": amounts, "conditions": [ready]},
    }
    api.call("DELETE", f"/api/v1/nodes/{NODE}")
    api.call("POST", "/api/v1/nodes", node)
    for kind, body in unscheduled(name).items():
        api.call("POST", f"{ADMISSION}/{kind}", body)
    wait(lambda: api.call("GET", where(PLURAL, name)) is not None, 30)
    try:
        yield name
    finally:
        for kind in unscheduled(name):
            api.call("DELETE", f"{ADMISSION}/{kind}/{name}")
        api.call("DELETE", f"/api/v1/nodes/{NODE}")
        api.call("DELETE", where(PLURAL, name))
        api.call("DELETE", f"/api/v1/namespaces/{name}")
        wait(lambda: api.call("GET", where("jobs", name))["items"] == [], 100)  # nobody else is to pay for it


def unscheduled(namespace: str) -> Tree:
    """Return a policy that keeps the scheduler away from a namespace's pods: this program binds them.

    The scheduler would report the pod as unschedulable, because the node is fake, and the operator would
    record that: one more write than with a free node.
    """
    patch = 'JSONPatch{op: "replace", path: "/spec/schedulerName", value: "bench"}'
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
    within = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": namespace},
        "spec": {
            "matchConstraints": {"namespaceSelector": within, "resourceRules": [rule]},
            "reinvocationPolicy": "Never",
            "failurePolicy": "Ignore",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": f"[{patch}]"}}],
        },
    }
    binding = policy | {"kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": namespace}}
    return {"mutatingadmissionpolicies": policy, "mutatingadmissionpolicybindings": binding}


def wait(holds: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except (RuntimeError, OSError):
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.1)


class Operator:
    """A real operator process, and its metrics."""

    def __init__(self, api: Api, namespace: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        command = [sys.executable, "-m", "asysi_operator", "--namespace", namespace]
        command += ["--metrics-port", str(self._port), "--log-level", "warning"]
        self._process = psutil.Popen(command, env={**os.environ, "KUBECONFIG": str(api.kubeconfig)})

    def __enter__(self) -> "Operator":
        wait(lambda: self._get("readyz"), 60)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def requests(self) -> Counter[str]:
        """Return its requests so far: `PATCH Job`, …"""
        counted: Counter[str] = Counter()
        for line in self._get("metrics").splitlines():
            if line.startswith("asysi_operator_api_requests_total{"):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
                counted[f"{labels['verb']} {labels['kind']}"] += int(float(line.rpartition(" ")[2]))
        return counted

    def counter_writes(self) -> int:
        """Return the number of its status writes that changed only counters."""
        name = 'asysi_operator_status_writes_total{of="counters"}'
        lines = [line for line in self._get("metrics").splitlines() if line.startswith(name)]
        return sum(int(float(line.rpartition(" ")[2])) for line in lines)

    def histogram(self, name: str) -> Tree:
        """Return count and mean of a histogram, and its cumulative buckets."""
        lines = [line for line in self._get("metrics").splitlines() if line.startswith(name)]
        values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
        count, total = values[f"{name}_count"], values[f"{name}_sum"]
        buckets = {key.split('"')[1]: value for key, value in values.items() if "_bucket" in key}
        return {"count": count, "mean": total / max(count, 1), "buckets": buckets}

    def cpu(self) -> float:
        """Return the CPU seconds it has used."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def memory(self) -> int:
        """Return its resident bytes."""
        return int(self._process.memory_info().rss)

    def quiet(self, seconds: float = 120) -> None:
        """Wait until it has not written for two seconds."""
        until, last, since = time.monotonic() + seconds, Counter[str](), time.monotonic()
        while time.monotonic() < until and time.monotonic() - since < 2:
            seen = writes(self.requests())
            if seen != last:
                last, since = seen, time.monotonic()
            time.sleep(0.2)

    def idle(self, seconds: float) -> Tree:
        """Return its resource usage while idle."""
        self.quiet()
        before, asked, began = self.cpu(), self.requests(), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        return {
            "seconds": took,
            "cpu": (self.cpu() - before) / took,
            "memory": self.memory(),
            "requests": dict(self.requests() - asked),
        }


def experiment(name: str, *, suspend: bool = True, **spec: Any) -> Tree:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "ScanExperiment",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "file:///inputs/files/model"},
            "data": {"uri": "jsonl:///inputs/files/text.jsonl"},
            "inputs": [{"claim": "files"}],
            "workload": {"scan": {}},
            "capture": {"hookPoints": ["encoder.layer.*.output"]},
            "lifecycle": {"suspend": suspend},
            **spec,
        },
    }


def latencies(api: Api, jobs: Jobs, namespace: str, prefix: str, samples: int) -> list[float]:
    """Return the seconds from before an apply to its Job's event, sequentially and at random intervals."""
    found = []
    for number in range(samples):
        time.sleep(random.uniform(0.02, 0.12))
        name = f"{prefix}-{number}"
        began = time.perf_counter()
        api.apply(namespace, experiment(name))
        found.append(jobs.wait(name) - began)
    return found


def burst(api: Api, jobs: Jobs, namespace: str, samples: int) -> list[float]:
    """Return the same for experiments applied concurrently by eight clients."""

    def one(number: int) -> float:
        began = time.perf_counter()
        api.apply(namespace, experiment(f"burst-{number}"))
        return jobs.wait(f"burst-{number}") - began

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(samples)))


def by_kubectl(api: Api, jobs: Jobs, namespace: str, samples: int) -> list[float]:
    """Return the same for `kubectl apply -f`, including its startup; [] if there is no kubectl."""
    found = []
    for number in range(samples):
        name = f"kubectl-{number}"
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(experiment(name), file)
            file.flush()
            began = time.perf_counter()
            try:
                command = ["kubectl", "--kubeconfig", str(api.kubeconfig), "-n", namespace]
                subprocess.run([*command, "apply", "-f", file.name], check=True, capture_output=True)
            except FileNotFoundError:
                return []
            found.append(jobs.wait(name) - began)
    return found


def bare_creates(api: Api, jobs: Jobs, namespace: str, samples: int) -> list[float]:
    """Return the seconds from a bare create of the same Job to its event: a lower bound for operators."""
    found = []
    for number in range(samples):
        time.sleep(random.uniform(0.02, 0.12))
        tree = experiment(f"bare-{number}")
        tree["metadata"]["namespace"] = namespace
        job = sealed(build(ScanExperiment.model_validate(tree))[-1])
        began = time.perf_counter()
        api.call("POST", where("jobs", namespace), job)
        found.append(jobs.wait(job["metadata"]["name"]) - began)
    return found


def fill(api: Api, jobs: Jobs, operator: Operator, namespace: str, count: int) -> Tree:
    """Create the background experiments; returns the time and the cost."""
    served, cpu, asked, there = api.cpu(), operator.cpu(), operator.requests(), jobs.count()
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda n: api.apply(namespace, experiment(f"there-{n}", output={"claim": "one"})),
                range(count),
            )
        )
    applied = time.monotonic() - began
    wait(lambda: jobs.count() >= there + count, 600)
    made = time.monotonic() - began
    operator.quiet()
    return {
        "applied": applied,
        "made": made,
        "cpu": (operator.cpu() - cpu) / count,
        "served": (api.cpu() - served) / count,
        "writes": {key: value / count for key, value in writes(operator.requests() - asked).items()},
    }


def lives(api: Api, operator: Operator, namespace: str, count: int) -> Tree:
    """Return the operator's writes per experiment, by phase of its life and by object."""
    worker = Worker()
    names = [f"life-{number}" for number in range(count)]
    found: Tree = {}
    seen, before, counters = api.writes_seen(), operator.requests(), operator.counter_writes()
    ours = 0
    try:
        for name in names:
            selected = {"nodeSelector": {"asysi.dev/bench": "node"}}
            small = {name: {"cpus": 0.1} for name in ("host", "hook", "prepare", "finish")}
            api.apply(namespace, experiment(name, suspend=False, scheduling=selected, resources=small))
            ours += 1
        pods = [Pod(api, namespace, name) for name in names]
        for phase in PHASES:
            for name, pod in zip(names, pods, strict=True):
                ours += step(api, namespace, name, pod, phase)
            if phase == "running":
                time.sleep(30)
            operator.quiet(10)
            after = operator.requests()
            found[phase] = {key: value / count for key, value in writes(after - before).items()}
            before = after
    finally:
        worker.end()
    counters = operator.counter_writes() - counters
    told = api.writes_seen() - seen
    ends = "ScanExperiment"
    said = sum(v * count for part in found.values() for key, v in part.items() if key.endswith(ends))
    return {
        "phases": found,
        "told": sum(told.values()) - ours,
        "said": said,
        "count": count,
        "counters": counters,
    }


def step(api: Api, namespace: str, name: str, pod: Pod, phase: str) -> int:
    """Run one phase of an experiment's life; returns the writes to experiments it took."""
    match phase:
        case "scheduled":
            pod.bind()
        case "started":
            pod.runs("prepare")
            pod.ended("prepare")
            pod.runs("archiver", "sae", "hook")
            pod.runs("host", "finish")
        case "ended":
            pod.ended("host")
            words = {"capture": {"seen": 9, "published": 9, "dropped": {}}, "ledger": {"balanced": True}}
            pod.ended("finish", "archiver", "sae", "hook", phase="Succeeded", message=json.dumps(words))
            wait(lambda: _complete(api, namespace, name), 60)
        case "deleted":
            api.call("DELETE", f"{where(PLURAL, namespace)}/{name}")
            return 1
    return 0


def _complete(api: Api, namespace: str, name: str) -> bool:
    found = api.call("GET", f"{where(PLURAL, namespace)}/{name}").get("status", {})
    return bool(found.get("phase") == "Succeeded")


def writes(requests: Counter[str]) -> Counter[str]:
    return Counter({key: value for key, value in requests.items() if not key.startswith(("GET ", "WATCH "))})


def machine(api: Api) -> Tree:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    ask = "import importlib.metadata as m, sys; print(*(m.version(name) for name in sys.argv[1:]))"
    versions = subprocess.run(
        [sys.executable, "-c", ask, "kubernetes"], capture_output=True, text=True, check=True
    ).stdout.split()
    return {
        "processor": model.strip(),
        "processors": os.cpu_count(),
        "15-minute load": round(os.getloadavg()[2], 2),
        "python": sys.version.split()[0],
        "Kubernetes": api.call("GET", "/version")["gitVersion"],
        "kubernetes client": versions[0],
    }


if __name__ == "__main__":
    sys.exit(main())
