"""Each worker is killed by -9 at each phase of a run: what comes of it is true, and complete in the end.

The model waits at a gate, so that a phase lasts as long as a test needs it.
"""

import json
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

GATED = '''
import time
from pathlib import Path

import torch

GATE = Path(__file__).with_name("gate")


class Gated(torch.nn.Module):
    """Waits before the step whose number is in the gate, as long as it stands there."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer, self.done = torch.nn.Embedding(200, 16), torch.nn.Linear(16, 16), 0

    def forward(self, input_ids, attention_mask=None):
        while GATE.exists() and self.done >= int(GATE.read_text() or 0):
            time.sleep(0.01)
        self.done += 1
        return self.layer(self.embed(input_ids))
'''
AT = 20
"""Steps before the gate."""
MODULES = {
    "prepare": "asysi.hosts.prepare", "host": "asysi.hosts.scan", "hook": "asysi.hook", "sae": "asysi.sae",
    "archiver": "asysi.archive", "finish": "asysi.finish",
}  # fmt: skip


class Gate:
    """A run whose model waits, and what is done to its workers meanwhile."""

    def __init__(self, folder: Path, start: Callable[..., Any], spec: Path) -> None:
        self.file, self.spec, self._start = folder / "gate", spec, start
        self.close(AT)
        self.run = start(spec)

    def close(self, step: int) -> None:
        """Let a host do that many steps."""
        part = self.file.with_name("part")
        part.write_text(str(step))
        part.rename(self.file)

    def open(self) -> None:
        """Let it go."""
        self.file.unlink()

    def resume(self) -> Any:
        """Go on with the run."""
        self.run = self._start(self.spec, "--resume")
        return self.run

    def worker(self, name: str, without: int = 0) -> psutil.Process:
        """Return a worker's process, another than `without`."""
        until(lambda: self.run.worker(MODULES[name]).pid != without)
        return self.run.worker(MODULES[name])

    def waits(self, steps: int = AT) -> Control:
        """Wait until a host stands before the gate; return its ring."""
        self.worker("host")
        control = Control(str(self.run.rings() / "capture" / "rank-0"))
        until(lambda: control.get(CaptureWord.STEPS) >= steps)
        return control

    def events(self, name: str, kind: str) -> int:
        """Return how often something happened to a container."""
        lines = (self.run.output / "events.jsonl").read_text().splitlines()
        return sum((one["container"], one["event"]) == (name, kind) for one in map(json.loads, lines))


def until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait until `condition`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.02)


@pytest.fixture
def gate(scan: Callable, start: Callable, model: Path, tmp_path: Path) -> Callable[..., Gate]:
    """Return a function that starts a run of a gated model."""
    (tmp_path / "gated.py").write_text(GATED)

    def begin(name: str, **lifecycle: int) -> Gate:
        def change(spec: dict[str, Any]) -> None:
            spec["model"] = {"uri": "python://gated:Gated", "tokenizer": str(model)}
            spec["capture"]["hookPoints"] = ["layer"]
            spec["workload"]["scan"].update(maxSamples=600, passes=2)
            spec["lifecycle"] = {"gracePeriodSeconds": 15, **lifecycle}

        return Gate(tmp_path, start, scan(name, change))

    return begin


