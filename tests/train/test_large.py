"""A large table, end to end: one epoch, killed once and continued, predicted, in bounded memory."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from .conftest import FAST

ROWS = int(os.environ.get("ASYSI_TRAIN_ROWS", "3000"))
"""Rows of the table; `make large-train` takes a million."""
LIMIT = 1_500
"""MiB of any process: torch and the libraries take some 500 of them, a million rows 16, the cache 64."""


_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL).returncode
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
"""Runs a command and writes its peak. Linux counts a program's start in the memory of the process that starts
it, so a small process does."""


def _ran_within_the_limit(command: list[str], folder: Path) -> str:
    """Run a command to its good end in at most LIMIT MiB, and return what it wrote to stderr."""
    measured = [sys.executable, "-S", "-c", _MEASURE, str(folder / "peak"), *command]
    done = subprocess.run(measured, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = int((folder / "peak").read_text()) / 1024
    print(f"{command[4]}: {peak:.0f} MiB at most")  # `make large-train` shows it
    assert peak < LIMIT
    return done.stderr


def test_a_large_table_is_trained_and_predicted(digits: Path, tmp_path: Path) -> None:
    """Training that is killed once and continued, the report and the predictions of every row."""
    table = tmp_path / "large.csv"
    with (digits / "data/train.csv").open() as stream:
        known = list(csv.DictReader(stream))
    with table.open("w") as stream:
        stream.write("path,label\n")
        for row in itertools.islice(itertools.cycle(known), ROWS):
            stream.write(f"{digits}/data/{row['path']},{row['label']}\n")
    settings = [*FAST, f"data.train={table}", "train.epochs=1", "train.batch_size=256", "data.cache_mb=64"]
    settings += ["train.checkpoint_steps=2", "eval.thresholds=[]"]
    words = [word for setting in settings for word in ("--set", setting)]
    program = [sys.executable, "-m", "asysi.cli", "train"]
    place = ["--project", str(digits), "--output", str(tmp_path / "run")]
    process = subprocess.Popen([*program, "run", "cpu", *place, *words], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (tmp_path / "run/checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "resumed at step" in _ran_within_the_limit([*program, "run", "cpu", *place, *words], tmp_path)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["training"]["steps"] == -(-ROWS // 256)
    assert report["training"]["train_rows"] == ROWS
    result = tmp_path / "predicted.csv"
    _ran_within_the_limit([*program, "test", str(table), str(result), "cpu", *place, *words], tmp_path)
    with result.open() as stream, table.open() as source:
        pairs = zip(csv.DictReader(stream), csv.DictReader(source), strict=True)
        assert all(one["path"] == row["path"] and one["prediction"] for one, row in pairs)
