"""Ten million rows through a pipeline in bounded memory.

    python benchmarks/pipeline_memory.py [--rows 10000000] [--limit 300] [--folder DIR]

Two concurrent nodes: one drops a tenth of the rows, one makes three rows of every tenth. All defaults of a
run are on: the ledger, fsync, seals, the digest of every file. The pipeline runs in its own process; the
result is the peak resident set of it and its children, as reported by the kernel. Exit code 1 if that is
above the limit, in MB (10^6 bytes), or a row is missing.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from asysi.pipeline import BaseOperator, StreamFactory, UnifiedPipeline


class Drop(BaseOperator):
    """Drops every tenth row."""

    def process_item(self, item: dict[str, Any], ctx: Any = None) -> dict[str, Any] | None:
        """Return the row, or None."""
        return item if item["n"] % 10 else None


class Fan(BaseOperator):
    """Makes three rows of every tenth."""

    def process_item(self, item: dict[str, Any], ctx: Any = None) -> Any:
        """Return a row, or a list of rows."""
        return item if item["n"] % 10 > 1 else [{"n": item["n"], "part": part} for part in range(3)]


def write(file: Path, rows: int) -> None:
    """Write the input: about 60 bytes per row."""
    with file.open("wb", buffering=1 << 20) as out:
        for n in range(rows):
            out.write(b'{"n":%d,"text":"%s"}\n' % (n, b"some words of a row " * (n % 3 + 1)))


def made_of(rows: int) -> int:
    """Return the number of rows that the pipeline makes from `rows` rows."""
    return sum(3 if n % 10 == 1 else 1 for n in range(rows) if n % 10)


def run(folder: Path) -> None:
    """Run the pipeline in this process and print time and memory."""
    began = time.monotonic()
    pipeline = UnifiedPipeline(
        [Drop(), Fan()],
        input_uri=f"jsonl://{folder}/in.jsonl",
        output_uri=f"jsonl://{folder}/out.jsonl",
        streaming=True,
        batch_size=100,
        base_path=folder / "tmp",
        log_dir=folder / "logs",
    )
    report = pipeline.create("memory").run()
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found = {
        "seconds": round(time.monotonic() - began, 1),
        "peak_mb": round(sum(peaks) * 1024 / 1e6, 1),
        "settled": report.settled,
    }
    print(json.dumps(found))


def main() -> int:
    """Write the input, run, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--limit", type=float, default=300.0, help="MB")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder by default")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        run(options.inside)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="pipeline-memory-", dir=options.folder))
    try:
        write(folder / "in.jsonl", options.rows)
        size = (folder / "in.jsonl").stat().st_size
        command = [sys.executable, __file__, "--inside", str(folder)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        seal = StreamFactory.create(f"jsonl://{folder}/out.jsonl").verify()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    made = seal.rows if seal else 0
    whole = made == made_of(options.rows) and found["settled"] == options.rows
    print(
        f"{options.rows:,} rows ({size / 1e6:,.0f} MB) through two streaming nodes to {made:,}"
        f" in {found['seconds']} s: peak {found['peak_mb']} MB resident, limit {options.limit:g}"
        f"{'' if whole else ' - ROWS ARE MISSING'}"
    )
    return 0 if whole and found["peak_mb"] <= options.limit else 1


if __name__ == "__main__":
    sys.exit(main())
