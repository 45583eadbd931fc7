"""Runs one contestant over the rows, in its own process and in any environment.

    python task.py WHO [--workers N] [--no-fsync] OUT IN...

The work: convert the texts of nine in ten rows (by CRC-32 of the text) to upper case; lines that are not JSON
are skipped. It prints, as JSON, the seconds from the call to the finished output, and those before it.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

BEGAN = time.monotonic()
Paths = list[Path]


def kept(text: str) -> bool:
    return crc32(text.encode()) % 10 != 0


def plain(paths: Paths, out: Path, workers: int, fsync: bool) -> float:
    """The plain loop: read a line, parse, work, dump, write. Several workers take byte ranges."""
    import orjson

    def part(index: int) -> None:
        with (out / f"{index}.jsonl").open("wb") as target:
            for path in paths:
                size = path.stat().st_size
                begin, end = size * index // workers, size * (index + 1) // workers
                with path.open("rb") as source:
                    source.seek(max(0, begin - 1))
                    at = begin
                    if begin:
                        at = begin - 1 + len(source.readline())
                    loop(source, target, end - at)
            if fsync:
                target.flush()
                os.fsync(target.fileno())

    def loop(source, target, left: int) -> None:
        loads, dumps, write = orjson.loads, orjson.dumps, target.write
        for line in source:
            if left <= 0:
                return
            left -= len(line)
            try:
                row = loads(line)
            except orjson.JSONDecodeError:
                continue
            text = row["text"]
            if kept(text):
                row["text"] = text.upper()
                write(dumps(row) + b"\n")

    began = time.monotonic()
    in_processes(part, workers)
    return began


def in_processes(part: Callable[[int], None], count: int) -> None:
    """Run parts 0 to count - 1, all but the first in forked processes."""
    children = []
    for index in range(1, count):
        child = os.fork()
        if child == 0:
            part(index)
            os._exit(0)
        children.append(child)
    part(0)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0


def pipeline_of(paths: Paths, out: Path, fsync: bool):
    """Return a factory for a default asysi.pipeline run: ledger, seals, digests, dead letters."""
    from asysi.pipeline import BaseOperator, UnifiedNode, UnifiedPipeline, WriterConfig

    class Upper(BaseOperator):
        waits = False

        def process_item(self, item, ctx=None):
            text = item["text"]
            if not kept(text):
                return None
            item["text"] = text.upper()
            return item

    assert UnifiedNode  # imported before the clock starts, like all modules
    pattern = paths[0] if len(paths) == 1 else paths[0].parent / "*.jsonl"

    def make(**spread: Any) -> UnifiedPipeline:
        return UnifiedPipeline(
            [Upper()],
            f"jsonl://{pattern}",
            f"jsonl://{out}/out.jsonl",
            writer_config=WriterConfig(fsync=fsync),
            on_error="dead_letter",
            base_path=out / "tmp",
            log_dir=out / "logs",
            progress=False,
            **spread,
        )

    return make


def ours(paths: Paths, out: Path, workers: int, fsync: bool) -> float:
    """asysi.pipeline in one run, with worker processes."""
    make = pipeline_of(paths, out, fsync)
    began = time.monotonic()
    make(processes=workers).create("rows").run()
    return began


def shards(paths: Paths, out: Path, workers: int, fsync: bool) -> float:
    """asysi.pipeline with one shard per worker, merged: what an Indexed Job does, on one machine."""
    from asysi.pipeline.job import merge  # a module that the other version also has

    make = pipeline_of(paths, out, fsync)
    began = time.monotonic()

    def part(index: int) -> None:
        make(shard=(index, workers)).create("rows").run()

    in_processes(part, workers)
    merge(out / "tmp" / "rows")
    for path in out.glob("out.shard-*"):
        path.unlink()
    return began


def datatrove(paths: Paths, out: Path, workers: int, fsync: bool) -> float:
    """datatrove: uncompressed, without the file's path, one task per worker (files are never split)."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    reader = JsonlReader(str(paths[0].parent), compression=None, add_file_path=False, glob_pattern="*.jsonl")
    writer = JsonlWriter(str(out / "data"), compression=None, expand_metadata=True)
    began = time.monotonic()
    LocalPipelineExecutor(
        [reader, upper, writer], tasks=workers, workers=workers, logging_dir=str(out / "logs")
    ).run()
    return began


def upper(data, rank: int = 0, world_size: int = 1):
    """The work as a datatrove step."""
    for document in data:
        if kept(document.text):
            document.text = document.text.upper()
            yield document


def ray(paths: Paths, out: Path, workers: int, fsync: bool) -> float:
    """Ray Data: lines as text, because its JSON reader rejects a file with an invalid line."""
    import orjson
    import ray as engine

    with contextlib.redirect_stderr(io.StringIO()):
        engine.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    engine.data.DataContext.get_current().enable_progress_bars = False

    def work(batch):
        rows = []
        for line in batch["text"]:
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            text = row["text"]
            if kept(text):
                row["text"] = text.upper()
                rows.append(row)
        return {name: [row[name] for row in rows] for name in ("id", "text", "score")}

    began = time.monotonic()
    lines = engine.data.read_text([str(path) for path in paths])
    lines.map_batches(work, batch_size=4096).write_json(str(out / "data"))
    seconds = time.monotonic()
    engine.shutdown()
    return began + time.monotonic() - seconds  # without the shutdown


CONTESTANTS = {"plain": plain, "ours": ours, "shards": shards, "datatrove": datatrove, "ray": ray}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=CONTESTANTS)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-fsync", dest="fsync", action="store_false")
    parser.add_argument("out", type=Path)
    parser.add_argument("paths", type=Path, nargs="+")
    given = parser.parse_args()
    began = CONTESTANTS[given.who](given.paths, given.out, given.workers, given.fsync)
    ended = time.monotonic()
    print(json.dumps({"seconds": ended - began, "startup": began - BEGAN}), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