def _assert_true(run: Any, *, status: str = "True", attempts: int = 1, repeats: bool = False) -> None:
    """The verdict says what the files hold: books, archive, what the SAE was given.

    `repeats`: whether steps were read again, because the host was killed before it had noted them.
    """
    from asysi.archive.dataset import MScanDataset

    verdict = json.loads((run.output / "verdict.json").read_text())
    assert verdict["conditions"]["LedgerBalanced"]["status"] == status, verdict
    assert verdict["level"] != "fail", verdict
    assert {one["reason"] for one in verdict["findings"]} <= {
        "RowsLapped", "TrainingMissedRows", "OutlierShare", "NotMeasured",
    }, verdict  # fmt: skip
    assert run.ledger()["attempt"] == attempts - 1
    (point,) = verdict["points"]
    archived = MScanDataset(run.output).metrics("layer")
    place = archived[["step", "sequence", "position"]]
    assert len(archived) > 0
    if not repeats:
        assert len(set(place.tolist())) == len(archived)
    given = point["saes"][0]["given"]
    assert given > 0
    if status != "True":
        return
    files = sorted((run.output / "attempts").glob("*/ledger.json"))
    books = [one for file in files for one in json.loads(file.read_text())["points"]]
    assert all(line["difference"] == 0 for one in books for line in one["equations"])
    assert sum(one["bus"]["published"] for one in books) == point["kept"]
    assert sum(one["consumers"]["archiver"]["durable"] for one in books) == len(archived)
    assert sum(one["consumers"]["sae"]["durable"] for one in books) == given


@pytest.mark.parametrize("name", ["sae", "archiver", "hook"])
def test_a_sidecar_is_killed_at_each_phase(name: str, gate: Callable[..., Gate]) -> None:
    """Killed as it starts, while the model runs, while it drains and once it is done, it comes back; no row
    is without its fate, and the model is not run again.
    """
    it = gate(f"side-{name}")
    first = it.worker(name)
    first.kill()
    it.waits()
    second = it.worker(name, without=first.pid)
    second.kill()
    third = it.worker(name, without=second.pid)
    third.send_signal(signal.SIGSTOP)
    it.open()
    until(lambda: it.events("host", "exited") == 1)
    third.kill()
    until((it.run.output / "ledger.json").exists)
    if it.run.process.poll() is None:
        it.worker(name, without=third.pid).kill()
    assert it.run.finish() == 0, it.run.text()
    assert it.events(name, "restarted") >= 3
    assert it.events("host", "started") == 1
    _assert_true(it.run)


def test_prepare_and_the_host_are_killed_at_each_phase(gate: Callable[..., Gate]) -> None:
    """Each kill is a new attempt, which goes on behind the last step that was written down."""
    it = gate("host", maxRestarts=5)
    it.worker("prepare").kill()
    first = it.worker("host")
    first.kill()
    second = it.worker("host", without=first.pid)
    it.waits()
    second.kill()
    until(lambda: it.worker("host").pid not in {first.pid, second.pid})
    third = it.worker("host")
    until(lambda: it.events("host", "started") == 3)
    control = it.waits()
    last = control.get(CaptureWord.STEPS_TOTAL) - control.get(CaptureWord.STEPS_BEFORE) - 1
    it.close(last)
    until(lambda: control.get(CaptureWord.STEPS) >= last)
    third.kill()
    it.open()
    assert it.run.finish() == 0, it.run.text()
    assert it.events("host", "started") == 4
    progress = json.loads((it.run.output / "host" / "progress.json").read_text())
    assert progress["step"] == it.run.ledger()["steps"]["expected"] - 1
    _assert_true(it.run, attempts=it.run.ledger()["attempt"] + 1, repeats=True)


@pytest.mark.parametrize("phase", ["starting", "running", "finishing"])
def test_finish_is_killed_at_each_phase(phase: str, gate: Callable[..., Gate]) -> None:
    """The model reads on; --resume ends the run. What the ledger of the first attempt was is known if finish
    had closed them, and said to be unknown else.
    """
    it = gate(f"finish-{phase}", maxRestarts=0)
    victim = it.worker("finish")
    if phase == "finishing":
        it.waits()
        it.open()
        until((it.run.output / "attempts" / "0" / "ledger.json").exists)
        victim.kill()
    else:
        if phase == "running":
            it.waits()
        victim.kill()
        it.waits()
        it.open()
    assert it.run.finish() == 1, it.run.text()
    assert not (it.run.output / "report.html").exists()
    assert it.resume().finish() == 0, it.run.text()
    _assert_true(it.run, status="True" if phase == "finishing" else "Unknown", attempts=2)
