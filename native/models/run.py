"""Check the models of the ring, and that each of their mutants fails: `python native/models/run.py [--full]`.

spin explores every interleaving and every kill within the bounds of a case; relacy explores memory orders, at
random and then every schedule with few preemptions. The orders are read out of the headers: the models cannot
hold to others.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import accesses
from cases import CASES, Case, Mutant

HOME = Path(__file__).parent
SECONDS = {"quick": 300, "full": 1800}
MEMORY_MIB = {"quick": 3000, "full": 7000}

# Name in the relacy models: function, atomic, operation; a failed compare-exchange is place 1.
ORDERS: dict[str, tuple[str, str, str, int, int | None]] = {
    "CLAIM_LOOK": ("take", "state", "load", 0, None),
    "CLAIM": ("take", "state", "compare_exchange_strong", 0, None),
    "CLAIM_FAILED": ("take", "state", "compare_exchange_strong", 1, None),
    "PUBLISH": ("finish", "state", "store", 0, None),
    "SLOT_STORE": ("append", "slot", "store", 0, None),
    "HEAD_STORE": ("append", "head", "store", 0, None),
    "WAITERS_LOAD": ("append", "waiters", "load", 0, None),
    "WAITERS_CLEAR": ("ring_bell", "waiters", "exchange", 0, None),
    "BELL": ("ring_bell", "doorbell", "fetch_add", 0, None),
    "EVICT_EPOCH": ("evict", "epoch", "compare_exchange_strong", 0, None),
    "EVICT": ("evict", "state", "fetch_and", 0, None),
    "CLOSE_STORE": ("close", "writer_state", "store", 0, None),
    "HEAD_LOAD": ("gather", "head", "load", 0, None),
    "SLOT_LOAD": ("try_pin", "slot", "load", 0, None),
    "PIN_LOOK": ("try_pin", "state", "load", 0, None),
    "PIN": ("try_pin", "state", "compare_exchange_weak", 0, None),
    "PIN_FAILED": ("try_pin", "state", "compare_exchange_weak", 1, None),
    "EPOCH_LOAD": ("epoch", "epoch", "load", 0, None),
    "UNPIN_LOOK": ("unpin", "state", "load", 0, None),
    "UNPIN": ("unpin", "state", "compare_exchange_weak", 0, None),
    "UNPIN_FAILED": ("unpin", "state", "compare_exchange_weak", 1, None),
    "HELD_MORE": ("gather", "held_in_all_", "fetch_add", 0, None),
    "HELD_LESS": ("release", "held_in_all_", "fetch_sub", 0, None),
    "HELD_LOAD": ("close", "held_in_all_", "load", 0, None),
    "HOLDS": ("holds", "state", "fetch_or", 0, None),
    "SWEEP_LOOK": ("take_over", "^state", "load", 0, None),
    "SWEEP": ("take_over", "^state", "fetch_and", 0, None),
    "WAITERS_SET": ("wait", "waiters", "fetch_or", 0, None),
    "BELL_LOAD": ("wait", "doorbell", "load", 0, None),
    "READY_LOAD": ("ready", "head", "load", 0, None),
    "WAITERS_LEAVE": ("wait", "waiters", "fetch_and", 0, None),
    "CLOSED_LOAD": ("producer_closed", "writer_state", "load", 0, None),
    "ENDED_HEAD": ("ended", "head", "load", 0, None),
    "VERSION_LOOK": ("store", "^version", "load", 0, None),
    "WORD_STORE": ("store", "^copies", "store", 0, None),
    "VERSION_STORE": ("store", "^version", "store", 0, None),
    "VERSION_LOAD": ("load", "^version", "load", 0, 0),
    "WORD_LOAD": ("load", "^copies", "load", 0, None),
    "VERSION_AGAIN": ("load", "^version", "load", 0, 1),
    "GATE_ENTER": ("enter", "state_", "compare_exchange_strong", 0, None),
    "GATE_QUEUE": ("queue", "state_", "compare_exchange_weak", 0, None),
    "GATE_FAILED": ("queue", "state_", "compare_exchange_weak", 1, None),
    "GATE_LEAVE": ("Turn", "state_", "store", 0, None),
    "SEAT_CLOSE": ("close", "closed_", "exchange", 0, None),
    "SEAT_CLOSED": ("closed", "closed_", "load", 0, None),
    "SEAT_LOAD": ("expect_open", "closed_", "load", 0, None),
}


class ToolError(Exception):
    """Something that the models need is not installed."""


@dataclass(frozen=True)
class Result:
    """What came of one run.

    Args:
        size: states, or schedules.
        complaint: what was found; empty when nothing was.
    """

    case: Case
    mutant: Mutant | None
    size: int
    complaint: str
    seconds: float

    @property
    def as_expected(self) -> bool:
        """Whether the model holds, or the mutant fails as it must."""
        return self.mutant.fails in self.complaint if self.mutant else not self.complaint


def run(setting: str, workers: int, only: str = "") -> list[Result]:
    """Run every case whose model or concern contains `only`, and its mutants; the order is that of CASES.

    Raises:
        ToolError: spin, a compiler or relacy is not installed.
        ChangedError: the headers no longer have an access that a model is built on.
    """
    expect_tools()
    jobs = [(c, m) for c in CASES if only in f"{c.model} {c.concern}" for m in (None, *c.mutants)]
    with tempfile.TemporaryDirectory(prefix="asysi-models-") as folder, ThreadPoolExecutor(workers) as pool:
        room = Path(folder)
        write_orders(room / "orders.hpp")
        models = sorted({case.model for case, _ in jobs if case.model.endswith(".cpp")})
        list(pool.map(lambda model: compile_relacy(model, room), models))
        return list(
            pool.map(lambda job: check(job[0], job[1], setting, Path(tempfile.mkdtemp(dir=room)), room), jobs)
        )


def check(case: Case, mutant: Mutant | None, setting: str, own: Path, shared: Path) -> Result:
    """Run one model, or one of its mutants, in the folder `own`."""
    bounds = (case.full or case.quick) if setting == "full" and mutant is None else case.quick
    started = time.monotonic()
    if case.model.endswith(".pml"):
        size, complaint = spin(case.model, bounds, mutant.change if mutant else "", setting, own)
    else:
        size, complaint = relacy(shared / case.model[:-4], bounds, mutant.change if mutant else "", setting)
    return Result(case, mutant, size, complaint, time.monotonic() - started)


def spin(model: str, bounds: str, change: str, setting: str, own: Path) -> tuple[int, str]:
    """Return the states that were stored and what spin complains of."""
    # A later macro replaces an earlier one of the same name.
    macros = {item.partition("=")[0]: item for item in f"{bounds} {change}".split()}
    succeed(["spin", "-a", *macros.values(), str(HOME / model)], own)
    optimise = "-O1" if change else "-O2"  # a mutant fails soon
    succeed(
        [
            "gcc",
            optimise,
            "-w",
            "-DSAFETY",
            "-DCOLLAPSE",
            f"-DMEMLIM={MEMORY_MIB[setting]}",
            "-o",
            "pan",
            "pan.c",
        ],
        own,
    )
    output = limited([str(own / "pan"), "-m1000000", "-w22"], SECONDS[setting], own)
    states = re.search(r"(\d+) states, stored", output)
    if states is None:
        return 0, output.strip().splitlines()[-1] if output.strip() else "no answer"
    complaints = re.findall(r"^pan:1: (.*)$", output, re.MULTILINE)
    # A search that was cut short proves nothing.
    complaints += re.findall(r"error: max search depth too small|pan: reached .*|out of memory", output)
    if "errors: 0" not in output and not complaints:
        complaints.append("errors of unknown kind")
    return int(states[1]), "; ".join(complaints)


def relacy(program: Path, searches: str, change: str, setting: str) -> tuple[int, str]:
    """Return the schedules that were tried and what relacy complains of, in the first search that does."""
    schedules = 0
    for search in searches.split():
        kind, _, limit = search.partition(":")
        output = limited([str(program), kind, limit, *change.split()], SECONDS[setting], program.parent)
        result = re.search(r"^RESULT (.*) after (\d+)$", output, re.MULTILINE)
        if result is None:
            return schedules, output.strip().splitlines()[-1] if output.strip() else "no answer"
        schedules += int(result[2])
        if result[1] != "pass":
            return schedules, result[1]
    return schedules, ""


def compile_relacy(model: str, room: Path) -> None:
    """Build the program of a model into `room`."""
    options = ["-std=c++20", "-O1", "-w", "-I", str(room), "-I", str(HOME)]
    succeed(["g++", *options, str(HOME / model), "-o", str(room / model[:-4]), "-pthread"], room)


def write_orders(path: Path) -> None:
    """Write the orders of the headers as a table that relacy models include."""
    found = accesses.accesses()
    table = {
        name: accesses.order(found, function, target, operation, place=place, nth=nth)
        for name, (function, target, operation, place, nth) in ORDERS.items()
    }
    values = ", ".join(f"rl::mo_{order}" for order in table.values())
    names = ", ".join(f'"{name}"' for name in table)
    macros = "\n".join(f"#define ORDER_{name} (model::orders[{i}])" for i, name in enumerate(table))
    path.write_text(
        "#pragma once\n"
        "namespace model {\n"
        f"inline rl::memory_order orders[] = {{{values}}};\n"
        f"inline const char* const order_names[] = {{{names}}};\n"
        "inline std::size_t index_of(const std::string& name) {\n"
        f"    for (std::size_t i = 0; i < {len(table)}; ++i) if (name == order_names[i]) return i;\n"
        '    throw std::invalid_argument("no order is called " + name);\n'
        "}\n"
        f"}}  // namespace model\n{macros}\n"
    )


def expect_tools() -> None:
    """Raise ToolError, naming the Debian package, for what is missing."""
    missing = [package for package in ("spin", "gcc", "g++") if shutil.which(package) is None]
    if not missing and not compiles("#include <relacy/relacy.hpp>"):
        missing.append("relacy-dev")
    if missing:
        raise ToolError(
            f"the ring's models need Debian's {', '.join(missing)}: apt-get install {' '.join(missing)}"
        )


def compiles(text: str) -> bool:
    """Whether g++ takes `text`."""
    command = ["g++", "-w", "-fsyntax-only", "-x", "c++", "-std=c++20", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False).returncode == 0  # noqa: S603


def succeed(command: Sequence[str], folder: Path) -> None:
    """Run a tool that must not fail."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def limited(command: Sequence[str], seconds: float, folder: Path) -> str:
    """Return the output of a run that may fail; one that takes too long says so in its last line."""
    try:
        done = subprocess.run(  # noqa: S603
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not finished after {seconds:.0f} s"
    return done.stdout


def table(results: Sequence[Result]) -> str:
    """Return one line a case: what it explored, and how many mutants failed as they must."""
    lines = [f"{'model':<14}{'concern':<46}{'explored':>12}  {'result':<8}{'mutants':<9}{'seconds':>8}"]
    for case in CASES:
        mine = [r for r in results if r.case is case]
        if not mine:
            continue
        whole, *mutants = mine
        killed = sum(r.as_expected for r in mutants)
        verdict = "FAILS" if whole.complaint else "holds"
        share = f"{killed}/{len(mutants)}"
        seconds = sum(r.seconds for r in mine)
        lines.append(
            f"{case.model:<14}{case.concern:<46}{whole.size:>12,}  {verdict:<8}{share:<9}{seconds:>8.1f}"
        )
    for r in results:
        if not r.as_expected:
            what = (
                f"mutant {r.mutant.change} should fail with '{r.mutant.fails}'" if r.mutant else "should hold"
            )
            lines.append(f"  {r.case.model}, {r.case.concern}: {what}; found: {r.complaint or 'nothing'}")
    return "\n".join(lines)


def main() -> int:
    """Run the models and print the table; 1 when one is not as it must be, 2 when they cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="the wide bounds: an hour or more, up to 7 GiB a worker"
    )
    parser.add_argument("--only", default="", help="cases whose file or concern contains this")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--accept", action="store_true", help="write accesses.txt anew, after reading what changed"
    )
    arguments = parser.parse_args()
    if arguments.accept:
        accesses.RECORD.write_text(accesses.record())
        return 0
    try:
        results = run("full" if arguments.full else "quick", arguments.workers, arguments.only)
    except (ToolError, accesses.ChangedError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(results))
    return 0 if all(r.as_expected for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
