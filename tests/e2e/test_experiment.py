"""An experiment from end to end, and what it survives."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from asysi.bus.mailbox import CaptureWord
from asysi_ring import Control

pytestmark = pytest.mark.long  # whole experiments


def _assert_balanced(ledger: dict) -> None:
    """Check the books from their plain numbers, not from the ledger's own verdict."""
    points = ledger["points"]
    assert len(points) == 2
    for point in points:
        capture = point["capture"]
        assert capture["seen"] > 0
        assert capture["seen"] == capture["published"] + capture["sampledOut"] + sum(
            capture["dropped"].values()
        )
        hook = point["hook"]
        assert capture["published"] == hook["durable"] + hook["lapped"] + hook["rolledBack"]
        bus = point["bus"]
        assert hook["durable"] == bus["published"] + sum(bus["dropped"].values())
        assert set(point["consumers"]) == {"sae", "archiver"}
        for consumer in point["consumers"].values():
            assert bus["published"] == consumer["durable"] + consumer["lapped"] + consumer["rolledBack"]
    assert ledger["balanced"] is True


def _assert_nothing_left(name: str) -> None:
    assert [p for p in Path("/dev/shm").glob(f"asysi-{name}-*") if p.is_dir()] == []


def _open_in_notebook(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the example notebook over a run; each cell that plots must show a picture."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("ASYSI_RUN", str(output))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    file = Path(__file__).parents[2] / "examples/minilm/explore.ipynb"
    notebook = nbformat.read(file, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(file.parent)}}
    ).execute()
    plots = [cell for cell in notebook.cells if "plt.show()" in cell.source]
    assert all(any("image/png" in one.get("data", {}) for one in cell.outputs) for cell in plots)
    said = "".join(one.get("text", "") for cell in notebook.cells for one in cell.get("outputs", ()))
    assert 0 < float(re.search(r"FVU (\S+),", said)[1]) < 1
    assert "128 latents" in said


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook's client
def test_whole(scan: Callable, start: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run leaves one SAE per hook point, every row in its archive, a balanced ledger and a report.

    The archive, replayed, gives the same SAEs bit for bit.
    """
    from asysi.archive.dataset import MScanDataset

    # The bus has room for the whole run: a replay needs every packet, and an archiver may be overtaken.
    run = start(scan("whole", lambda spec: spec["bus"].update(size="64Mi")))
    assert run.finish() == 0, run.text()
    ledger = run.ledger()
    _assert_balanced(ledger)
    for layer in (0, 1):
        folder = run.output / "sae" / "topk" / f"encoder.layer.{layer}.output"
        config = json.loads((folder / "cfg.json").read_text())
        assert (config["d_in"], config["d_sae"], config["k"]) == (64, 128, 8)
        assert config["metadata"]["hook_name"]
        assert (folder / "sae_weights.safetensors").stat().st_size > 64 * 128 * 4 * 2
    rows = {p["path"]: p["consumers"]["archiver"]["durable"] for p in ledger["points"]}
    dataset = MScanDataset(run.output)
    assert {point: len(dataset.metrics(point)) for point in dataset.points} == rows
    events = [json.loads(line) for line in (run.output / "events.jsonl").read_text().splitlines()]
    exits = {event["container"]: event for event in events if event["event"] == "exited"}
    last = max(exits[main]["time"] for main in ("host", "finish"))
    for sidecar in ("hook", "sae", "archiver"):  # done, they wait for the end, and leave with 0
        assert exits[sidecar]["code"] == 0
        assert exits[sidecar]["time"] >= last
    assert "restarted" not in {event["event"] for event in events}
    page = (run.output / "report.html").read_text()
    assert "encoder.layer.1.output" in page
    assert re.search(r'(src|href)="https?://', page) is None
    _assert_nothing_left(run.name)
    again = subprocess.run(
        [sys.executable, "-m", "asysi.cli", "mscan", "replay", run.output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "bit for bit the same" in again.stdout
    _open_in_notebook(run.output, monkeypatch)


@pytest.mark.parametrize("module", ["asysi.sae", "asysi.archive", "asysi.hook"])
def test_kill_worker(module: str, scan: Callable, start: Callable) -> None:
    """A worker killed by -9 at any time comes back, the model reads on, and the books balance to the row."""
    run = start(scan("kill", lambda spec: spec["workload"]["scan"].update(passes=12)))
    run.worker("asysi.hosts.scan")
    control = _capture(run)
    _wait_for_step(control, 20)
    time.sleep(random.Random(module).uniform(0, 1.5))
    victim = run.worker(module)
    victim.kill()
    steps = control.get(CaptureWord.STEPS)
    _wait_for_step(control, steps + 5)
    assert run.finish() == 0, run.text()
    ledger = run.ledger()
    _assert_balanced(ledger)
    assert control.get(CaptureWord.STEPS) == control.get(CaptureWord.STEPS_TOTAL) > 0
    events = [json.loads(line) for line in (run.output / "events.jsonl").read_text().splitlines()]
    container = {"asysi.sae": "sae", "asysi.archive": "archiver", "asysi.hook": "hook"}[module]
    assert [e["container"] for e in events if e["event"] == "restarted"] == [container]


def test_stopped_hook_does_not_stall_the_model(scan: Callable, start: Callable) -> None:
    """While the hook is stopped the model reads on, and the steps that found no room are counted."""
    run = start(
        scan(
            "stopped",
            lambda spec: (spec["capture"].update(size="20Mi"), spec["workload"]["scan"].update(passes=12)),
        )
    )
    run.worker("asysi.hosts.scan")
    control = _capture(run)
    _wait_for_step(control, 5)
    hook = run.worker("asysi.hook")
    hook.send_signal(signal.SIGSTOP)
    try:
        _wait_for(lambda: control.get(CaptureWord.STEPS_DROPPED) > 3)
        _wait_for_step(control, control.get(CaptureWord.STEPS) + 10)
    finally:
        hook.send_signal(signal.SIGCONT)
    assert run.finish() == 0, run.text()
    ledger = run.ledger()
    _assert_balanced(ledger)
    assert all(point["capture"]["dropped"]["ring_full"] > 0 for point in ledger["points"])


def test_killed_host_is_a_new_attempt(scan: Callable, start: Callable) -> None:
    """A host killed by -9 ends the attempt; the next one goes on behind it and completes."""
    run = start(scan("host", lambda spec: spec["workload"]["scan"].update(passes=12)))
    host = run.worker("asysi.hosts.scan")
    _wait_for_step(_capture(run), 60)
    host.kill()
    assert run.finish() == 0, run.text()
    ledger = run.ledger()
    assert ledger["attempt"] == 1
    _assert_balanced(ledger)
    first = json.loads((run.output / "attempts" / "0" / "ledger.json").read_text())
    assert first["complete"] is False
    assert list((run.output / "archive").glob("attempt-0000-*.mscan"))
    assert list((run.output / "archive").glob("attempt-0001-*.mscan"))


def test_interrupt_ends_cleanly(scan: Callable, start: Callable) -> None:
    """One Ctrl-C ends the run early with everything final: exit code 130, a balanced ledger, a report."""
    run = start(scan("interrupt", lambda spec: spec["workload"]["scan"].update(passes=1000)))
    run.worker("asysi.hosts.scan")
    _wait_for_step(_capture(run), 20)
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130, run.text()
    _assert_balanced(run.ledger())
    assert (run.output / "report.html").exists()
    _assert_nothing_left(run.name)


def test_killed_runner_leaves_no_process(scan: Callable, start: Callable) -> None:
    """Workers die with the runner, and the next run of that name cleans up behind it."""
    path = scan("runner", lambda spec: spec["workload"]["scan"].update(passes=1000))
    run = start(path)
    run.worker("asysi.hosts.scan")
    _wait_for_step(_capture(run), 5)
    children = psutil.Process(run.process.pid).children(recursive=True)
    run.process.kill()
    run.process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    again = start(path, "--overwrite")
    again.worker("asysi.hosts.prepare")
    again.worker("asysi.hosts.scan")
    _wait_for_step(_capture(again), 5)
    again.process.send_signal(signal.SIGINT)
    assert again.finish() == 130, again.text()
    _assert_nothing_left(run.name)


def _capture(run) -> Control:
    return Control(str(run.rings() / "capture" / "rank-0"))


def _wait_for_step(control: Control, step: int) -> None:
    _wait_for(lambda: control.get(CaptureWord.STEPS) >= step)


def _wait_for(condition: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the model stalled"
        time.sleep(0.02)
