"""Steps per second of the training loop against a bare PyTorch loop, Accelerate and Lightning.

    python benchmarks/train/compare.py [--peers-python PYTHON] [--runs 5] [--steps 400]

All train the same model on the same samples in memory: float32, one thread, no logging, no checkpoints. Runs
alternate; the table shows median and quartiles. Peers that are not installed are listed as such.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH, WIDTH, CLASSES, ROWS = 128, 1024, 10, 8192
CONFIG = """
task: benchmark
classes: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
data:
  train: train.csv
  val: val.csv
  dataset: {{_target_: train.parts.Held}}
  processor: {{_target_: train.parts.Nothing}}
contract:
  features: {{dtype: float32, shape: [64]}}
  labels: {{dtype: int64, shape: [], range: [0, 9]}}
model: {{_target_: train.parts.Model}}
init: default
loss: {{_target_: asysi.train.loss.CrossEntropy}}
optimizer: {{_target_: torch.optim.AdamW, lr: 1.0e-3}}
train:
  epochs: 1000
  batch_size: {batch}
  max_steps: {steps}
  threads: 1
  checkpoint_steps: 1000000
  schedule: {{name: constant}}
tensorboard: false
"""
PARTS = f"""
import torch
from torch import nn
try:
    from asysi.train.data_loader import TableDataset
except ImportError:
    TableDataset = torch.utils.data.Dataset

class Model(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, {WIDTH}), nn.ReLU(), nn.Linear({WIDTH}, {WIDTH}), nn.ReLU(),
            nn.Linear({WIDTH}, num_classes),
        )
    def forward(self, features, labels=None):
        return {{"logits": self.layers(features)}}

class Nothing:
    def preprocess(self, data, img_aug=None):
        return data

def samples(rows):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 64, generator=generator), torch.randint(10, (rows,), generator=generator)

class Plain(torch.utils.data.Dataset):
    def __init__(self, rows={ROWS}):
        self.features, self.targets = samples(rows)
    def __len__(self):
        return len(self.features)
    def __getitem__(self, idx):
        return {{"features": self.features[idx], "labels": self.targets[idx]}}

class Held(TableDataset):
    def load_data(self):
        super().load_data()
        self.features, self.targets = samples(len(self))
    def __getitem__(self, idx):
        return {{"features": self.features[idx], "labels": self.targets[idx]}}
"""


def ours(folder: Path, steps: int) -> float:
    """Return the seconds of a run of asysi's trainer."""
    from asysi.train.project import open_project
    from asysi.train.trainer import SupervisedTrainer

    with tempfile.TemporaryDirectory() as out:
        trainer = SupervisedTrainer(open_project(folder), Path(out))
        marks: list[float] = []
        trainer.save = lambda: None  # type: ignore[method-assign]
        trainer._end_epoch = lambda: _next_epoch(trainer)  # type: ignore[method-assign]
        began = time.perf_counter()
        trainer.fit()
        marks.append(time.perf_counter() - began)
        assert trainer.step == steps
        return marks[0]


def _next_epoch(trainer) -> None:
    trainer.epoch += 1
    trainer.batch = 0


def _parts(folder: Path):
    sys.path.insert(0, str(folder))
    import torch

    from train import parts

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return torch, parts


def bare(folder: Path, steps: int) -> float:
    """Return the seconds of a plain loop."""
    torch, parts = _parts(folder)
    model = parts.Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(parts.Plain(), BATCH, shuffle=True)
    done, began = 0, time.perf_counter()
    while done < steps:
        for batch in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(batch["features"])["logits"], batch["labels"])
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    return time.perf_counter() - began


def accelerate(folder: Path, steps: int) -> float:
    """Return the seconds of a loop with Accelerate."""
    torch, parts = _parts(folder)
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), parts.Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(parts.Plain(), BATCH, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    done, began = 0, time.perf_counter()
    while done < steps:
        for batch in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(batch["features"])["logits"], batch["labels"])
            accelerator.backward(loss)
            optimizer.step()
            done += 1
            if done == steps:
                break
    return time.perf_counter() - began


def lightning(folder: Path, steps: int) -> float:
    """Return the seconds of Lightning's Trainer, logging and checkpoints off."""
    torch, parts = _parts(folder)
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = parts.Model()

        def training_step(self, batch, _index):
            return torch.nn.functional.cross_entropy(self.model(batch["features"])["logits"], batch["labels"])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    loader = torch.utils.data.DataLoader(parts.Plain(), BATCH, shuffle=True)
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(accelerator="cpu", max_steps=steps, enable_model_summary=False, **off)
    began = time.perf_counter()
    trainer.fit(Module(), loader)
    return time.perf_counter() - began


CONTENDERS = {"bare loop": bare, "asysi train": ours, "Accelerate": accelerate, "Lightning": lightning}


def write_inputs(folder: Path, steps: int) -> None:
    """Write the project that the contenders share."""
    (folder / "train").mkdir()
    (folder / "train/__init__.py").write_text("")
    (folder / "train/parts.py").write_text(PARTS)
    (folder / "config.yaml").write_text(CONFIG.format(batch=BATCH, steps=steps))
    for name, rows in (("train", ROWS), ("val", 16)):
        (folder / f"{name}.csv").write_text("label\n" + "".join(f"{row % CLASSES}\n" for row in range(rows)))


def measure(name: str, python: str, folder: Path, steps: int) -> float | None:
    """Return the steps per second of a contender in its own process, None if it is not installed."""
    command = [python, __file__, "--one", name, "--folder", str(folder), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        raise RuntimeError(done.stderr)
    return steps / json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers-python", default=sys.executable, help="Python that has accelerate and lightning."
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(CONTENDERS[arguments.one](arguments.folder, arguments.steps)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(folder, arguments.steps)
        found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for run in range(arguments.runs):
            order = list(CONTENDERS) if run % 2 == 0 else list(CONTENDERS)[::-1]
            for name in order:
                python = arguments.peers_python if name in {"Accelerate", "Lightning"} else sys.executable
                speed = measure(name, python, folder, arguments.steps)
                if speed is not None:
                    found[name].append(speed)
    base = statistics.median(found["bare loop"])
    print("| loop | steps/s, median (quartiles) | of the bare loop |\n| --- | --- | --- |")
    for name, speeds in found.items():
        if not speeds:
            print(f"| {name} | not installed | |")
            continue
        low, middle, high = statistics.quantiles(speeds, n=4) if len(speeds) > 1 else [speeds[0]] * 3
        print(f"| {name} | {middle:.0f} ({low:.0f} to {high:.0f}) | {middle / base:.3f} |")


if __name__ == "__main__":
    main()
