"""Compares statistics and spectra of a checkpoint: asysi, weightlens, numpy and WeightWatcher, in one run.

    python benchmarks/weights/compare.py --peers-python .venv-weights/bin/python [--before CHECKOUT]
        [--folder FOLDER]

Each run is a separate process; rounds alternate between the contenders. Warm: the files are in the page
cache. Cold: they are dropped from it by posix_fadvise. The ceiling is measured in every round: two threads
that only read memory, only copy it, or only read the files. Figures are compared with each other before times
are recorded. CHECKOUT is another version of this repository with its own .venv, which then alternates with
this one. Writes docs/benchmarks/weights.json and .md; exits with 1 if a figure disagrees.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OUT = ROOT / "docs" / "benchmarks"
BEFORE = "_before"
"""Suffix of the names of cases run by the other version."""
BESIDE = {"ours": "full table", "ours_mmap": "full table, `--backend mmap`", "ours_spectra": "with spectra"}
"""Cases that the other version also runs."""
SLOWER = 1.03
"""Maximum factor by which this version may be slower than the previous one, in processor time."""
PROJECT = ("ours", "ours_mmap", "ours_basic", "ours_spectra", "numpy", "ceiling")
WORDS = {
    "ours": "**asysi**",
    "ours_mmap": "asysi, `--backend mmap`",
    "ours_basic": "asysi, `--stats basic`",
    "weightlens": "weightlens",
    "numpy": "numpy, whole tensors",
}
PAGE = HERE / "page.md"
LARGEST = 32_000 * 2048 * 2
"""Bytes of the largest tensor."""
SHORT = ("ceiling", "ours", "ours_mmap", "ours_basic")
ORDER = (*SHORT, "weightlens", *SHORT, "numpy")
"""Order within a round: the cases that take a second run before each case that takes half a minute."""
COUNTING, HASHING = 7.0, 40.0
"""GB/s of a single core, as stated on the page."""
TOLERANCE = 1e-9
"""Tolerance of a mean or a deviation, relative to the largest element."""
BASIC_TOLERANCE = 1e-6
"""The same for `--stats basic`, which sums in float32 first."""
SPECTRAL_TOLERANCE = 1e-4
"""Relative tolerance of figures derived from singular values: WeightWatcher writes some in float32."""


def main() -> int:
    options = parse()
    began = time.monotonic()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        subprocess.run([sys.executable, HERE / "checkpoint.py", folder], check=True)
        bench = Bench(folder, options.peers_python, options.before)
        results: dict[str, Any] = {"warm": {}, "cold": {}, "spectra": {}}
        for kind, rounds in (("warm", options.rounds), ("cold", options.cold)):
            for turn in range(rounds):
                for name in (one for who in ORDER for one in bench.versions(who, turn)):
                    results[kind].setdefault(name, []).append(bench.run(name, folder, cold=kind == "cold"))
        for turn in range(options.spectra):
            for name in (*bench.versions("ours_spectra", turn), "weightwatcher"):
                results["spectra"].setdefault(name, []).append(bench.run(name, folder / "spectra"))
        results["bytes"] = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    results["agreement"] = agreement({name: results["warm"][name][0]["found"] for name in WORDS})
    results["spectra_agreement"] = spectral_agreement(results["spectra"])
    results["machine"] = machine(options.peers_python, options.before)
    results["took"] = time.monotonic() - began
    write(results, options.out)
    return int(bool(results["agreement"]["wrong"] or results["spectra_agreement"]["wrong"]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers-python", type=Path, required=True, help="a Python that has the peers")
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoints are, or are made; unset: temporary"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cold", type=int, default=1)
    parser.add_argument("--spectra", type=int, default=3)
    parser.add_argument("--before", type=Path, help="checkout of another version, with its .venv")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.before and not python_of(options.before).exists():
        parser.error(f"{python_of(options.before)} is not there: install that version into its own .venv")
    return options


def python_of(checkout: Path) -> Path:
    return checkout.absolute() / ".venv" / "bin" / "python"


class Bench:
    """Runs contenders, one at a time."""

    def __init__(self, folder: Path, peers: Path, before: Path | None) -> None:
        self.files, self.peers, self.before = sorted(folder.glob("*.safetensors")), peers, before
        self.page(advice=os.POSIX_FADV_WILLNEED)

    def versions(self, name: str, turn: int) -> list[str]:
        """Return a contender, and its previous version if there is one, in alternating order."""
        both = [name, name + BEFORE] if self.before and name in BESIDE else [name]
        return both[::-1] if turn % 2 else both

    def page(self, advice: int) -> None:
        """Load the files into the page cache, or drop them from it."""
        for file in self.files:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, advice)
            finally:
                os.close(descriptor)

    def run(self, name: str, folder: Path, *, cold: bool = False) -> dict[str, Any]:
        if cold:
            self.page(os.POSIX_FADV_DONTNEED)
        who = name.removesuffix(BEFORE)
        python = Path(sys.executable) if who in PROJECT else self.peers
        if who != name and self.before:
            python = python_of(self.before)
        done = subprocess.run(
            [python, HERE / "contender.py", who, folder],
            check=True,
            capture_output=True,
            text=True,
            timeout=600,
        )
        result: dict[str, Any] = json.loads(done.stdout)
        said = result["found"] if name == "ceiling" else f"{result['seconds']:.2f} s"
        print(f"{'cold' if cold else 'warm'} {name}: {said}", file=sys.stderr)
        return result


# -- agreement of the figures


def agreement(found: dict[str, Any]) -> dict[str, Any]:
    """Compare every contender's statistics with asysi's, tensor by tensor."""
    wrong, compared, missing = [], 0, {}
    largest = dict.fromkeys(found, 0.0)
    for name, tensors in found.items():
        missing[name] = sorted(set(found["ours"]) - set(tensors))
        for tensor, theirs in tensors.items():
            ours = found["ours"][tensor]
            scale = max(abs(ours["min"]), abs(ours["max"]), 1e-30)
            for key in ("mean", "std", "min", "max"):
                error = abs(ours[key] - theirs[key]) / scale
                largest[name], compared = max(largest[name], error), compared + 1
                if error > (BASIC_TOLERANCE if name == "ours_basic" else TOLERANCE):
                    wrong.append(f"{name}: {tensor}: {key} {theirs[key]!r}, ours {ours[key]!r}")
            for key in ("zeros", "elements", "near_zeros", "nans", "median"):
                if key in theirs:
                    compared += 1
                    if ours[key] != theirs[key]:
                        wrong.append(f"{name}: {tensor}: {key} {theirs[key]!r}, ours {ours[key]!r}")
    basic = largest.pop("ours_basic", 0.0)
    return {
        "wrong": wrong,
        "largest": max(largest.values()),
        "largest_basic": basic,
        "compared": compared,
        "missing": missing,
    }


def spectral_agreement(runs: dict[str, Any]) -> dict[str, Any]:
    """Compare singular values and power laws with WeightWatcher's, for layers that it does not skip."""
    ours, theirs = (runs[name][0]["found"] for name in ("ours_spectra", "weightwatcher"))
    errors: dict[str, float] = {}
    wrong = []
    for tensor, row in theirs.items():
        for key, value in row.items():
            error = abs(ours[tensor][key] - value) / max(abs(value), 1e-30)
            errors[key] = max(errors.get(key, 0.0), error)
            if error > SPECTRAL_TOLERANCE:
                wrong.append(f"{tensor}: {key} {value!r}, ours {ours[tensor][key]!r}")
    matrices = [name for name, row in ours.items() if row["method"] not in {"none", "vector"}]
    return {"errors": errors, "wrong": wrong, "layers": len(theirs), "skipped": len(matrices) - len(theirs)}


