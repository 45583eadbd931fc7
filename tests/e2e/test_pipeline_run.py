"""`asysi run` of an experiment with a pipeline: the pipeline first, then the model on what it has made."""

import json
import signal
import time
from pathlib import Path

SLOW = "{% for _ in range(20000) %}{% endfor %}{{ text }} again"


def _with_pipeline(spec: dict) -> None:
    writer = {"flushBatchSize": 10, "flushInterval": 0.1}
    operators = [{"operator": "template", "params": {"fields": {"text": SLOW}}}]
    spec["data"]["pipeline"] = {"operators": operators, "shards": 2, "writer": writer}
    spec["workload"]["scan"] = {"batchSize": 32, "maxSamples": 200}


def _made(output: Path) -> int:
    files = (output / "pipeline").glob("*/rows.shard-*.jsonl")
    return sum(file.stat().st_size for file in files)


def test_the_pipeline_runs_first_and_survives_a_kill(scan, start):
    """Killed halfway it is started again and goes on; the model reads its rows; the books know of both."""
    run = start(scan("piped", _with_pipeline))
    worker = run.worker("asysi.pipeline.job")
    deadline = time.monotonic() + 60
    while _made(run.output) < 5000:
        assert time.monotonic() < deadline, run.text()
        time.sleep(0.01)
    assert not (run.output / "logs" / "prepare.log").exists()
    worker.send_signal(signal.SIGKILL)
    assert run.finish() == 0, run.text()
    (rows,) = (run.output / "pipeline").glob("*/rows.jsonl")
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [line["_i"] for line in lines] == list(range(1500))
    assert all(line["text"].endswith(" again") for line in lines)
    log = run.output / "logs" / "pipeline.log"
    assert "begins at row" in log.read_text()
    events = [json.loads(line) for line in (run.output / "events.jsonl").read_text().splitlines()]
    told = [(one["event"], one["code"], one["attempt"]) for one in events if one["container"] == "pipeline"]
    assert told == [("started", None, 0), ("exited", 137, 0), ("started", None, 1), ("exited", 0, 1)]
    assert run.ledger()["balanced"] is True
    assert json.loads((run.output / "host" / "seen.json").read_text())["documents"] == 200
    assert "corpus.jsonl through template" in (run.output / "report.html").read_text()


def test_ended_early_a_pipeline_goes_on_in_the_next_run(scan, start):
    """Ctrl-C while it runs is a clean end without a model; the same command again finishes it."""
    file = scan("paused", _with_pipeline)
    run = start(file)
    run.worker("asysi.pipeline.job")
    deadline = time.monotonic() + 60
    while _made(run.output) < 5000:
        assert time.monotonic() < deadline, run.text()
        time.sleep(0.01)
    run.process.send_signal(signal.SIGINT)
    assert run.finish(30) == 130, run.text()
    assert "run it again to continue" in run.text()
    assert {entry.name for entry in run.output.iterdir()} == {"pipeline"}
    again = start(file)
    again.worker("asysi.hosts.prepare")
    assert "begins at row" in (run.output / "logs" / "pipeline.log").read_text()
    again.process.send_signal(signal.SIGTERM)
    again.finish(60)
