"""The train host: every step is captured, a killed host resumes exactly, bad projects are refused."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from asysi.archive.dataset import MScanDataset
from asysi.contract.loading import check as checked
from asysi.hosts.check import check
from asysi.hosts.train import StepFeed
from asysi.train.project import open_project
from asysi.train.scaffold import write_project
from asysi.train.trainer import SupervisedTrainer

EPOCHS = 6
SETTINGS = {
    "train.threads": 1, "train.checkpoint_steps": 7, "data.augmentation": None, "tensorboard": False,
    "optimizer.lr": 0.003,
    "eval.compression": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a digits project that trains fast."""
    folder = tmp_path_factory.mktemp("watched") / "digits"
    write_project(folder, "digits")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for path, value in SETTINGS.items():
        part = config
        *parents, key = path.split(".")
        for parent in parents:
            part = part[parent]
        part[key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    scan = yaml.safe_load((folder / "scan.yaml").read_text())
    scan["spec"]["workload"]["train"]["epochs"] = EPOCHS
    scan["spec"]["capture"]["kinds"] = ["activations", "gradients"]
    for stream in ("capture", "bus"):  # room for every step: a busy machine then drops and laps none
        scan["spec"].setdefault(stream, {})["size"] = "640Mi"
    scan["spec"].setdefault("resources", {}).update(
        {"prepare": {"memory": "2Gi"}, "hook": {"memory": "2Gi"}, "finish": {"memory": "2Gi"}}
    )
    (folder / "scan.yaml").write_text(yaml.safe_dump(scan))
    return folder


def experiment(folder: Path, change: Callable[[dict[str, Any]], object]) -> Any:
    tree = yaml.safe_load((folder / "scan.yaml").read_text())
    tree["spec"]["model"]["uri"] = f"file://{folder}"
    change(tree["spec"])
    return checked(tree)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda spec: spec["model"].update(uri="file:///nowhere"),
            "must be the folder of a training project",
        ),
        (lambda spec: spec["workload"]["train"].update(config="no.yaml"), r"no\.yaml cannot be read"),
        (lambda spec: spec["capture"].update(hookPoints=["fc9"]), r"fc9"),
        (lambda spec: spec["workload"]["train"].update(length=5), "does not have 5 rows per sample"),
    ],
)
def test_what_cannot_be_watched_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """`check` names what is wrong with a project before anything runs."""
    import re

    report = check(experiment(folder, change), output=tmp_path)
    assert any(re.search(message, problem) for problem in report.problems), report.problems


class FakeRun:
    """Records what a feed says of its steps."""

    first = 0
    stopping = False

    def __init__(self):
        self.passes, self.skips = [], []

    def steps(self, steps):
        yield from steps

    def go_on(self):
        """Put the hooks back."""

    pause = go_on

    def backward(self, backward):
        self.passes.append(backward)

    def skipped(self, step):
        self.skips.append(step)


def test_a_feed_tells_the_scale_and_the_steps_that_were_skipped() -> None:
    """Each step's loss scale goes to its packets; a scale that falls means that the optimiser skipped."""
    run = FakeRun()
    feed = StepFeed(run, 1, 0.0, 0, epoch_steps=10)
    for step, (scale, after) in enumerate([(8.0, 8.0), (8.0, 4.0), (4.0, 8.0)]):
        trainer = SimpleNamespace(step=step, loss_scale=scale, global_samples=6, stop=0)
        feed.on_forward(trainer, torch.arange(3), {"labels": torch.zeros(3, dtype=torch.long)})
        trainer.step, trainer.loss_scale = step + 1, after
        feed.on_step_end(trainer, 0.0)
    assert [(one.loss_scale, one.accumulated, one.microbatch) for one in run.passes] == [
        (8.0, 2, 0),
        (8.0, 2, 0),
        (4.0, 2, 0),
    ]
    assert run.skips == [1]


