"""The measured cells and their order. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from task import KIB, MIB, SIZES, Task

PYTHON = ("ceiling", "counters", "asysi", "iceoryx2", "pyzmq", "faster-fifo", "mp.Queue", "redis", "zenoh")
CPP = ("ceiling", "streaming", "counters", "asysi")
BARE = ("ceiling", "streaming", "counters")
"""Not contestants, but the references they are compared with."""
RATES = {4 * KIB: 20_000.0, 64 * KIB: 10_000.0, MIB: 1_000.0}
"""Messages per second of paced tasks."""


@dataclass(frozen=True)
class Contestant:
    language: str
    """Python or C++."""
    name: str

    @property
    def label(self) -> str:
        return f"{self.name}, {self.language}" if self.name in CPP else self.name


CONTESTANTS = tuple(
    [Contestant("C++", name) for name in CPP] + [Contestant("Python", name) for name in PYTHON]
)


@dataclass(frozen=True)
class Cell:
    """One comparison: all parameters except the contestant and the repeat."""

    kind: str
    size: int
    readers: int
    guarantee: str
    waiting: str

    def takes(self, contestant: Contestant) -> bool:
        """Whether the combination is meaningful: the references have neither guarantees nor waiting."""
        if contestant.name == "counters" and self.kind == "latency":
            return self.waiting == "spin" and self.readers == 1
        return contestant.name not in BARE or (
            self.guarantee == "lossless"
            and (self.kind != "latency" or (self.waiting, self.readers) == ("spin", 1))
        )

    def task(self, contestant: Contestant, seconds: float, samples: int, folder: str) -> Task:
        rate = RATES[self.size] if self.kind == "latency" else 0.0
        if rate:
            seconds = min(samples / rate, MOST_SECONDS)
        return Task(
            contestant.name,
            self.kind,
            self.size,
            self.readers,
            self.guarantee,
            self.waiting,
            seconds,
            rate,
            folder,
        )


MOST_SECONDS = 2.0
"""Maximum seconds of one paced task: 1 MiB gets fewer samples than the others."""


@dataclass(frozen=True)
class Plan:
    repeats: int
    seconds: float
    """Seconds of one throughput task."""
    samples: int
    """Samples of one paced task."""
    cells: tuple[Cell, ...]

    def steps(self) -> Iterator[tuple[int, Cell, Contestant]]:
        """Yield the order of measurements: within a cell all contestants run in turn, in rotating order."""
        for repeat in range(self.repeats):
            for cell in self.cells:
                able = [contestant for contestant in CONTESTANTS if cell.takes(contestant)]
                turn = repeat % len(able)
                yield from ((repeat, cell, contestant) for contestant in able[turn:] + able[:turn])


def full(repeats: int) -> Plan:
    cells = [
        Cell("throughput", s, n, g, "block") for g in ("lossless", "drop") for n in (1, 2) for s in SIZES
    ]
    cells += [Cell("view", size, 1, "lossless", "block") for size in SIZES]
    cells += [
        Cell("latency", size, 1, "lossless", waiting) for size in SIZES for waiting in ("block", "spin")
    ]
    cells += [Cell("latency", 64 * KIB, 2, "lossless", "block")]
    return Plan(repeats, 0.25, 10_000, tuple(cells))


def quick() -> Plan:
    cells = [Cell("throughput", s, n, "lossless", "block") for n in (1, 2) for s in SIZES]
    cells += [Cell("throughput", s, 1, "drop", "block") for s in SIZES]
    sizes = (4 * KIB, 64 * KIB)
    cells += [
        Cell("latency", size, 1, "lossless", waiting) for size in sizes for waiting in ("block", "spin")
    ]
    return Plan(1, 0.15, 20_000, tuple(cells))
