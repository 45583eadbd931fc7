"""A pipeline before an experiment, on a real cluster: two shards, one killed halfway, one model.

The operator runs beside the tests. Besides a cluster it takes a way to the worker's image, as the test of the
installation does.
"""

import inspect
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
NAME, ROWS = "tiny", 600
Tree = dict[str, Any]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
RESTRICTED: Tree = {
    "automountServiceAccountToken": False,
    "restartPolicy": "Never",
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}


def fill(folder: Path) -> None:
    """Write a two-layer BERT with random weights, its tokenizer, and as many distinct texts as asked for."""
    import json
    import os

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [f"w{number}" for number in range(200)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = {token: number for number, token in enumerate(special + words)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder / "model")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(known), max_position_embeddings=64, **sizes)
    BertModel(config).save_pretrained(folder / "model", safe_serialization=True)
    rows = int(os.environ["ROWS"])
    texts = (" ".join(words[(row * 7 + k * k) % 200] for k in range(8 + row % 9)) for row in range(rows))
    with (folder / "text.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"_i": row, "text": f"{text} {row}"}) + "\n" for row, text in enumerate(texts)
        )


def compare(folder: Path) -> None:
    """Print how many rows the pipeline made, whether they are those of the input, and what the host saw."""
    import json

    (file,) = (folder / "pipeline").glob("*/rows.jsonl")
    made = [json.loads(line) for line in file.read_text().splitlines()]
    source = [json.loads(line) for line in Path("/inputs/text.jsonl").read_text().splitlines()]
    right = made == [{**row, "text": f"{row['text']} {row['text']}"} for row in source]
    seen = json.loads((folder / "host" / "seen.json").read_text())
    print(json.dumps({"rows": len(made), "right": right, "documents": seen["documents"]}))


@dataclass(frozen=True)
class Shell:
    """kubectl with one kubeconfig and one namespace."""

    path: str
    kubeconfig: Path
    namespace: str

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it says."""
        command = [self.path, "--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def get(self, *what: str) -> Tree:
        """Return an object, or a list of them."""
        return json.loads(self.run("get", *what, "--output", "json"))

    def apply(self, *objects: Tree) -> None:
        """Apply objects."""
        self.run("apply", "--filename", "-", stdin=yaml.safe_dump_all(objects))

    def status(self) -> Tree:
        """Return the experiment's status."""
        return self.get("scanexperiment", NAME).get("status", {})

    def until(self, holds: Callable[[], Any], what: str, timeout: float) -> Any:
        """Return what `holds` says as soon as that is something."""
        deadline = time.monotonic() + timeout
        while not (found := holds()):
            if time.monotonic() > deadline:
                said = self.run("get", "scanexperiments,pods,pvc", "--output=wide")
                raise AssertionError(f"not within {timeout:.0f} s: {what}\n{said}")
            time.sleep(0.3)
        return found

    def shard(self, index: int) -> list[Tree]:
        """Return the pods of a shard, oldest first."""
        selector = f"asysi.dev/experiment={NAME},batch.kubernetes.io/job-completion-index={index}"
        kind = "app.kubernetes.io/component=pipeline"
        pods = self.get("pods", f"--selector={selector},{kind}")["items"]
        return sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])


def pod(name: str, image: str, function: Callable[[Path], None], mounts: dict[str, str]) -> Tree:
    """A pod that calls a function of this file with the folder `/claim`."""
    code = "from pathlib import Path\n" + textwrap.dedent(inspect.getsource(function))
    container = {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["python", "-c", f"{code}\n{function.__name__}(Path('/claim'))"],
        "env": [{"name": "ROWS", "value": str(ROWS)}, {"name": "HF_HOME", "value": "/tmp"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": claim, "mountPath": path} for claim, path in mounts.items()],
    }
    volumes = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in mounts]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {**RESTRICTED, "containers": [container], "volumes": volumes},
    }


@pytest.fixture(scope="module")
def shell(
    kubeconfig: Path, volumes: None, tool: Callable[[str], str], images: dict[str, str]
) -> Iterator[Shell]:
    """A namespace that enforces Pod Security's level restricted, with model and text in a claim."""
    shell = Shell(tool("kubectl"), kubeconfig, f"asysi-pipeline-{os.getpid()}")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    shell.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": shell.namespace, "labels": labels}}
    )
    shell.run("apply", "--server-side", "--force-conflicts", "--filename", str(ROOT / "crds"))
    shell.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "inputs"}, "spec": claim},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "keys"},
            "stringData": {"API_KEY": "s3cret"},
        },
        pod("fill", images["worker"], fill, {"inputs": "/claim"}),
    )
    shell.run("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/fill", "--timeout=240s")
    yield shell
    shell.run("delete", "scanexperiments", "--all", "--ignore-not-found")
    shell.run("delete", "namespace", shell.namespace, "--wait=false")