@pytest.mark.long
def test_a_killed_host_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    """kill -9 of the host: the next attempt ends with the weights of an unwatched, uninterrupted training,
    and the archive has rows of every step."""
    out = tmp_path / "watched"
    command = [sys.executable, "-m", "asysi.cli", "run", str(folder / "scan.yaml"), "--plain", "-o", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    history = out / "train/history.json"
    deadline = time.monotonic() + 120
    while not history.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    hosts = [
        child for child in psutil.Process(process.pid).children(recursive=True)
        if "asysi.hosts.train" in child.cmdline()
    ]  # fmt: skip
    assert hosts
    for host in hosts:
        host.kill()
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert json.loads((out / "host/progress.json").read_text())["attempt"] == 1
    settings = ["train.batch_size=32", "train.microbatch=32", "seed=0", f"train.epochs={EPOCHS}"]
    plain = SupervisedTrainer(open_project(folder, settings=settings), tmp_path / "plain")
    plain.fit()
    watched, whole = load_file(out / "train/last.safetensors"), load_file(tmp_path / "plain/last.safetensors")
    assert all(torch.equal(watched[name], whole[name]) for name in whole)
    assert json.loads((out / "ledger.json").read_text())["balanced"] is True
    data = MScanDataset(out / "archive")
    assert {name.partition(":")[2] for name in data.points} == {"", "gradient"}
    for point in data.points:
        assert np.unique(data.metrics(point)["step"]).tolist() == list(range(plain.steps))
    first, second = (
        set(np.unique(MScanDataset(path).metrics()["step"]).tolist())
        for path in sorted(out.glob("archive/*.mscan"))
    )
    progress = json.loads((out / "host/progress.json").read_text())
    repeated = progress["repeated_steps"]
    assert 0 <= repeated - len(first & second) <= 1  # the step that the kill interrupted may have no rows
    # The last batch of an epoch is smaller.
    assert 32 * (repeated - 1) < progress["repeated_tokens"] <= 32 * repeated
    assert ("were captured by two attempts" in (out / "report.html").read_text()) is (repeated > 0)


OPERATOR = """
class Rename:
    def process_item(self, item, ctx=None):
        return {"path": item["image"], "label": item["digit"]}
"""


@pytest.mark.long
def test_the_data_is_a_pipelines_output(folder: Path, tmp_path: Path) -> None:
    """A training over the rows that a pipeline makes ends as one over a table of the same rows; its report
    shows the epochs of the model's own training, and the drift of its features."""
    project = open_project(folder)
    project.make_data()
    with project.table("train").open() as stream:
        rows = [(str(folder / "data" / row["path"]), row["label"]) for row in csv.DictReader(stream)][:200]
    (tmp_path / "renaming.py").write_text(OPERATOR)
    lines = [json.dumps({"image": path, "digit": label}) for path, label in rows]
    (tmp_path / "images.jsonl").write_text("\n".join(lines) + "\n")
    tree = yaml.safe_load((folder / "scan.yaml").read_text())
    tree["metadata"]["name"] = "piped"
    tree["spec"]["model"]["uri"] = f"file://{folder}"
    tree["spec"]["data"] = {
        "uri": f"jsonl://{tmp_path}/images.jsonl",
        "pipeline": {"operators": [{"operator": "renaming:Rename"}]},
    }
    tree["spec"]["workload"]["train"]["epochs"] = 2
    (tmp_path / "scan.yaml").write_text(yaml.safe_dump(tree))
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "asysi.cli",
        "run",
        str(tmp_path / "scan.yaml"),
        "--plain",
        "-o",
        str(out),
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label", *(",".join(row) for row in rows)]) + "\n")
    settings = [
        "train.batch_size=32",
        "train.microbatch=32",
        "seed=0",
        "train.epochs=2",
        f"data.train={table}",
    ]
    plain = SupervisedTrainer(open_project(folder, settings=settings), tmp_path / "plain")
    plain.fit()
    assert (out / "train/last.safetensors").exists(), done.stdout + done.stderr
    watched, whole = load_file(out / "train/last.safetensors"), load_file(tmp_path / "plain/last.safetensors")
    assert all(torch.equal(watched[name], whole[name]) for name in whole)
    page = (out / "report.html").read_text()
    assert "after each of 2 epochs" in page
    assert "Drift of fc1" in page
