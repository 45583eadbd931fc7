"""Runs a pipeline that is killed with SIGKILL again and again; `test_kill.py` starts it.

One process imports everything and forks a run for each kill, so that a kill costs no start of Python.
"""

import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

from forking import attempt

from asysi.pipeline import BaseOperator, UnifiedPipeline, WriterConfig
from asysi.pipeline.ledger.ledger import RowLedger
from asysi.pipeline.streams.row_log import FileLog

ROWS = 1200


class Drop(BaseOperator):
    """Drops every seventh row, and takes its time."""

    def process_item(self, item, ctx=None):
        time.sleep(0.00005)
        return None if item["n"] % 7 == 3 else {**item, "seen": ["drop"]}


class Fan(BaseOperator):
    """Makes 0 to 3 rows of each."""

    def process_item(self, item, ctx=None):
        return [{"n": item["n"], "copy": copy} for copy in range(item["n"] % 4)]


class Batch(BaseOperator):
    """Says what else is in the batch: it must be the same rows whenever it is computed."""

    def process_batch(self, items, ctx=None):
        time.sleep(0.0005)
        together = sum(item["n"] for item in items)
        return [[{**item, "together": together, "half": half} for half in range(2)] for item in items]


def make(folder: Path, mode: str) -> UnifiedPipeline:
    parallel = 3 if mode == "parallel" else 1
    return UnifiedPipeline(
        [Drop(), Fan(), Batch()],
        input_uri=f"jsonl://{folder}/in.jsonl",
        output_uri=f"jsonl://{folder}/out.jsonl",
        streaming=mode not in {"sequential", "ahead"},
        parallel_size=parallel,
        batch_size=8,
        writer_config=WriterConfig(
            flush_batch_size=20, flush_interval=0.01, retry_interval=0.01, fsync=mode != "parallel"
        ),
        base_path=folder / "tmp",
        log_dir=folder / "logs",
        default_protocol="memory://" if mode == "memory" else "jsonl://",
    )


def let_the_ledger_run_ahead() -> None:
    """Break, on purpose, what all rests on: rows reach the file only after the ledger has them."""
    commit = RowLedger.commit
    late: list[tuple[FileLog, bytes]] = []

    def append(log, data):
        late.append((log, data))
        log.digest.update(data)
        log.size += len(data)

    def commit_first(ledger, *arguments, **named):
        commit(ledger, *arguments, **named)
        time.sleep(0.02)  # long enough to be met by a kill
        for log, data in late:
            os.write(log._out, data)
        late.clear()

    FileLog.append, RowLedger.commit = append, commit_first


def run(folder: Path, mode: str) -> None:
    if mode == "ahead":
        let_the_ledger_run_ahead()
    pipeline = make(folder, mode)
    begun = (folder / "tmp" / "killed" / "runtime.json").exists()
    if begun:
        pipeline.resume("killed")
    else:
        pipeline.create("killed")
    pipeline.run()


def fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with (folder / "in.jsonl").open("w") as file:
        for n in range(ROWS):
            file.write(json.dumps({"n": n, "text": "row " * (n % 9)}) + "\n")
    return folder


def main(base: Path, mode: str, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    whole = fresh(base / "whole")
    began = time.monotonic()
    assert attempt(partial(run, whole, mode), None) == 0
    took = time.monotonic() - began
    expected = (whole / "out.jsonl").read_bytes()
    landed, lives, wrong, failed = 0, 0, 0, 0
    while landed < kills:
        folder = fresh(base / f"life-{lives}")
        lives += 1
        while True:
            # Mostly a part of the run; sometimes the very beginning, sometimes only just before its end.
            delay = chance.choice(
                [chance.uniform(0, took / 3), chance.uniform(0, took / 20), chance.uniform(0, took)]
            )
            code = attempt(partial(run, folder, mode), delay if landed < kills else None)
            landed += code == -signal.SIGKILL
            failed += code not in {0, -signal.SIGKILL}
            if code != -signal.SIGKILL:
                break
        out = folder / "out.jsonl"
        got = out.read_bytes() if out.exists() else b""
        ledger = RowLedger(folder / "tmp" / "killed" / "ledger.sqlite")
        wrong += got != expected or ledger.settled(["1_Drop", "2_Fan", "3_Batch"]) != ROWS
        ledger.close()
    print(
        json.dumps(
            {"kills": landed, "lives": lives, "wrong": wrong, "failed": failed, "rows": expected.count(b"\n")}
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
