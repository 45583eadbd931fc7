"""Whole experiments, small: a real (random) transformer, real files, real processes; our images, built."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from asysi import __version__

ROOT = Path(__file__).parents[2]
ONSETS = ["ba", "de", "fi", "go", "ku", "lo", "ma", "ne", "pi", "ru", "sa", "te", "vo", "wi", "zu"]
WORDS = [onset + coda for onset in ONSETS for coda in "nlrstm"]


def _sentence(rng: random.Random) -> str:
    """Words that depend on the word before, so that there is structure to find."""
    word = rng.randrange(len(WORDS))
    words = []
    for _ in range(rng.randrange(8, 30)):
        words.append(WORDS[word])
        word = (word * 7 + rng.choice([1, 2, 3])) % len(WORDS)
    return " ".join(words)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a two-layer BERT with random weights and a word tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a JSONL file of 1,500 documents, some of them twice."""
    rng = random.Random(0)
    texts = [_sentence(rng) for _ in range(1400)]
    texts += texts[:100]
    path = tmp_path_factory.mktemp("data") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_i": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


Spec = dict[str, Any]


@pytest.fixture
def scan(model: Path, corpus: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an experiment's file, changed by the function it is given."""

    def write(name: str = "tiny", change: Callable[[Spec], None] = lambda _: None) -> Path:
        experiment: Spec = {
            "apiVersion": "asysi.dev/v1alpha1",
            "kind": "ScanExperiment",
            "metadata": {"name": f"{name}-{os.getpid()}"},
            "spec": {
                "model": {"uri": f"file://{model}"},
                "data": {"uri": f"jsonl://{corpus}", "tokens": {"contextLength": 64}},
                "workload": {"scan": {"batchSize": 16, "passes": 4}},
                "capture": {"hookPoints": ["encoder.layer.*.output"], "size": "32Mi"},
                "bus": {"size": "32Mi"},
                "sae": {"train": [{"latents": 128, "k": 8, "batch": 256, "checkpointSeconds": 1}]},
            },
        }
        change(experiment["spec"])
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(experiment))
        return path

    return write


@dataclass
class Run:
    """An `asysi run` under way."""

    process: "subprocess.Popen[str]"
    output: Path
    name: str

    def worker(self, module: str, timeout: float = 90) -> psutil.Process:
        """Return the process of a container, by its module, waiting for it to start."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                try:
                    if module in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                        return child
                except psutil.Error:
                    continue
            time.sleep(0.05)
        raise AssertionError(f"{module} did not run:\n{self.text()}")

    def rings(self) -> Path:
        """Return the folder of the run's rings."""
        found = [p for p in Path("/dev/shm").glob(f"asysi-{self.name}*") if p.is_dir()]
        assert len(found) == 1, found
        return found[0]

    def finish(self, timeout: float = 150) -> int:
        """Wait for the end and return the exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.text()}") from None

    def text(self) -> str:
        """Return what the runner and its containers have said."""
        logs = sorted((self.output / "logs").glob("*")) if (self.output / "logs").is_dir() else []
        said = (self.output.parent / f"{self.name}.out").read_text()
        return said + "".join(f"--- {log.name}\n{log.read_text()[-3000:]}\n" for log in logs if log.is_file())

    def ledger(self) -> dict[str, Any]:
        """Return ledger.json."""
        return json.loads((self.output / "ledger.json").read_text())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Return a function that starts `asysi run` on a file; what still runs at the test's end is killed."""
    runs: list[Run] = []

    def begin(path: Path, *options: str) -> Run:
        name = yaml.safe_load(path.read_text())["metadata"]["name"]
        output = tmp_path / f"output-{name}"
        with (tmp_path / f"{name}.out").open("w") as said:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "asysi.cli",
                    "run",
                    str(path),
                    "--output",
                    str(output),
                    "--plain",
                    *options,
                ],
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
            )
        runs.append(Run(process, output, name))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


# -- Volumes


