"""The examples of the pipeline run as they are."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from asysi.cli.commands import app

EXAMPLES = Path(__file__).parents[2] / "examples" / "pipeline"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the examples."""
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "sentences", raising=False)
    return tmp_path


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["pipeline", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_clean_keeps_english_sentences_once(folder: Path) -> None:
    """clean.yaml filters, deduplicates, splits and fills a template; ids tell review and sentence."""
    run("run", str(folder / "clean.yaml"))
    rows = [json.loads(line) for line in (folder / "runs/sentences.jsonl").read_text().splitlines()]
    assert [row["_i"] for row in rows] == [
        "0_0",
        "0_1",
        "3_0",
        "4_0",
        "4_1",
        "4_2",
        "6_0",
        "6_1",
        "8_0",
        "8_1",
    ]
    assert rows[0]["line"] == "kettle: Boils in two minutes."


def test_rate_asks_the_stub(folder: Path) -> None:
    """rate.yaml asks the server of stub.py about each review and writes a CSV file with the answers."""
    server = subprocess.Popen(
        [sys.executable, str(folder / "stub.py"), "--latency", "0.01"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split()[-1]
        file = folder / "rate.yaml"
        file.write_text(file.read_text().replace("8000", port))
        said = run("run", str(file))
    finally:
        server.kill()
        server.communicate()
    assert "rate: completed, 10 source rows settled, 9 rows made" in said
    with (folder / "runs/rated.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert all(int(row["length"]) == len(row["answer"]) > 0 for row in rows)
