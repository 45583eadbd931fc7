"""The measurements and their statistics. Pure, except for reading samples."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from plan import Cell, Contestant

Quantiles = dict[str, float]


class Spread(NamedTuple):
    """Median, minimum and maximum over the repeats."""

    median: float
    low: float
    high: float


@dataclass
class Row:
    """One contestant in one cell, over the repeats."""

    gigabytes: list[float] = field(default_factory=list)
    """GB (1e9 bytes) per second received by the slowest reader."""
    lost: list[float] = field(default_factory=list)
    """Share of pushed messages missed by the reader that missed most."""
    wrong: int = 0
    checked: int = 0
    cpu: list[float] = field(default_factory=list)
    """CPU seconds of all processes per 1e9 bytes delivered."""
    behind: list[float] = field(default_factory=list)
    """How much longer than planned a paced producer took, as a share."""
    push: list[np.ndarray] = field(default_factory=list)
    """[samples] per repeat, µs; the same for the fields below."""
    arrived: list[np.ndarray] = field(default_factory=list)
    read: list[np.ndarray] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, cell: Cell, answer: dict, folder: Path, planned_s: float) -> None:
        if "error" in answer:
            self.errors.append(answer["error"])
            return
        readers = answer["readers"]
        messages = [reader["messages"] for reader in readers]
        self.wrong += sum(reader["wrong"] for reader in readers)
        self.checked += sum(messages) if cell.kind != "view" else 0
        self.lost.append(1 - min(messages) / answer["pushed"])
        self.gigabytes.append(throughput(answer, cell.size))
        cpu = answer["cpu_s"] + sum(reader["cpu_s"] for reader in readers)
        self.cpu.append(cpu / (sum(messages) * cell.size / 1e9) if sum(messages) else float("nan"))
        if cell.kind == "latency":
            took = (answer["ended_ns"] - answer["started_ns"]) / 1e9
            self.behind.append(took / planned_s - 1)
            self.push.append(samples(folder / "push.u64"))
            for reader in range(len(readers)):
                self.arrived.append(samples(folder / f"arrived-{reader}.u64"))
                self.read.append(samples(folder / f"read-{reader}.u64"))


Results = dict[Cell, dict[Contestant, Row]]


def throughput(answer: dict, size: int) -> float:
    """Return the GB/s of the slowest part, from the start to its last message.

    The producer counts as a part: nothing is delivered faster than it is copied.
    """
    start = answer["started_ns"]
    parts = [*answer["readers"], {"messages": answer["pushed"], "ended_ns": answer["ended_ns"]}]
    return min(
        part["messages"] * size / (part["ended_ns"] - start) if part["ended_ns"] > start else 0.0
        for part in parts
    )


def samples(path: Path) -> np.ndarray:
    return np.fromfile(path, np.uint64) / 1e3 if path.exists() else np.empty(0)


def spread(values: list[float]) -> Spread:
    return Spread(float(np.median(values)), min(values), max(values))


def quantiles(repeats: list[np.ndarray]) -> Quantiles:
    """Return quantiles of all repeats' samples together, µs; empty without samples."""
    together = np.concatenate(repeats) if repeats else np.empty(0)
    if not len(together):
        return {}
    p50, p99, p999 = np.percentile(together, [50, 99, 99.9])
    medians = [float(np.median(repeat)) for repeat in repeats if len(repeat)]
    return {
        "samples": len(together),
        "mean": float(together.mean()),
        "p50": float(p50),
        "p50_low": min(medians),
        "p50_high": max(medians),
        "p99": float(p99),
        "p99.9": float(p999),
    }