@pytest.fixture(scope="module")
def volumes(kubeconfig: Path, tool: Callable[[str], str]) -> None:
    """Make the ready-made volumes of the tests' own cluster new that earlier tests have used.

    Nothing provisions volumes there: one whose claim has gone stays as it is. Other clusters are left alone.
    """
    if "KUBECONFIG" in os.environ or "ASYSI_CLUSTER" not in os.environ:
        return
    kubectl = [tool("kubectl"), "--kubeconfig", str(kubeconfig)]
    listed = subprocess.run(
        [*kubectl, "get", "pv", "--output=json"], capture_output=True, check=True, timeout=60
    )
    for volume in json.loads(listed.stdout)["items"]:
        folder = Path(volume["spec"].get("hostPath", {}).get("path", "/nowhere"))
        user = volume["spec"].get("claimRef", {}).get("namespace", "")
        used = volume["status"]["phase"] in {"Failed", "Released"} and user.startswith("asysi-")
        if used and folder.is_dir():
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            free = '[{"op": "remove", "path": "/spec/claimRef"}]'
            name = volume["metadata"]["name"]
            patch = [*kubectl, "patch", "pv", name, "--type=json", "--patch", free]
            subprocess.run(patch, capture_output=True, check=True, timeout=60)


# -- Images


@pytest.fixture(scope="session")
def begun(request: pytest.FixtureRequest) -> None:
    """Begin to build our images while other tests run, should a later one want them: it takes minutes."""
    if any("images" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("building")


@pytest.fixture(scope="session")
def building(kubeconfig: Path) -> Iterator["Future[dict[str, str]]"]:
    """Both images, as soon as they are built from this tree and known to the node."""
    under_way: list[subprocess.Popen[str]] = []
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(_images, under_way)
        for process in under_way:
            process.terminate()


@pytest.fixture(scope="session")
def images(building: "Future[dict[str, str]]") -> dict[str, str]:
    """Both images, by name: operator and worker."""
    return building.result()


@pytest.fixture(scope="session")
def build_image() -> Callable[[str, Path, Path], None]:
    """Return a function that builds an image of a name from a Dockerfile and a context, known to the node."""

    def build(image: str, file: Path, context: Path) -> None:
        for command in _build(image, file, context):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
            assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"

    return build


def _images(under_way: "list[subprocess.Popen[str]]") -> dict[str, str]:
    given = {name: os.environ.get(f"ASYSI_{name.upper()}_IMAGE", "") for name in ("operator", "worker")}
    if all(given.values()):
        return given
    files = {"operator": "docker/operator.Dockerfile", "worker": "docker/Dockerfile"}
    made = {name: f"asysi-{name}:{__version__}" for name in files}
    for name, file in files.items():
        for command in _build(made[name], ROOT / file):
            process = subprocess.Popen(
                ["nice", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            under_way.append(process)
            said, _ = process.communicate()
            assert process.returncode == 0, f"{' '.join(command)}:\n{said[-3000:]}"
    return made


def _build(image: str, file: Path, context: Path = ROOT) -> list[list[str]]:
    """Return the commands that build an image and bring it to the node."""
    if script := os.environ.get("ASYSI_CLUSTER"):
        options = [part for folder in _local_indexes() for part in ("--volume", f"{folder}:{folder}:ro")]
        return [[script, "build", image, str(file), str(context), *options]]
    if shutil.which("docker") and shutil.which("kind"):
        return [
            ["docker", "build", "--tag", image, "--file", str(file), str(context)],
            ["kind", "load", "docker-image", image, "--name", "asysi-test"],
        ]
    pytest.skip("needs images: set ASYSI_OPERATOR_IMAGE and ASYSI_WORKER_IMAGE")


def _local_indexes() -> list[str]:
    """Folders of the package indexes that pip has on this machine: their pages refer to files beside them."""
    known = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    return sorted({match[1] for match in re.finditer(r"file://(/[^\s']+)/simple", known.stdout)})
