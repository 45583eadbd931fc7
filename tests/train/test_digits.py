"""The digits project, from the command that writes it to the report and the predictions."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from asysi.train.scaffold import write_project

from .conftest import FAST


def project_command(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a project's folder, with this Python."""
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a project that `sh train.sh cpu` has trained."""
    folder = tmp_path_factory.mktemp("new") / "digits"
    write_project(folder, "digits")
    settings = [word for setting in [*FAST, "train.epochs=6"] for word in ("--set", setting)]
    done = project_command(folder, "sh", "train.sh", "cpu", *settings)
    assert done.returncode == 0, done.stderr
    return folder


def test_digits_reach_97_percent(trained: Path) -> None:
    """The digits are recognised with at least 97% accuracy within seconds, and the report says so."""
    report = json.loads((trained / "runs/train/report.json").read_text())
    assert report["metrics"]["accuracy"]["value"] >= 0.97
    assert report["metrics"]["accuracy"]["low"] < report["metrics"]["accuracy"]["value"]
    assert report["passed"] is True
    assert report["seed"] == 0
    assert set(report["data"]["tables_sha256"]) == {"data/train.csv", "data/val.csv", "data/test.csv"}
    assert report["command"].startswith("sh train.sh --gpus cpu --config config.yaml --set train.threads=1")
    page = (trained / "runs/train/report.html").read_text()
    assert "Confusion matrix" in page
    assert "<script" not in page


def test_a_table_is_predicted_in_its_order_and_bad_rows_stay(trained: Path, tmp_path: Path) -> None:
    """`sh test.sh` keeps rows and columns, adds prediction, probability and error, and marks bad rows."""
    with (trained / "data/test.csv").open() as stream:
        rows = list(csv.DictReader(stream))[:20]
    table = tmp_path / "input.csv"
    lines = [f"{number},{trained}/data/{row['path']},é" for number, row in enumerate(rows)]
    lines.insert(3, "x,nowhere.png,é")
    lines.insert(5, "y,,é")
    table.write_text("number,path,note\n" + "\n".join(lines) + "\n")
    done = project_command(trained, "sh", "test.sh", str(table), str(tmp_path / "output.csv"), "cpu")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "output.csv").open() as stream:
        found = list(csv.DictReader(stream))
    assert list(found[0]) == ["number", "path", "note", "prediction", "probability", "error"]
    assert [row["number"] for row in found] == ["0", "1", "2", "x", "3", "y", *map(str, range(4, 20))]
    assert (found[3]["prediction"], found[3]["error"]) == ("", "no such file")
    assert (found[5]["prediction"], found[5]["error"]) == ("", "no path")
    good = [row for row in found if not row["error"]]
    right = sum(row["prediction"] == known["label"] for row, known in zip(good, rows, strict=True))
    assert right >= 18
    assert all(0 < float(row["probability"]) <= 1 for row in good)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "1", "LA"])
def test_an_image_of_any_size_and_mode_is_predicted(trained: Path, tmp_path: Path, mode: str) -> None:
    """`python -m train PATH` predicts the same digit, whatever the image's size and mode."""
    with (trained / "data/test.csv").open() as stream:
        row = next(row for row in csv.DictReader(stream) if row["label"] == "0")
    image = Image.open(trained / "data" / row["path"]).resize((50, 50), Image.Resampling.BICUBIC)
    if mode == "I;16":
        image = image.convert("I").point(lambda value: value * 257).convert("I;16")
    else:
        image = image.convert(mode)
    image.save(tmp_path / "one.png")
    from asysi.train.predicting import predict_file

    said = predict_file(trained, "config.yaml", [], trained / "runs/train", tmp_path / "one.png")
    label, probability = said.split()
    assert label == "0"
    assert 0 < float(probability) <= 1


def test_the_module_predicts_a_file(trained: Path) -> None:
    """`python -m train PATH` prints label and probability; without a file it exits with 2."""
    done = project_command(trained, sys.executable, "-m", "train", "data/images/0000.png")
    assert (done.returncode, done.stdout.split()[0]) == (0, "0"), done.stderr
    assert project_command(trained, sys.executable, "-m", "train", "nowhere.png").returncode == 2


def test_a_finished_run_is_not_replaced(trained: Path) -> None:
    """Training into the folder of a finished run exits with 2 and says what to do."""
    done = project_command(trained, "sh", "train.sh", "cpu")
    assert done.returncode == 2
    assert "finished run" in done.stderr
    assert "--overwrite" in done.stderr
