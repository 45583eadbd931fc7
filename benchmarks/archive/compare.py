"""Writes and reads the same activations with `.mscan` and five other formats, compared with cp and memcpy.

    python benchmarks/archive/compare.py --peers-python .venv-archive/bin/python [--quick]

Each number is the median over the rounds; contenders alternate within a round, so that noise affects all.
Writes docs/benchmarks/archive.md, except with --quick.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from contenders import CONTENDERS  # noqa: E402
from task import POINTS  # noqa: E402

ACTIONS = ("write", "write, fsync", "sequential", "point", "rows")
PAGE = HERE.parents[1] / "docs" / "benchmarks" / "archive.md"


def make_source(file: Path, width: int, size: int) -> np.ndarray:
    """Write activations [points, rows, width] of bfloat16 drawn from a normal distribution."""
    rows = size // (2 * width * len(POINTS))
    source = np.lib.format.open_memmap(file, "w+", np.uint16, (len(POINTS), rows, width))
    generator = np.random.default_rng(0)
    for number in range(len(POINTS)):
        for first in range(0, rows, 4096):
            values = generator.standard_normal(source[number, first : first + 4096].shape, np.float32)
            source[number, first : first + 4096] = values.view(np.uint32) >> 16
    source.flush()
    return source


def measure(python: str, name: str, action: str, folder: Path, source: Path) -> dict[str, float]:
    """Run a task; its folder is empty before a write."""
    kind, _, fsync = action.partition(", ")
    if kind == "write":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        os.sync()
    command = [python, HERE / "task.py", name, kind, folder, source, fsync]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}, {action}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def copied(source: Path, folder: Path, *, fsync: bool) -> dict[str, float]:
    """Time `cp` of the source."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()
    began = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", source, folder / "copy"], check=True)
    if fsync:
        fd = os.open(folder / "copy", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    size = source.stat().st_size
    return {"seconds": time.perf_counter() - began, "bytes": size, "disk": size, "cpu": 0, "memory": 0}


def memcpy(source: np.ndarray) -> dict[str, float]:
    """Time a copy in memory, with all pages already resident."""
    flat = np.array(source[:1]).reshape(-1)
    target = np.zeros_like(flat)
    began = time.perf_counter()
    np.copyto(target, flat)
    return {"seconds": time.perf_counter() - began, "bytes": flat.nbytes, "cpu": 0, "memory": 0, "disk": 0}


def one_width(
    width: int, options: argparse.Namespace, work: Path
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Measure every contender with rows of one width."""
    source_file = work / "source.npy"
    source = make_source(source_file, width, options.bytes)
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for _ in range(options.rounds):
        sums: dict[str, set[int]] = {}
        for action in ACTIONS[:2]:
            fsync = action.endswith("fsync")
            results.setdefault("cp", {}).setdefault(action, []).append(
                copied(source_file, work / "cp", fsync=fsync)
            )
        shutil.rmtree(work / "cp")
        results.setdefault("memcpy", {}).setdefault("sequential", []).append(memcpy(source))
        for name in options.contenders:
            python = sys.executable if name.startswith("mscan") else options.peers_python
            folder = work / "out"
            for action in ACTIONS:
                found = measure(python, name, action, folder, source_file)
                results.setdefault(name, {}).setdefault(action, []).append(found)
                if action in {"sequential", "point"}:
                    sums.setdefault(action, set()).add(int(found["sum"]))
            shutil.rmtree(folder)
            print(f"{width}: {name}", file=sys.stderr)
        assert all(len(found) == 1 for found in sums.values()), f"contenders read different bytes: {sums}"
    return results


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Return a Markdown table: MB/s of each action, and CPU, size and memory of write and sequential read."""
    lines = [
        "| | write | write, fsync | sequential | one point | 4,096 random rows, ms | CPU s, write "
        "| CPU s, read | peak MiB, write | peak MiB, read | size, MiB |",
        "|---|" + "--:|" * 10,
    ]
    for name, actions in results.items():

        def median(
            action: str, value: str, actions: dict[str, list[dict[str, float]]] = actions
        ) -> float | None:
            return statistics.median(one[value] for one in actions[action]) if action in actions else None

        def rate(action: str, actions: dict[str, list[dict[str, float]]] = actions) -> str:
            if action not in actions:
                return ""
            return f"{statistics.median(one['bytes'] / one['seconds'] for one in actions[action]) / 1e6:,.0f}"

        def shown(value: float | None, form: str, scale: float = 1) -> str:
            return "" if not value else format(value / scale, form)

        cells = [rate(action) for action in ACTIONS[:4]]
        cells += [shown(median("rows", "seconds"), ",.0f", 1e-3)]
        cells += [shown(median(action, "cpu"), ".1f") for action in ("write, fsync", "sequential")]
        cells += [
            shown(median(action, "memory"), ",.0f", 1 << 20) for action in ("write, fsync", "sequential")
        ]
        cells += [shown(median("write, fsync", "disk"), ",.0f", 1 << 20)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers-python", default=sys.executable, help="Python that has the peers installed.")
    parser.add_argument("--quick", action="store_true", help="96 MiB, one round; prints the tables only.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds; the median counts.")
    parser.add_argument("--bytes", type=int, default=2 << 30, help="Bytes of activations.")
    parser.add_argument("--widths", default="384,4096", help="Elements in a row.")
    parser.add_argument("--only", default="", help="Contenders whose name begins so, separated by commas.")
    parser.add_argument(
        "--folder", type=Path, default=None, help="Where files go; the disk that is measured."
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.bytes = 1, 96 << 20
    wanted = tuple(options.only.split(",")) if options.only else ("",)
    options.contenders = [name for name in CONTENDERS if name.startswith(wanted)]
    sections = []
    for width in map(int, options.widths.split(",")):
        with tempfile.TemporaryDirectory(dir=options.folder) as work:
            sections.append((width, table(one_width(width, options, Path(work)))))
    size = options.bytes / (1 << 30)
    text = "# Archive\n\n" + (HERE / "introduction.md").read_text() + "\n"
    text += "".join(
        f"\n## {size:.1f} GiB of bfloat16, {width:,} wide\n\nMB/s.\n\n{one}\n" for width, one in sections
    )
    print(text)
    if not options.quick:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
