"""examples/weights runs as it stands: the scripts, then the notebooks, on MiniLM."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLE = Path(__file__).parents[2] / "examples" / "weights"
NOTEBOOKS = sorted((EXAMPLE / "notebooks").glob("*.ipynb"))
FOLDERS = [str(Path(__file__).parents[2] / name) for name in ("operator", "workers", "native")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The example's scripts, run as its page says, in a folder of their own; returns that folder."""
    folder = tmp_path_factory.mktemp("weights")
    for arguments in (
        ["download.py", "--model_id", "minilm", "--out", "data/models/"],
        [
            "analyze.py",
            "--model_path",
            "data/models/minilm",
            "--out",
            "data/outputs/params.csv",
            "--format",
            "csv",
        ],
        ["analyze.py", "--model_path", "data/models/minilm", "--out", "data/outputs/params.parquet"],
    ):
        done = subprocess.run(
            [sys.executable, EXAMPLE / "scripts" / arguments[0], *arguments[1:]],
            cwd=folder, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "data"


def test_scripts(data):
    """The scripts leave a verified model and a table of its 104 parameters, with the document's columns."""
    assert (data / "models" / "minilm" / "model.safetensors").is_file()
    with (data / "outputs" / "params.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 104
    assert list(rows[0])[:4] == ["model_path", "model_id", "revision", "param_name"]
    assert {row["block_type"] for row in rows} >= {"embedding", "q_proj", "k_proj", "v_proj", "o_proj"}


def test_bad_input_of_the_scripts(tmp_path):
    """The scripts end in exit code 2 with a sentence when there is nothing to read."""
    done = subprocess.run(
        [sys.executable, EXAMPLE / "scripts" / "analyze.py", "--model_path", tmp_path / "gone"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "there is no" in done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook's client
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks(data, file, monkeypatch):
    """Every notebook runs from top to bottom, and every cell that plots shows a picture."""
    monkeypatch.setenv("ASYSI_WEIGHTS_TABLE", str(data / "outputs" / "params.parquet"))
    monkeypatch.setenv("ASYSI_WEIGHTS_MODEL", str(data / "models" / "minilm"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(FOLDERS))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(file.parent)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code" and "plt.show()" in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source


def test_notebooks_are_stored_without_output():
    """What is stored is code and text: outputs are made where they are read."""
    assert [file.stem for file in NOTEBOOKS] == [
        "00_setup",
        "10_summary_stats",
        "20_per_layer",
        "30_embedding_output",
    ]
    for file in NOTEBOOKS:
        for cell in nbformat.read(file, as_version=4).cells:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None
