"""A whole run whose `output.uri` is a store: everything is there at its end, or the run fails and says so."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.s3 import SECRET, S3Server, s3_server

from asysi.archive.dataset import MScanDataset

pytestmark = pytest.mark.long  # whole experiments


def _to_store(spec: dict[str, Any]) -> None:
    spec["output"] = {"uri": "s3://bucket/run"}
    spec["archive"] = {"rotate": "1Mi"}
    spec["workload"]["scan"].update(passes=1)
    spec["finish"] = {"maxTokens": 1000, "spliceTokens": 0}


def test_a_run_to_a_store(scan: Callable, start: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archive, SAEs, ledger and report are in the store as they are in the folder; no file has the key."""
    with s3_server("bucket") as server:
        server.reach(monkeypatch)
        path = scan("stored", _to_store)
        run = start(path)
        assert run.finish() == 0, run.text()
        for name in ("report.html", "ledger.json", "verdict.json", "identity.json"):
            assert server.get(f"run/{name}") == (run.output / name).read_bytes()
        saes = [file.relative_to(run.output) for file in run.output.glob("sae/**/*.safetensors")]
        assert saes
        assert all(server.get(f"run/{name}") == (run.output / name).read_bytes() for name in saes)
        here, there = MScanDataset(run.output), MScanDataset("s3://bucket/run")
        assert len(there.segments) == len(here.segments) > 1
        assert there.metrics().tobytes() == here.metrics().tobytes()
        files = [file for file in run.output.rglob("*") if file.is_file()]
        assert not [file for file in files if SECRET.encode() in file.read_bytes()]
        assert SECRET not in run.text()
        again = start(path, "--overwrite")
        assert again.finish() == 2, again.text()
        assert "which is finished" in again.text()


def test_a_store_that_does_not_answer(
    scan: Callable, start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unreachable store is refused before the model is loaded, with the address and what to check."""
    S3Server("bucket").reach(monkeypatch)
    run = start(scan("away", _to_store))
    assert run.finish() == 2, run.text()
    assert "s3://bucket/run cannot be reached: its endpoint does not answer" in " ".join(run.text().split())
    assert not (run.output / "archive").exists()
