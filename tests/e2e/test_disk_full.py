"""A real run whose output is a file system of 20 MiB: it stops in one sentence, and can be resumed."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MiB, in the place of the runs' output."""
    if os.geteuid():
        pytest.skip("mounting a small tmpfs takes root: run the tests with sudo")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _more(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=600m", str(disk)], check=True)


def _long(spec: dict[str, Any]) -> None:
    spec["workload"]["scan"].update(passes=8)
    spec["archive"] = {"rotate": "4Mi"}


def _unfinished(folder: Path) -> list[str]:
    """Return temporary files."""
    return [str(path) for path in folder.rglob(".*") if path.suffix in {".tmp", ".part", ".new", ".recover"}]


def test_it_stops_in_one_sentence_and_resumes(scan: Callable, start: Callable, disk: Path) -> None:
    """Exit code 1 and one sentence, nothing half written; with room --resume brings it to a balanced end."""
    from asysi.archive.segment import open_segment

    path = scan("full", _long)
    run = start(path, "--output", str(disk / "run"))
    code = run.finish()
    run.output = disk / "run"
    said = (run.output.parents[1] / f"{run.name}.out").read_text()
    assert code == 1, said
    assert said.count("no room is left in") == 1, said
    assert "20 MiB in all" in said
    assert "--resume" in said
    assert "Traceback" not in run.text()
    assert _unfinished(run.output) == []
    checkpoints = list((run.output / "checkpoints").glob("*.ckpt"))
    progress = json.loads((run.output / "host" / "progress.json").read_text())
    assert progress["attempt"] == 0
    _more(disk)
    again = start(path, "--output", str(disk / "run"), "--resume")
    code = again.finish()
    again.output = run.output
    assert code == 0, again.text()
    ledger = again.ledger()
    assert ledger["attempt"] == 1
    assert ledger["balanced"] is True
    assert (run.output / "report.html").exists()
    for segment in (run.output / "archive").glob("*.mscan"):
        open_segment(segment)
    assert len(checkpoints) <= 1


def test_the_model_goes_on_if_it_is_to(scan: Callable, start: Callable, disk: Path) -> None:
    """With `whenFull: continue` the host reads to its end although nothing can be written; the run fails."""

    def change(spec: dict[str, Any]) -> None:
        _long(spec)
        spec["output"] = {"whenFull": "continue"}

    run = start(scan("onward", change), "--output", str(disk / "run"))
    code = run.finish()
    run.output = disk / "run"
    assert code == 1, run.text()
    events = [json.loads(line) for line in (run.output / "events.jsonl").read_text().splitlines()]
    assert [one["code"] for one in events if one["container"] == "host" and one["event"] == "exited"] in (
        [0],
        [],
    )
    assert "Traceback" not in run.text()
