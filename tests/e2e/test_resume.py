"""Everything is killed, and `asysi run --resume` goes on: at each phase of a run, with real workers."""

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from asysi.bus.mailbox import CaptureWord
from asysi_ring import Control

pytestmark = pytest.mark.long  # whole experiments


def _long(spec: dict[str, Any]) -> None:
    spec["workload"]["scan"].update(passes=12)


def _until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.02)


def _kill_all(run: Any) -> None:
    """Kill the runner; its workers die with it."""
    children = psutil.Process(run.process.pid).children(recursive=True)
    run.process.kill()
    run.process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


def _stepped(run: Any, steps: int) -> None:
    run.worker("asysi.hosts.scan")
    control = Control(str(run.rings() / "capture" / "rank-0"))
    _until(lambda: control.get(CaptureWord.STEPS) >= steps)


def _prepare(run: Any) -> None:
    run.worker("asysi.hosts.prepare")


def _host_starting(run: Any) -> None:
    run.worker("asysi.hosts.scan")


def _reading(run: Any) -> None:
    _stepped(run, 60)
    _until(lambda: any((run.output / "checkpoints").glob("*.ckpt")))
    _until(lambda: _progress(run.output) > 0)


def _analysing(run: Any) -> None:
    _stepped(run, 1)
    _until((run.output / "ledger.json").exists)


@pytest.mark.long
@pytest.mark.parametrize(
    "phase",
    [_prepare, _host_starting, _reading, _analysing],
    ids=["prepare", "host starting", "reading", "analysing"],
)
def test_killed_at_a_phase_then_resumed(
    scan: Callable, start: Callable, phase: Callable[[Any], None]
) -> None:
    """Whenever the whole run is killed, --resume brings it to its end with the rows of each attempt."""
    from asysi.archive.dataset import MScanDataset

    path = scan("resumed", _long)
    run = start(path)
    phase(run)
    _kill_all(run)
    seen = _progress(run.output)
    refused = start(path)
    if (run.output / "events.jsonl").exists():
        assert refused.finish() == 2, refused.text()
        assert "--resume" in refused.text()
    again = start(path, "--resume")
    assert again.finish() == 0, again.text()
    assert (again.output / "report.html").exists()
    identity = json.loads((again.output / "identity.json").read_text())
    assert (identity["name"], identity["uid"]) == (run.name, None)
    if phase is _reading:
        ledger = again.ledger()
        assert ledger["attempt"] == 1
        assert "continuing the run" in again.text()
        assert _progress(again.output) > seen > 0
        assert _shown(again)[0][0] > 0
        assert _shown(again)[-1][0] == _shown(again)[-1][1]
        attempts = {int(file.name[8:12]) for file in (again.output / "archive").glob("*.mscan")}
        assert attempts == {0, 1}
        dataset = MScanDataset(again.output)
        for point in ledger["points"]:
            archived = dataset.metrics(point["path"])
            assert len(archived) > point["consumers"]["archiver"]["durable"] > 0


def _progress(output: Path) -> int:
    try:
        return int(json.loads((output / "host" / "progress.json").read_text())["step"])
    except FileNotFoundError:
        return -1


def _shown(run: Any) -> list[tuple[int, int]]:
    """Return every progress of the host that was shown: tokens, of tokens.

    A slow machine also shows how far finish is: "… tokens read for the …".
    """
    said = (run.output.parent / f"{run.name}.out").read_text()
    numbers = re.findall(r"([\d ,]*\d) of (\d[\d ,]*) tokens(?! read)", said)
    return [(_number(done), _number(total)) for done, total in numbers]


def _number(text: str) -> int:
    return int(re.sub(r"\D", "", text))


@pytest.mark.long
def test_ctrl_c_once_then_resumed(scan: Callable, start: Callable) -> None:
    """A run that was ended early has a report, and goes on with the rest of the text as if it had not ended;
    its progress is that of the whole run.
    """
    path = scan("once", _long)
    run = start(path)
    _reading(run)
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130, run.text()
    assert "continue it with --resume" in run.text()
    assert "The run was ended early" in (run.output / "report.html").read_text()
    early, first = _progress(run.output), run.ledger()
    refused = start(path)
    assert refused.finish() == 2
    assert "ended early: continue it with --resume" in refused.text()
    again = start(path, "--resume")
    assert again.finish() == 0, again.text()
    assert "The run is complete" in (again.output / "report.html").read_text()
    ledger = again.ledger()
    assert (ledger["attempt"], ledger["interrupted"]) == (1, False)
    assert first["steps"]["run"] == early + 1
    assert first["steps"]["run"] + ledger["steps"]["run"] == ledger["steps"]["expected"]
    shown = _shown(again)
    assert {total for _, total in shown} == {first["tokens"]["read"] + ledger["tokens"]["read"]}
    assert shown[0][0] >= first["tokens"]["read"]
    assert shown[-1][0] == shown[-1][1]
    training = json.loads((again.output / "sae" / "topk" / "training.json").read_text())["points"]
    for path_, point in training.items():
        rows = [books["consumers"]["sae"] for one in (first, ledger) for books in one["points"]
                if books["path"] == path_]  # fmt: skip
        assert point["received"] == sum(one["durable"] for one in rows)
        assert point["trained"] == point["received"] - point["held_out"]
    finished = start(path, "--resume")
    assert finished.finish() == 2
    assert "finished run" in finished.text()


@pytest.mark.long
def test_ctrl_c_twice_then_resumed(scan: Callable, start: Callable) -> None:
    """A run that was killed by a second Ctrl-C is unfinished, and goes on."""
    path = scan("twice", _long)
    run = start(path)
    _reading(run)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130, run.text()
    assert not (run.output / "report.html").exists()
    again = start(path, "--resume")
    assert again.finish() == 0, again.text()
    assert again.ledger()["attempt"] == 1


@pytest.mark.long
def test_terminated_then_resumed(scan: Callable, start: Callable) -> None:
    """SIGTERM leaves checkpoints; --resume goes on behind them, and says what has changed in the spec."""
    path = scan("terminated", _long)
    run = start(path)
    _reading(run)
    run.process.terminate()
    assert run.finish() == 143, run.text()
    again = start(path, "--resume", "--set", "spec.lifecycle.maxRestarts=5")
    assert again.finish() == 0, again.text()
    assert "changed since: spec.lifecycle.maxRestarts" in again.text()
    other = start(path, "--resume", "--set", "spec.workload.scan.passes=2")
    assert other.finish() == 2
    assert "finished run" in other.text()
