"""What a store holds of a run: whose it is, which segments are there, and the report last."""

import json
import threading
from pathlib import Path

import httpx
import pytest
from tests.s3 import S3Server

from asysi.contract.errors import ConfigError
from asysi.contract.identity import Identity
from asysi.locations import filesystem
from asysi.store.claim import claim_address
from asysi.store.multipart import StoppedError
from asysi.store.results import UploadRecord, recorded_address, upload_results, upload_segments
from asysi.store.retrying import until_done

OWN = Identity(namespace="default", name="a", digest="1")


def folder_of_run(folder: Path) -> Path:
    for name, text in {
        "report.html": "<html>",
        "ledger.json": "{}",
        "sae/main/layer.0/sae_weights.safetensors": "weights",
        "sae/main/.unfinished.tmp": "half",
        "logs/host.log": "log",
        "checkpoints/main.ckpt": "checkpoint",
        "archive/attempt-0000-segment-0000.mscan": "segment",
        ".identity.lock": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "sae" / "link").symlink_to("/etc/passwd")
    return folder


def test_results_with_the_report_last(s3: S3Server, tmp_path: Path) -> None:
    """Results are uploaded, files that only serve to continue here are not; the report comes last."""
    run = folder_of_run(tmp_path / "run")
    count = iter(range(100))
    with pytest.raises(StoppedError):
        upload_results(run, "s3://results/r", stop=lambda: next(count) >= 2)
    assert s3.get("r/ledger.json") == b"{}"
    assert s3.get("r/report.html") is None
    assert upload_results(run, "s3://results/r") == 3
    assert s3.get("r/report.html") == b"<html>"
    assert s3.get("r/sae/main/layer.0/sae_weights.safetensors") == b"weights"
    for name in ("sae/main/.unfinished.tmp", "sae/link", "logs/host.log", "checkpoints/main.ckpt"):
        assert s3.get(f"r/{name}") is None


def test_segments_once(s3: S3Server, tmp_path: Path) -> None:
    """A segment is recorded once it is whole in the store, and never sent again."""
    paths = [tmp_path / f"attempt-0000-segment-{number:04d}.mscan" for number in range(3)]
    for path in paths:
        path.write_text(path.name)
    address = "s3://results/s"
    gone = tmp_path / "attempt-0000-segment-0009.mscan"
    assert upload_segments(tmp_path, address, [paths[0], gone, paths[1]]) == 2
    assert upload_segments(tmp_path, address, paths) == 1
    record = UploadRecord(tmp_path, address)
    assert record.segments() == {path.name for path in paths}
    assert s3.get(f"s/archive/{paths[2].name}") == paths[2].name.encode()
    assert UploadRecord(tmp_path, "s3://results/other").segments() == frozenset()
    assert recorded_address(tmp_path) == address


def test_damaged_record(tmp_path: Path) -> None:
    """A record that cannot be read is an error that names the file."""
    (tmp_path / "uploaded.json").write_text("{")
    with pytest.raises(ConfigError, match=r"uploaded\.json cannot be read"):
        UploadRecord(tmp_path, "s3://a/b").segments()


def test_ownership(s3: S3Server, tmp_path: Path) -> None:
    """An address belongs to the run that claimed it: another, or another's files, are refused by name."""
    address = "s3://results/owned"
    claim_address(OWN, tmp_path / "a", address, resume=False)
    assert json.loads(s3.get("owned/identity.json") or b"")["name"] == "a"
    claim_address(OWN, tmp_path / "a", address, resume=False)
    upload_segments(tmp_path / "a", address, [])
    other = OWN.model_copy(update={"name": "b"})
    with pytest.raises(ConfigError, match="holds the results of experiment default/a"):
        claim_address(other, tmp_path / "b", address, resume=True)
    changed = OWN.model_copy(update={"digest": "2"})
    with pytest.raises(ConfigError, match="holds the results of experiment default/a with another"):
        claim_address(changed, tmp_path / "a", address, resume=False)
    httpx.put(f"{s3.url}/results/theirs/holiday.jpg", content=b"x")
    with pytest.raises(ConfigError, match=r"no identity\.json says whose they are"):
        claim_address(OWN, tmp_path / "c", "s3://results/theirs", resume=False)
    assert s3.get("theirs/identity.json") is None


def test_a_finished_run_is_not_replaced(s3: S3Server, tmp_path: Path) -> None:
    """The same experiment from another folder does not write over a finished run."""
    address = "s3://results/finished"
    claim_address(OWN, tmp_path / "a", address, resume=False)
    upload_results(folder_of_run(tmp_path / "a"), address)
    with pytest.raises(ConfigError, match="which is finished: choose another address, or empty it"):
        claim_address(OWN, tmp_path / "b", address, resume=True)
    claim_address(OWN, tmp_path / "a", address, resume=False)


def test_what_the_store_lost_is_sent_again(s3: S3Server, tmp_path: Path) -> None:
    """Segments that were recorded and then deleted from the store, one or all of them, are uploaded again."""
    address = "s3://results/lost"
    paths = [tmp_path / f"attempt-0000-segment-{number:04d}.mscan" for number in range(3)]
    for path in paths:
        path.write_text(path.name)
    files, _ = filesystem(address)
    keys = {f"lost/archive/{path.name}" for path in paths}
    for deleted in ({f"lost/archive/{paths[1].name}"}, {*keys, "lost/identity.json"}):
        claim_address(OWN, tmp_path, address, resume=False)
        upload_segments(tmp_path, address, paths)
        assert s3.keys("lost/archive/") == keys
        for key in deleted:
            files.rm_file(f"results/{key}")
    claim_address(OWN, tmp_path, address, resume=False)
    assert upload_segments(tmp_path, address, paths) == 3
    assert s3.keys("lost/") == {*keys, "lost/identity.json"}


def test_retries() -> None:
    """An upload is repeated until it succeeds, is stopped, or its time is up; then the error says why."""
    stop, failures, calls = threading.Event(), [], []

    def work() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise ConfigError("s3://b cannot be reached: x")

    assert until_done(work, stop, failed=lambda: failures.append(1), first_pause=0.01)
    assert (len(calls), len(failures)) == (3, 2)

    def never() -> None:
        raise ConfigError("s3://b cannot be reached: y")

    with pytest.raises(ConfigError, match="y"):
        until_done(never, stop, seconds=0.05, first_pause=0.01)
    stop.set()
    assert not until_done(never, stop)
