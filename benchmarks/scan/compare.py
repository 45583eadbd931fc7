"""Collecting activations and gradients: ours against plain hooks, TransformerLens and nnsight, on one model.

    python benchmarks/scan/compare.py --peers-python .venv-scan/bin/python        or: make bench-scan

Every contender runs in a process of its own, in the Python that has the peers, on the same GPT-2 with the
same weights and tokens, and collects the output of every block as copies on the CPU. The processes take
turns, round by round, so that what else the machine does meets all of them. A second task adds a backward
pass and the gradients of all parameters, which TransformerLens and nnsight do not collect.

--dry-run tries everything on a small model and writes nothing.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "contender.py"
CONTENDERS = {
    "activations": ("unhooked", "hooks", "ours", "transformer_lens", "nnsight"),
    "gradients": ("unhooked", "hooks", "ours"),
}
NAMES = {
    "unhooked": "the model alone",
    "hooks": "plain hooks",
    "ours": "`asysi.ScannerEngine`",
    "transformer_lens": "TransformerLens `run_with_cache`",
    "nnsight": "nnsight `trace`",
}
SIZES = {"layers": 12, "width": 768, "heads": 12, "vocabulary": 50257, "batch": 8, "length": 128}
SMALL = {"layers": 2, "width": 32, "heads": 4, "vocabulary": 200, "batch": 2, "length": 16}


class Contender:
    """A process that runs batches when told to."""

    def __init__(self, python: str, task: str, name: str, sizes: dict[str, int], *, threads: int) -> None:
        self.name = name
        self.seconds: list[float] = []
        self._file = tempfile.NamedTemporaryFile(suffix=".pt")  # noqa: SIM115 - closed with the process
        job = {"task": task, "contender": name, "out": self._file.name, "threads": threads, **sizes}
        path = os.pathsep.join([str(ROOT / "workers"), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {
            "PYTHONPATH": path,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._process = subprocess.Popen(
            [python, str(WORKER), json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.versions = self._answer()

    def run(self) -> None:
        """Run one batch, and note how long it took."""
        self.seconds.append(self._ask("run")["seconds"])

    def finish(self) -> dict[str, Any]:
        """Return peak memory and where the collected tensors are; the process ends."""
        found = self._ask("finish")
        self._process.wait(60)
        return found

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(what, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError(f"{self.name} ended with {self._process.wait()}")


def measure(python: str, task: str, sizes: dict[str, int], rounds: int, threads: int) -> list[dict[str, Any]]:
    """Return seconds a batch, peak memory and the difference from plain hooks of every contender."""
    contenders = [Contender(python, task, name, sizes, threads=threads) for name in CONTENDERS[task]]
    for number in range(rounds):
        for place in range(len(contenders)):  # another one begins in each round
            contenders[(number + place) % len(contenders)].run()
    results: list[dict[str, Any]] = []
    for contender in contenders:
        found = contender.finish()
        median = statistics.median(contender.seconds)
        spread = (
            statistics.quantiles(contender.seconds, n=4, method="inclusive") if rounds > 1 else [median] * 3
        )
        result = {"name": contender.name, "seconds": median, "quartiles": [spread[0], spread[2]]}
        results.append(result | found | contender.versions)
    _compare(python, results, [contender._file.name for contender in contenders])
    return results


def _compare(python: str, results: list[dict[str, Any]], files: list[str]) -> None:
    """Add the largest difference of each contender's tensors from those of plain hooks."""
    done = subprocess.run(
        [python, str(WORKER), json.dumps({"task": "compare", "files": files})],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    for result, difference in zip(results, json.loads(done.stdout.splitlines()[-1]), strict=True):
        result["difference"] = difference


def table(task: str, results: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a task's table."""
    alone = results[0]
    hooks = next(result for result in results if result["name"] == "hooks")
    lines = [
        "| | version | seconds a batch | quartiles | × plain hooks | peak memory | beyond the model alone | "
        "largest difference from plain hooks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        beyond = (result["peak_bytes"] - alone["peak_bytes"]) / 2**20
        difference = "" if result["difference"] is None else f"{result['difference']:.2g}"
        low, high = result["quartiles"]
        lines.append(
            f"| {NAMES[result['name']]} | {result['version']} "
            f"| {result['seconds']:.3f} | {low:.3f} – {high:.3f} "
            f"| {result['seconds'] / hooks['seconds']:.2f} | {result['peak_bytes'] / 2**20:,.0f} MiB "
            f"| {beyond:+,.0f} MiB | {difference} |"
        )
    return lines


def page(measured: dict[str, Any]) -> str:
    """Return the page of a measurement."""
    sizes = measured["sizes"]
    lines = [
        "# Collecting activations and gradients",
        "",
        f"GPT-2 with {sizes['layers']} layers of width {sizes['width']}, random weights, {sizes['batch']} × "
        f"{sizes['length']} tokens, float32, {measured['threads']} threads, {measured['rounds']} batches "
        f"each, in turn, on {measured['machine']}. Made by `make bench-scan`.",
        "",
        "## Activations: the output of every block, forward only",
        "",
        *table("activations", measured["activations"]),
        "",
        "## Gradients: the same, with a backward pass and the gradients of all parameters",
        "",
        *table("gradients", measured["gradients"]),
        "",
        "TransformerLens and nnsight give gradients of activations, not of parameters. TransformerLens",
        "runs the model through its own bridge, with attention of its own: hence a difference.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers-python", default=sys.executable, metavar="PYTHON", help="a Python with torch, transformers, "
        "TransformerLens and nnsight")  # fmt: skip
    add("--rounds", type=int, default=20, metavar="N", help="batches of each contender (default: 20)")
    add("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="threads of torch")
    add("--dry-run", action="store_true", help="a small model, two rounds, nothing written")
    arguments = parser.parse_args()
    sizes, rounds = (SMALL, 2) if arguments.dry_run else (SIZES, arguments.rounds)
    measured: dict[str, Any] = {
        "sizes": sizes, "rounds": rounds, "threads": arguments.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }  # fmt: skip
    for task in CONTENDERS:
        measured[task] = measure(arguments.peers_python, task, sizes, rounds, arguments.threads)
    print(page(measured))
    if not arguments.dry_run:
        (ROOT / "docs/benchmarks/scan.json").write_text(json.dumps(measured, indent=1) + "\n")
        (ROOT / "docs/benchmarks/scan.md").write_text(page(measured))


if __name__ == "__main__":
    main()
