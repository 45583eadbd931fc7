"""Compares the ring with its ceiling and with its peers in one run.

    python benchmarks/ring/compare.py [--quick] [--peers-python .venv-ring/bin/python] [--repeats 5]

There are two crews, one in Python and one in C++, each with a producer and two readers that live for the
whole run. The same processes run all contestants of a language, on the same 256 MiB of messages, one after
the other in each cell, `repeats` times, in rotating order. Needs a C++20 compiler, redis-server, and a Python
with the peers (`make peers-ring`). Writes docs/benchmarks/ring.md, ring.json and two plots; with --quick it
only prints.
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import machine
import plan
import plot
import table
from plan import Cell, Contestant, Plan
from results import Results, Row

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
OUT = ROOT / "docs" / "benchmarks"


def main() -> int:
    options = parse()
    began = time.monotonic()
    measured = plan.quick() if options.quick else plan.full(options.repeats)
    with tempfile.TemporaryDirectory(prefix="asysi-ring-bench-", dir="/dev/shm") as home:
        crews = {
            "C++": Crew([str(build(Path(home)))]),
            "Python": Crew([str(options.peers_python), str(HERE / "crew.py")], packages(Path(home))),
        }
        try:
            results = run(measured, crews, Path(home))
        finally:
            for crew in crews.values():
                crew.end()
    facts = machine.facts(options.peers_python) | {
        "command": "python benchmarks/ring/compare.py " + " ".join(sys.argv[1:]),
        "seconds": round(time.monotonic() - began),
    }
    words = table.Words((HERE / "introduction.md").read_text(), (HERE / "reasons.md").read_text())
    text = table.page(results, measured, facts, words)
    print(text)
    if not options.quick:
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "ring.md").write_text(text)
        (OUT / "ring.json").write_text(json.dumps(table.record(results, measured, facts), indent=1) + "\n")
        (OUT / "ring-throughput.svg").write_text(plot.throughput(results))
        (OUT / "ring-latency.svg").write_text(plot.latency(results))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two minutes, prints only")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--peers-python",
        type=Path,
        default=ROOT / ".venv-ring" / "bin" / "python",
        help="a Python of this one's version that has the peers",
    )
    options = parser.parse_args()
    if not options.peers_python.exists():
        parser.error(f"{options.peers_python} is not there: make peers-ring, or name one with --peers-python")
    if shutil.which("redis-server") is None:
        parser.error("redis-server is not installed: apt-get install redis-server")
    return options


def build(folder: Path) -> Path:
    program = folder / "crew"
    options = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-pthread"]
    compiler = os.environ.get("CXX", "c++")
    include = f"-I{ROOT / 'native' / 'include'}"
    subprocess.run([compiler, *options, include, HERE / "crew.cpp", "-o", program], check=True)
    return program


def packages(home: Path) -> list[Path]:
    """Return folders for PYTHONPATH: this environment's ring without its other packages, and the workers."""
    ring = home / "packages" / "asysi_ring"
    ring.mkdir(parents=True)
    native = importlib.import_module("asysi_ring._core").__file__
    for file in [*(ROOT / "native" / "asysi_ring").glob("*.py"), Path(str(native))]:
        (ring / file.name).symlink_to(file)
    return [ring.parent, ROOT / "workers"]


class Crew:
    """A program that takes one task per line and answers each with a line; restarted when it dies."""

    def __init__(self, command: list[str], packages: Sequence[Path] = ()) -> None:
        self._command = command
        self._paths = os.pathsep.join(map(str, packages))
        self._process: subprocess.Popen[str] | None = None

    def ask(self, line: str) -> dict:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": self._paths},
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline() or '{"error": "the crew died"}')
        except BrokenPipeError:
            answer = {"error": "the crew died"}
        if "error" in answer:
            self.end()  # other members may still be running
        return answer

    def end(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def run(measured: Plan, crews: dict[str, Crew], home: Path) -> Results:
    results: Results = defaultdict(lambda: defaultdict(Row))
    for repeat, cell, contestant in measured.steps():
        folder = Path(tempfile.mkdtemp(dir=home))
        task = cell.task(contestant, measured.seconds, measured.samples, str(folder))
        answer = crews[contestant.language].ask(task.line())
        results[cell][contestant].add(cell, answer, folder, task.seconds)
        shutil.rmtree(folder)
        tell(repeat, measured, cell, contestant, answer)
    return results


def tell(repeat: int, measured: Plan, cell: Cell, contestant: Contestant, answer: dict) -> None:
    what = f"{cell.kind} {cell.size >> 10} KiB, {cell.readers} reader(s), {cell.guarantee}, {cell.waiting}"
    print(
        f"{repeat + 1}/{measured.repeats} {what}: {contestant.label}"
        + (f": {answer['error']}" if "error" in answer else ""),
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
