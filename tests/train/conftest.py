"""Projects of the template, small enough for a test."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asysi.train.project import Project, open_project
from asysi.train.scaffold import write_project

FAST = [
    "train.threads=1",
    "train.epochs=4",
    "optimizer.lr=0.003",
    "data.augmentation=null",
    "tensorboard=false",
    "eval.compression=[]",
    "eval.baseline=null",
    "eval.drift_layers=[]",
]
"""Settings with which the digits reach 97% within seconds."""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a digits project with its tables; tests write below `tmp_path` only."""
    folder = tmp_path_factory.mktemp("projects") / "digits"
    write_project(folder, "digits")
    spec = importlib.util.spec_from_file_location("make_digits", folder / "make_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(folder)
    return folder


@pytest.fixture
def project(digits: Path) -> Iterator[Callable[..., Project]]:
    """Return a function that opens the digits project with settings, over the fast ones."""
    known, path, threads = set(sys.modules), list(sys.path), torch.get_num_threads()

    def opened(*settings: str, **_unused: Any) -> Project:
        return open_project(digits, settings=[*FAST, *settings])

    yield opened
    torch.set_num_threads(threads)
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if name == "train" or name.startswith("train."):
            del sys.modules[name]


@pytest.fixture
def tiny(digits: Path, tmp_path: Path) -> list[str]:
    """Return settings for tables of the first rows: 96 to train on, 40 to evaluate."""
    settings = []
    for name, rows in (("train", 96), ("val", 40), ("test", 40)):
        lines = (digits / f"data/{name}.csv").read_text().splitlines()[: rows + 1]
        table = tmp_path / f"{name}.csv"
        table.write_text("\n".join([lines[0], *(f"{digits}/data/{line}" for line in lines[1:])]) + "\n")
        settings.append(f"data.{name}={table}")
    return [*settings, "eval.thresholds=[]", "train.epochs=2", "train.batch_size=16"]
