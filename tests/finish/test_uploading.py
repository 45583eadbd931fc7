"""What finish uploads, `asysi upload`, and a store that fails at the end of a run."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.packets import packet_of
from tests.pod import experiment
from tests.s3 import S3Server, s3_server

from asysi.archive.dataset import MScanDataset
from asysi.archive.series import Series
from asysi.archive.writer import MScanWriter
from asysi.cli import main
from asysi.contract.errors import ConfigError
from asysi.contract.identity import Identity
from asysi.contract.runtime import Container
from asysi.contract.spec import ScanExperiment
from asysi.finish.uploading import upload_folder, upload_run
from asysi.monitor.worker import Worker


@pytest.fixture(scope="module")
def running_s3() -> Iterator[S3Server]:
    with s3_server("bucket") as server:
        yield server


@pytest.fixture
def s3(running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    running_s3.reach(monkeypatch)
    return running_s3


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The output folder of a finished run with three closed segments."""
    folder = tmp_path / "run"
    (folder / "archive").mkdir(parents=True)
    series = Series(folder / "archive", 0, {}, rotate=1)
    for sequence in range(3):
        series.append(packet_of(np.full((4, 8), sequence, np.float32), sequence))
        series.close()
    (folder / "identity.json").write_text(
        Identity(namespace="default", name="a", digest="1").model_dump_json()
    )
    (folder / "ledger.json").write_text("{}")
    (folder / "report.html").write_text("<html>")
    return folder


def worker_of(folder: Path, address: str) -> Worker:
    spec = {
        "model": {"uri": "python://nothing:here"},
        "workload": {"scan": {}},
        "capture": {"hookPoints": ["**"]},
        "output": {"uri": address},
    }
    found = ScanExperiment.model_validate(experiment(spec))
    return Worker(Container.FINISH, found, folder, folder, folder, 0, 0)


def test_finish_uploads_what_the_store_lacks(s3: S3Server, run: Path) -> None:
    """Every segment and result is in the store, and reading there gives the same packets."""
    assert upload_run(worker_of(run, "s3://bucket/f"), "s3://bucket/f") is None
    assert s3.get("f/report.html") == b"<html>"
    here, there = ([p.payload.tobytes() for p in MScanDataset(at).packets()] for at in (run, "s3://bucket/f"))
    assert here == there
    assert len(here) == 3


def test_a_torn_segment_is_named(s3: S3Server, run: Path) -> None:
    """A segment without a footer is not uploaded, and the sentence says which and what to do."""
    torn = run / "archive" / "attempt-0000-segment-0007.mscan"
    MScanWriter(torn, {}, points=[("a", None, 4)]).flush()
    said = upload_run(worker_of(run, "s3://bucket/t"), "s3://bucket/t")
    assert said is not None
    assert torn.name in said
    assert "asysi mscan recover" in said
    assert s3.get(f"t/archive/{torn.name}") is None


def test_a_store_that_is_away_at_the_end(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its patience, finish says in a sentence that the store is not complete, and why."""
    S3Server("bucket").reach(monkeypatch)
    said = upload_run(worker_of(run, "s3://bucket/x"), "s3://bucket/x", patience=0.1)
    assert said is not None
    assert said.startswith("The results are not complete at s3://bucket/x: s3://bucket/x/archive/")
    assert "its endpoint does not answer" in said


def test_upload_by_hand(s3: S3Server, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`asysi upload DIR ADDRESS` uploads a run; without the address a later call continues it."""
    with pytest.raises(SystemExit) as leaving:
        main(["upload", str(run), "s3://bucket/hand/"])
    assert leaving.value.code == 0
    assert "s3://bucket/hand: 3 segments and 2 other files" in capsys.readouterr().out
    assert json.loads(s3.get("hand/identity.json") or b"{}")["name"] == "a"
    series = Series(run / "archive", 1, {}, rotate=1)
    series.append(packet_of(np.zeros((4, 8), np.float32), 9))
    series.close()
    upload_folder(run, None)
    assert "4 segments" in capsys.readouterr().out
    assert s3.get("hand/archive/attempt-0001-segment-0000.mscan")


@pytest.mark.parametrize(
    ("missing", "address", "message"),
    [
        ("identity.json", "s3://bucket/m", "is not the output folder of a run"),
        ("report.html", "s3://bucket/n", "the other results follow"),
        (None, None, "was never uploaded: give one like"),
        (None, "/tmp/x", "is no address of a store"),
    ],
)
def test_what_cannot_be_uploaded(
    s3: S3Server, run: Path, missing: str | None, address: str | None, message: str
) -> None:
    """A folder that is no run, a run without a report, and a wrong address are one sentence each."""
    if missing:
        (run / missing).unlink()
    with pytest.raises(ConfigError, match=message):
        upload_folder(run, address)
