"""What it takes to add a workload: one file, one row, one part of the spec. This test takes them from the
page that explains it and touches no other file: every process of the run finds the three on its path.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from asysi.archive.dataset import MScanDataset

pytestmark = pytest.mark.long  # a whole experiment

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
_SECTION = PAGE.partition("## Add a host")[2].partition("\n## ")[0]
PART, ROW, HOST = (dedent(code) for code in re.findall(r"   ```python\n(.*?)   ```", _SECTION, re.DOTALL))
ADDED = f"""
from typing import Annotated

from pydantic import Field
from pydantic.fields import FieldInfo

import asysi.hosts
from asysi.contract import spec
from asysi.contract.spec import Part

{PART}

spec.Workload.__pydantic_fields__["walk"] = FieldInfo(annotation=Walk | None, default=None, alias="walk")
for part in (spec.Workload, spec.Spec, spec.ScanExperiment):
    part.model_rebuild(force=True)

from asysi.contract.workloads import WORKLOADS, WorkloadRow

WORKLOADS |= {{
{ROW}
}}
asysi.hosts.__path__.append(__file__.removesuffix("sitecustomize.py"))
"""
"""What every process imports first, in place of an edit to the contract."""
STEPS, LENGTH = 60, 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a BERT of two small layers, and a tokenizer of forty words."""
    folder = tmp_path_factory.mktemp("model")
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *(f"w{n}" for n in range(38))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=40, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def added(tmp_path: Path) -> dict[str, str]:
    """Return the environment of processes that know the workload."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(ADDED)
    (tmp_path / "path" / "walk.py").write_text(HOST)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "path")}


def asysi(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asysi.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)


def write(folder: Path, model: Path, walk: dict[str, int]) -> Path:
    file = folder / "walk.yaml"
    tree = {
        "apiVersion": "asysi.dev/v1alpha1",
        "kind": "ScanExperiment",
        "metadata": {"name": f"walk-{os.getpid()}"},
        "spec": {
            "model": {"uri": f"file://{model}"},
            "workload": {"walk": walk},
            "capture": {"hookPoints": ["encoder.layer.*.output"], "size": "32Mi"},
            "bus": {"size": "32Mi"},
            "sae": {"train": [{"latents": 32, "k": 4, "batch": 128}]},
        },
    }
    file.write_text(yaml.safe_dump(tree))
    return file


def test_a_new_workload_runs_end_to_end(tmp_path: Path, model: Path, added: dict[str, str]) -> None:
    """A workload that no file of ours names is checked, rendered, run by real processes, and balanced."""
    file, output = write(tmp_path, model, {"steps": STEPS, "length": LENGTH}), tmp_path / "out"
    rendered = asysi(added, "render", str(file))
    assert rendered.returncode == 0, rendered.stderr
    (job,) = (item for item in yaml.safe_load_all(rendered.stdout) if item["kind"] == "Job")
    (host,) = (one for one in job["spec"]["template"]["spec"]["containers"] if one["name"] == "host")
    assert host["args"] == ["python", "-m", "asysi.hosts.walk"]

    done = asysi(added, "run", str(file), "--output", str(output), "--plain")
    logs = "".join(log.read_text() for log in sorted((output / "logs").glob("*.log")))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    ledger = json.loads((output / "ledger.json").read_text())
    assert ledger["balanced"] is True
    assert (ledger["steps"]["run"], ledger["steps"]["expected"]) == (STEPS, STEPS)
    assert {point["path"]: point["capture"]["seen"] for point in ledger["points"]} == {
        f"encoder.layer.{layer}.output": 4 * LENGTH * STEPS for layer in (0, 1)
    }
    archived = MScanDataset(output)
    durable = {one["path"]: one["consumers"]["archiver"]["durable"] for one in ledger["points"]}
    assert {point: len(archived.metrics(point)) for point in durable} == durable
    assert (output / "sae" / "topk" / "encoder.layer.1.output" / "sae_weights.safetensors").is_file()
    seen = json.loads((output / "host" / "seen.json").read_text())
    assert (seen["steps"], seen["tokens"], seen["interrupted"]) == (STEPS, 4 * LENGTH * STEPS, False)
    assert "this workload has no text that could be read again" in (output / "report.html").read_text()


def test_its_part_of_the_spec_is_checked(tmp_path: Path, model: Path, added: dict[str, str]) -> None:
    """The part's bounds hold, its row's shape decides the room, and without the part it is unknown."""
    wrong = asysi(added, "check", str(write(tmp_path, model, {"steps": 0})))
    assert wrong.returncode == 2
    assert "spec.workload.walk.steps" in wrong.stderr + wrong.stdout
    good = write(tmp_path, model, {"steps": 1, "length": 512})
    tight = asysi(added, "check", str(good), "--set", "spec.capture.size=1Mi")
    assert tight.returncode == 2
    assert "a step of 4 × 512 tokens needs" in tight.stderr + tight.stdout
    without = asysi(dict(os.environ), "check", str(good))
    assert without.returncode == 2
    assert "spec.workload.walk" in without.stderr + without.stdout