@pytest.fixture(scope="module")
def operator(
    shell: Shell, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The operator of this tree, beside the tests."""
    command = [
        *(sys.executable, "-m", "asysi_operator", "--namespace", shell.namespace, "--metrics-port", "0"),
        *("--image", images["worker"]),
    ]
    with (tmp_path_factory.mktemp("operator") / "log").open("wb") as log:
        environment = {**os.environ, "KUBECONFIG": str(shell.kubeconfig)}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def experiment(shell: Shell, operator: None) -> Tree:
    """An experiment whose pipeline takes some milliseconds a row, in two shards."""
    slow = "{% for _ in range(100000) %}{% endfor %}"
    text = f"{slow}{slow}{slow}{{{{ text }}}} {{{{ text }}}}"
    pipeline = {
        "operators": [{"operator": "template", "params": {"fields": {"text": text}}}],
        "shards": 2,
        "writer": {"flushBatchSize": 10, "flushInterval": 0.2},
        "cpus": 0.4,
        "memory": "512Mi",
        "secretRefs": [{"name": "keys", "key": "API_KEY"}],
    }
    spec = {
        "model": {"uri": "file:///inputs/inputs/model"},
        "inputs": [{"claim": "inputs"}],
        "data": {
            "uri": "jsonl:///inputs/inputs/text.jsonl",
            "tokens": {"contextLength": 32},
            "pipeline": pipeline,
        },
        "workload": {"scan": {"batchSize": 16}},
        "capture": {"hookPoints": ["encoder.layer.*.output"], "size": "16Mi"},
        "bus": {"size": "16Mi"},
        "sae": {"enabled": False},
        "archive": {"cpus": 0.2, "memory": "512Mi"},
        "output": {"size": "1Gi"},
        "resources": {
            "prepare": {"cpus": 0.9, "memory": "1Gi"},
            "hook": {"cpus": 0.2, "memory": "512Mi"},
            "host": {"cpus": 0.6, "memory": "1536Mi", "shm": "64Mi"},
            "finish": {"cpus": 0.4, "memory": "1536Mi"},
        },
        "lifecycle": {"gracePeriodSeconds": 5},
    }
    made = {
        "apiVersion": "asysi.dev/v1alpha1",
        "kind": "ScanExperiment",
        "metadata": {"name": NAME},
        "spec": spec,
    }
    shell.apply(made)
    return made


def test_a_shard_killed_halfway_is_named_and_goes_on(shell, experiment):
    """Both shards run before the experiment's Job; a kill -9 is told of, and the next pod resumes."""

    def running() -> str | None:
        pods = shell.shard(1)
        found = pods and pods[-1]["status"]["phase"] == "Running"
        return str(pods[-1]["metadata"]["name"]) if found else None

    name = shell.until(running, "a shard runs", 180)
    assert shell.run("exec", name, "--", "printenv", "API_KEY").strip() == "s3cret"
    status = shell.until(
        lambda: shell.status().get("phase") == "Preparing" and shell.status(), "the phase", 30
    )
    assert status["job"] == f"{NAME}-rows"
    assert [job["metadata"]["name"] for job in shell.get("jobs")["items"]] == [f"{NAME}-rows"]
    durable = (
        "import json,glob; print(sum(json.load(open(f))['nodes'][0]['durable'] for f in "
        "glob.glob('/output/pipeline/*/shard-00001-*/runtime.json')))"
    )
    shell.until(lambda: int(shell.run("exec", name, "--", "python", "-c", durable)) > 20, "it is halfway", 60)
    shell.run("exec", name, "--", "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)")

    def told() -> Tree | None:
        last = shell.status().get("lastFailure") or {}  # a busy node may have had no room at first
        return last if last.get("exitCode") else None

    failure = shell.until(told, "the kill is told", 30)
    assert (failure["container"], failure["exitCode"]) == ("pipeline", 137)
    assert failure["message"].startswith(f"{name}: ")

    def resumed() -> Tree | None:
        later = [one for one in shell.shard(1) if one["metadata"]["name"] != name]
        return next((one for one in later if one["status"]["phase"] in {"Running", "Succeeded"}), None)

    again = shell.until(resumed, "the shard has another pod", 120)["metadata"]["name"]
    shell.until(lambda: "begins at row" in shell.run("logs", again), "it goes on where the ledger ends", 120)


def test_the_experiment_runs_on_the_merged_rows(shell, experiment, images):
    """It completes; the rows are those of the input, each once and in order, and the model has read them."""

    def ended() -> bool:
        status = shell.status()
        assert status.get("phase") != "Failed", yaml.safe_dump(status)
        return status.get("phase") == "Succeeded"

    shell.until(ended, "it completes", 300)
    status = shell.status()
    assert status["pipeline"] == {"shards": 2, "done": 2, "running": 0, "failed": 1}
    conditions = {one["type"]: one for one in status["conditions"]}
    assert conditions["PipelineComplete"]["reason"] == "RowsReady"
    assert status["attempt"] == 0
    mounts = {f"{NAME}-output": "/claim", "inputs": "/inputs"}
    shell.apply(pod("compare", images["worker"], compare, mounts))
    shell.run("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/compare", "--timeout=120s")
    assert json.loads(shell.run("logs", "compare")) == {"rows": ROWS, "right": True, "documents": ROWS}


@pytest.fixture
def shared(shell: Shell, operator: None) -> Callable[..., None]:
    """Return a function that applies a small experiment whose results go to the claim `shared`."""
    size = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shared"}}
    shell.apply({**claim, "spec": size})

    def apply(name: str, passes: int = 1, **output: Any) -> None:
        spec = {
            "model": {"uri": "file:///inputs/inputs/model"},
            "inputs": [{"claim": "inputs"}],
            "data": {"uri": "jsonl:///inputs/inputs/text.jsonl", "tokens": {"contextLength": 32}},
            "workload": {"scan": {"batchSize": 16, "passes": passes}},
            "capture": {"hookPoints": ["encoder.layer.*.output"], "size": "16Mi"},
            "bus": {"size": "16Mi"},
            "sae": {"enabled": False},
            "archive": {"cpus": 0.1, "memory": "512Mi"},
            "output": {"claim": "shared", **output},
            "resources": {
                "prepare": {"cpus": 0.7, "memory": "1Gi"},
                "hook": {"cpus": 0.1, "memory": "512Mi"},
                "host": {"cpus": 0.3, "memory": "1Gi", "shm": "32Mi"},
                "finish": {"cpus": 0.2, "memory": "1Gi"},
            },
            "lifecycle": {"gracePeriodSeconds": 5},
        }
        head = {"apiVersion": "asysi.dev/v1alpha1", "kind": "ScanExperiment", "metadata": {"name": name}}
        shell.apply({**head, "spec": spec})

    return apply


def ledgers(folder: Path) -> None:
    """Print, by folder, its owner, whether its books balance, the rows seen and the rows archived."""
    import json

    found = {}
    for file in folder.glob("*/ledger.json"):
        ledger = json.loads(file.read_text())
        rows = ledger["totals"]["consumers"]["archiver"]["durable"]
        name = json.loads((file.parent / "identity.json").read_text())["name"]
        found[file.parent.name] = [name, ledger["balanced"], ledger["totals"]["capture"]["seen"], rows]
    print(json.dumps(found))


@pytest.mark.long
def test_experiments_share_a_claim(shell, shared, images):
    """Two at once have a folder each, and books that balance; a third is refused in the folder of another."""

    def phases() -> dict[str, str]:
        items = shell.get("scanexperiments")["items"]
        return {one["metadata"]["name"]: one.get("status", {}).get("phase", "") for one in items}

    def ended(*names: str) -> bool:
        now = phases()
        assert "Failed" not in {now[name] for name in names}, yaml.safe_dump(shell.get("scanexperiments"))
        return {now[name] for name in names} == {"Succeeded"}

    shared("first")
    shared("second", passes=2)
    shell.until(lambda: ended("first", "second"), "both complete", 400)
    spans = []
    for name in ("first", "second"):
        (one,) = shell.get("pods", f"--selector=asysi.dev/experiment={name}")["items"]
        times = [status["state"]["terminated"] for status in one["status"]["containerStatuses"]]
        spans.append((min(t["startedAt"] for t in times), max(t["finishedAt"] for t in times)))
    shared("late", path="first")
    shell.until(lambda: phases()["late"] == "Failed", "the third is refused", 120)
    late = shell.get("scanexperiment", "late")["status"]["lastFailure"]
    assert (late["container"], late["exitCode"]) == ("prepare", 2)
    assert "first" in late["message"]
    assert "output.path" in late["message"]
    shell.apply(pod("ledgers", images["worker"], ledgers, {"shared": "/claim"}))
    shell.run("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/ledgers", "--timeout=60s")
    found = json.loads(shell.run("logs", "ledgers"))
    assert {place: (name, balanced) for place, (name, balanced, _, _) in found.items()} == {
        "first": ("first", True),
        "second": ("second", True),
    }
    assert found["second"][2] > 1.5 * found["first"][2] > 0  # what is held out is read in the first pass
    assert all(rows > 0 for _, _, _, rows in found.values())
    assert spans[0][0] < spans[1][1], spans
    assert spans[1][0] < spans[0][1], f"they did not run at once: {spans}"
