"""The text project: files are predicted by the command of the document."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asysi.cli import main
from asysi.train.scaffold import write_project

CLASSES = ["network", "numbers", "files", "testing", "text", "types"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a text project after four steps of training."""
    folder = tmp_path_factory.mktemp("new") / "text"
    write_project(folder, "text")
    (folder / "data").mkdir()
    lines = [
        f"How {name} is used in a program of many parts ({n}),{name}" for name in CLASSES for n in range(4)
    ]
    for name in ("train", "val", "test"):
        (folder / f"data/{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    settings = ["train.epochs=1", "train.batch_size=6", "train.threads=1", "eval.thresholds=[]"]
    words = [word for setting in [*settings, "tensorboard=false"] for word in ("--set", setting)]
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as leaving:
        main(
            ["train", "run", "cpu", "--project", str(folder), "--output", str(folder / "runs/train"), *words]
        )
    torch.set_num_threads(threads)
    assert leaving.value.code == 0
    return folder


def predicted(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m train` in the project's folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "train", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_module_predicts_a_text_file(trained: Path, tmp_path: Path) -> None:
    """`python -m train PATH` prints label and probability of a text file, here a long one with a BOM."""
    file = tmp_path / "note.txt"
    file.write_text("Öffnet eine Datei, und schließt sie. " * 200, encoding="utf-8-sig")
    done = predicted(trained, str(file))
    assert done.returncode == 0, done.stderr
    label, probability = done.stdout.split()
    assert label in CLASSES
    assert 1 / len(CLASSES) <= float(probability) <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(b" \n", "is empty"), (b"\xff\xfe\x00", "is not UTF-8 text"), (None, "cannot be read")],
)
def test_what_is_no_text_is_named(trained: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    """A file that is empty, not text or missing is one sentence that names it, and no prediction."""
    from asysi.contract.errors import ConfigError
    from asysi.train.predicting import predict_file

    file = tmp_path / "note.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        predict_file(trained, "config.yaml", [], trained / "runs/train", file)