# -- the page


def write(results: dict[str, Any], out: Path) -> None:
    for kind in ("warm", "cold", "spectra"):
        for name, runs in results[kind].items():
            for run in runs:
                if name != "ceiling":
                    del run["found"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "weights.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "weights.md").write_text(page(results))


def page(results: dict[str, Any]) -> str:
    agreed, spectra, warm = results["agreement"], results["spectra_agreement"], results["warm"]
    limits = {
        key: max(run["found"]["GB/s"][key] for run in warm["ceiling"]) for key in ("read", "copy", "files")
    }
    seconds = {
        name: [run["seconds"] for run in results["spectra"][name]]
        for name in ("ours_spectra", "weightwatcher")
    }
    omissions = [
        f"{WORDS[name]} leaves out {', '.join(names)}, which holds a NaN"
        for name, names in agreed["missing"].items()
        if names
    ]
    return PAGE.read_text().format(
        **limits,
        expected=2 / (2 / limits["files"] + 1 / COUNTING + 1 / HASHING),
        gigabytes=results["bytes"] / 1e9,
        rows="\n".join(row(name, results, limits) for name in WORDS),
        cold=statistics.median(run["found"]["GB/s"]["files"] for run in results["cold"]["ceiling"]),
        compared=agreed["compared"],
        disagree=len(agreed["wrong"]) or "none",
        largest=agreed["largest"],
        largest_basic=agreed["largest_basic"],
        missing="; ".join(omissions) or "Nobody leaves a tensor out",
        layers=spectra["layers"],
        skipped=spectra["skipped"],
        our_seconds=spread(seconds["ours_spectra"]),
        their_seconds=spread(seconds["weightwatcher"]),
        ratio=statistics.median(seconds["weightwatcher"]) / statistics.median(seconds["ours_spectra"]),
        errors=", ".join(f"`{key}` {error:.0e}" for key, error in spectra["errors"].items()),
        **per_core(results),
        before=before_and_after(results),
        machine=", ".join(f"{key} {value}" for key, value in results["machine"].items()),
        took=results["took"],
    )


def row(name: str, results: dict[str, Any], limits: dict[str, float]) -> str:
    warm, cold = (
        [results["bytes"] / run["seconds"] / 1e9 for run in results[kind][name]] for kind in ("warm", "cold")
    )
    runs, middle = results["warm"][name], statistics.median(warm)
    cells = [
        WORDS[name],
        spread(warm),
        f"{middle / limits['read']:.2f}",
        f"{middle / limits['files']:.2f}",
        spread(cold),
        f"{max(run['peak'] for run in runs) / 1e6:.0f}",
        f"{max(run['peak'] - run['before'] for run in runs) / LARGEST:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def per_core(results: dict[str, Any]) -> dict[str, float]:
    """Return GB per CPU second for reading the files and for the basic statistics, and their ratio."""
    warm = results["warm"]
    files = statistics.median(run["found"]["GB/s of a core"]["files"] for run in warm["ceiling"])
    basic = statistics.median(results["bytes"] / run["processor"] / 1e9 for run in warm["ours_basic"])
    return {"files_core": files, "basic_core": basic, "basic_share": basic / files}


def before_and_after(results: dict[str, Any]) -> str:
    """Return each case compared with the previous version, if that was run."""
    lines = []
    for name, what in BESIDE.items():
        runs = results["spectra" if name == "ours_spectra" else "warm"]
        if name + BEFORE not in runs:
            continue
        pairs = list(zip(runs[name], runs[name + BEFORE], strict=True))
        seconds, spent = (
            statistics.median(now[key] / old[key] for now, old in pairs) for key in ("seconds", "processor")
        )
        verdict = "not slower" if spent <= SLOWER else f"slower by {spent - 1:.0%}"
        lines.append(f"| {what} | {seconds:.2f} | {spent:.2f} | {verdict} |")
    if not lines:
        return ""
    head = [
        "## Before and after",
        "",
        "The version before, in turn in the same rounds, with this version's benchmark. The verdict is by"
        " processor time.",
        "",
        "| warm | seconds, now / before | processor, now / before | |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *lines, "", ""])


def spread(values: list[float]) -> str:
    middle = f"{statistics.median(values):.2f}"
    return f"{middle} ({min(values):.2f} – {max(values):.2f})" if len(values) > 1 else middle


def commit_of(checkout: Path) -> str:
    """Return the git description of a checkout."""
    asked = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def machine(peers: Path, before: Path | None) -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    names = ("weightlens", "weightwatcher", "numpy", "torch")
    ask = "import importlib.metadata as m, sys; print(*(m.version(name) for name in sys.argv[1:]))"
    said = subprocess.run(
        [peers, "-c", ask, *names], check=True, capture_output=True, text=True
    ).stdout.split()
    return {
        "processor": model.strip(),
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "15-minute load": round(os.getloadavg()[2], 2),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "asysi": commit_of(ROOT),
        **({"asysi before": commit_of(before)} if before else {}),
        **{
            f"peers' {name}" if name in {"numpy", "torch"} else name: one
            for name, one in zip(names, said, strict=True)
        },
    }


if __name__ == "__main__":
    sys.exit(main())
