"""Rows per second against a plain loop, datatrove and Ray Data; calls per second against the ideal.

    python benchmarks/pipeline/compare.py [--peers .venv-pipeline/bin/python] [--before CHECKOUT] [--rows N]

Everything is measured in one run with alternating contestants, so that ratios are robust against noise.
CHECKOUT is another version of this repository with its own .venv; it then also runs, which shows cases that
became slower. Writes docs/benchmarks/pipeline.md, .svg and .json.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import page
import rows
import tree

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
STUB = ROOT / "examples" / "pipeline" / "stub.py"
PEERS = ("datatrove", "ray")
BEFORE = ", before"
"""Suffix of the names of cases run by the other version."""
LATENCY = 0.05
IN_FLIGHT = {20: 1000, 50: 2000, 100: 3000}
"""Number of calls by concurrency."""
TIMEOUT = 240


def contestants(workers: int, before: Path | None, turn: int) -> list[tuple[str, list[str]]]:
    """Return the contestants for a number of workers, and the flags of each."""
    found: list[tuple[str, list[str]]] = [("plain", ["--no-fsync"])]
    for who in ("ours", *(["ours, shards"] if workers > 1 else [])):
        both = [(who, []), *([(who + BEFORE, [])] if before else [])]
        found += reversed(both) if turn % 2 else both
    return [*found, ("ours, no fsync", ["--no-fsync"]), *((peer, []) for peer in PEERS)]


def one(who: str, flags: list[str], workers: int, paths: list[Path], given: argparse.Namespace) -> tree.Cost:
    """Run a contestant once."""
    folder = given.folder
    name = "shards" if "shards" in who else who.partition(",")[0]
    python = str(given.peers if who in PEERS else python_of(who, given))
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = [python, str(HERE / "task.py"), name, "--workers", str(workers), *flags, str(out)]
    return tree.measure([*command, *map(str, paths)], TIMEOUT)


def python_of(who: str, given: argparse.Namespace) -> Path:
    """Return the Python that runs an asysi contestant: of this version, or of the previous one."""
    return given.before / ".venv" / "bin" / "python" if who.endswith(BEFORE) else Path(sys.executable)


def outputs(out: Path) -> list[Path]:
    """Return the output files of any contestant."""
    found = [path for path in out.rglob("*.json*") if path.suffix in {".json", ".jsonl"}]
    return [path for path in found if not {"logs", "tmp"} & set(path.relative_to(out).parts)]


def compare(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a record for every run over rows."""
    expected: dict[tuple[int, int], tuple[int, str]] = {}
    for turn in range(given.rounds):
        for files in (1, 8):
            for workers in (1, 2):
                for who, flags in contestants(workers, given.before, turn):
                    if who in PEERS and (given.peers is None or turn >= given.peer_rounds):
                        continue
                    count = given.peer_rows if who in PEERS else given.rows
                    paths = rows.write(given.folder, count, files)
                    cost = one(who, flags, workers, paths, given)
                    if turn == 0:
                        found = rows.digest(outputs(given.folder / "out"))
                        if (count, files) not in expected:
                            expected[count, files] = correct(paths)
                        if found != expected[count, files]:
                            raise SystemExit(f"{who}, {files} files: {found}, not {expected[count, files]}")
                    record = {"who": who, "files": files, "workers": workers, "rows": count, "turn": turn}
                    record |= {**cost.said, "processor": cost.processor, "memory": cost.memory}
                    print(json.dumps(record), flush=True)
                    yield record


def correct(paths: list[Path]) -> tuple[int, str]:
    """Return the expected number of rows and their digest, from an independent loop."""
    import orjson
    import xxhash
    from task import kept

    count = total = 0
    for path in paths:
        for line in path.read_bytes().splitlines():
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if kept(row["text"]):
                total += xxhash.xxh3_64_intdigest(f"{row['id']}\n{row['text'].upper()}".encode())
                count += 1
    return count, f"{total % (1 << 64):016x}"


def calls(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a record for every run of calls."""
    for turn in range(given.call_rounds):
        for at_once, count in IN_FLIGHT.items():
            for who in ("bare", "ours", *(["ours" + BEFORE] if given.before else [])):
                folder = given.folder / "calls"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                stub = subprocess.Popen(
                    [sys.executable, str(STUB), "--latency", str(LATENCY)], stdout=subprocess.PIPE, text=True
                )
                try:
                    assert stub.stdout is not None
                    url = f"http://127.0.0.1:{int(stub.stdout.readline())}/v1"
                    python, name = str(python_of(who, given)), who.partition(",")[0]
                    command = [python, str(HERE / "calls.py"), name, str(at_once), str(count), url]
                    said = tree.measure([*command, str(folder)], TIMEOUT, alone=False).said
                finally:
                    stub.kill()
                    stub.wait()
                record = {"who": who, "at_once": at_once, "calls": count, "turn": turn, **said}
                print(json.dumps(record), flush=True)
                yield record


def commit_of(checkout: Path) -> str:
    """Return the git description of a checkout."""
    asked = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(asked, cwd=checkout, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def facts(peers: Path | None, before: Path | None) -> dict[str, str]:
    """Return machine and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    found = {
        "processor": f"{os.cpu_count()} × {model.strip()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "asysi": commit_of(ROOT),
        **({"asysi before": commit_of(before)} if before else {}),
        **{name: version(name) for name in ("orjson", "httpx")},
    }
    if peers is not None:
        ask = "from importlib.metadata import version as v; print(v('datatrove'), v('ray'))"
        said = subprocess.run(
            [str(peers), "-c", ask], capture_output=True, text=True, check=True
        ).stdout.split()
        found |= dict(zip(("datatrove", "ray"), said, strict=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", type=Path, help="Python that has datatrove and ray")
    parser.add_argument("--before", type=Path, help="checkout of another version, with its .venv")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--peer-rows", type=int, default=250_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rounds", type=int, default=1)
    parser.add_argument("--call-rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "benchmarks" / "pipeline")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--only", choices=("rows", "calls"), help="measure one again, and keep the other")
    given = parser.parse_args()
    given.peers = given.peers.absolute() if given.peers else None
    given.before = given.before.absolute() if given.before else None
    if given.before and not python_of(BEFORE, given).exists():
        parser.error(f"{python_of(BEFORE, given)} is not there: install that version into its own .venv")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # otherwise imports are compiled in every run
    record = given.out / "pipeline.json"
    began = time.monotonic()
    for count in {given.rows, given.peer_rows} if given.only != "calls" else ():
        for files in (1, 8):
            rows.write(given.folder, count, files)
    result = json.loads(record.read_text()) if given.only else {}
    result |= {"calls": list(calls(given))} if given.only != "rows" else {}
    result |= (
        {"rows": list(compare(given)), "facts": facts(given.peers, given.before)}
        if given.only != "calls"
        else {}
    )
    minutes = round((time.monotonic() - began) / 60, 1)
    result |= {"minutes": result.get("minutes", 0.0) if given.only else minutes, "load": os.getloadavg()[1]}
    given.out.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(result, indent=1) + "\n")
    (given.out / "pipeline.md").write_text(page.text(result))
    (given.out / "pipeline.svg").write_text(page.picture(result))
    shutil.rmtree(given.folder / "out", ignore_errors=True)
    best = median(r["rows"] / r["seconds"] for r in result["rows"] if r["who"] == "ours")
    print(f"{result['minutes']} minutes; ours {best:,.0f} rows/s; {given.out / 'pipeline.md'}")


if __name__ == "__main__":
    main()
