"""The page and the record of a run. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from plan import BARE, CONTESTANTS, Cell, Contestant, Plan
from results import Results, Row, quantiles, spread
from task import KIB, MIB, SIZES

OURS = {language: Contestant(language, "asysi") for language in ("C++", "Python")}
CEILING = {language: Contestant(language, "ceiling") for language in ("C++", "Python")}
CEILINGS = ("ceiling", "streaming")
"""Copies and reads alone, by memcpy and bypassing the caches: the faster one counts."""
THROUGHPUT_AIM = 0.85
"""Target share of the ceiling, at 64 KiB and 1 MiB."""
PUSH_AIM_PYTHON = 2.0
"""Total µs, 4 KiB."""
PUSH_AIM_CPP = 0.5
"""µs over its memcpy, 4 KiB."""
BEHIND = 0.05
"""A paced producer that takes this share longer than planned has fallen behind."""


@dataclass(frozen=True)
class Words:
    """The hand-written text around the figures, Markdown."""

    introduction: str
    reasons: str
    """Reasons for lost comparisons; omitted if there are none."""


def page(results: Results, measured: Plan, facts: dict[str, object], words: Words) -> str:
    lines = ["# The ring against its ceiling and its peers", "", words.introduction.strip(), ""]
    lines += [
        *aims(results),
        *reasons(results, words),
        *throughputs(results),
        *latencies(results),
        *pushes(results),
    ]
    lines += [*processor_time(results), *checks(results), *how(measured, facts)]
    return "\n".join(lines) + "\n"


# -- aims


@dataclass(frozen=True)
class Aim:
    what: str
    reached: str
    wanted: str
    met: bool


def all_aims(results: Results) -> list[Aim]:
    return [*ratio_aims(results), *push_aims(results), *first_aims(results)]


def ratio_aims(results: Results) -> list[Aim]:
    aims = []
    for language, ours in OURS.items():
        for cell in cells(results, "throughput", guarantee="lossless"):
            if cell.size < 64 * KIB or not (ratio := share_of_ceiling(results, cell, ours)):
                continue
            what = f"{language}, {name(cell.size)}, {readers(cell)}: throughput over the ceiling's"
            aims.append(Aim(what, f"{ratio:.2f}", f">= {THROUGHPUT_AIM}", ratio >= THROUGHPUT_AIM))
    return aims


def push_aims(results: Results) -> list[Aim]:
    aims = []
    for cell in cells(results, "latency", waiting="spin"):
        row, over = results[cell], {}
        for language in OURS:
            push = quantiles(row[OURS[language]].push)
            copy = quantiles(row[CEILING[language]].push)
            if cell.size == 4 * KIB and push and copy:
                over[language] = (push["p50"], push["p50"] - copy["p50"])
        if "Python" in over:
            cost = over["Python"][0]
            aims.append(Aim("Python, 4 KiB: a push, p50, µs", f"{cost:.2f}", "<= 2", cost <= PUSH_AIM_PYTHON))
        if "C++" in over:
            more = over["C++"][1]
            aims.append(
                Aim(
                    "C++, 4 KiB: a push over its memcpy, p50, µs",
                    f"{more:.2f}",
                    "<= 0.5",
                    more <= PUSH_AIM_CPP,
                )
            )
    return aims


def first_aims(results: Results) -> list[Aim]:
    """Compare the ring from Python with every peer, all used from Python."""
    aims = []
    for cell in results:
        figures, better = figure_of(cell)
        rank = {who: figures(row) for who, row in results[cell].items() if who.language == "Python"}
        rank = {who: value for who, value in rank.items() if value is not None and who.name not in BARE}
        if OURS["Python"] not in rank or len(rank) < 2:
            continue
        ours = rank.pop(OURS["Python"])
        rival = better(rank, key=lambda who: rank[who])
        met = better(ours, rank[rival]) == ours
        reached = f"{ours:.2f}; {rival.label} {rank[rival]:.2f}"
        aims.append(Aim(f"first: {describe(cell)}", reached, "first", met))
    return aims


def figure_of(cell: Cell) -> tuple[Callable[[Row], float | None], Callable]:
    """Return the figure by which a cell is ranked, and whether the maximum or the minimum wins."""
    if cell.kind == "latency":
        return (lambda row: quantiles(row.read).get("p50")), min
    return (lambda row: spread(row.gigabytes).median if row.gigabytes else None), max


def aims(results: Results) -> list[str]:
    lines = ["## Aims", "", "| what | reached | wanted | |", "|---|---|---|---|"]
    lines += [
        f"| {a.what} | {a.reached} | {a.wanted} | {'yes' if a.met else '**no**'} |" for a in all_aims(results)
    ]
    return [*lines, ""]


def reasons(results: Results, words: Words) -> list[str]:
    return [] if all(aim.met for aim in all_aims(results)) else [words.reasons.strip(), ""]


# -- throughput


def throughputs(results: Results) -> list[str]:
    lines = ["## Throughput", ""]
    for guarantee, title in (
        ("lossless", "Lossless: the producer waits for the slowest reader"),
        ("drop", "Drop: the producer never waits"),
    ):
        group = cells(results, "throughput", guarantee=guarantee)
        if group:
            lines += [f"### {title}", "", *matrix(results, group, gigabytes), ""]
    views = cells(results, "view")
    if views:
        lines += ["### View only: readers look at the number, not at the bytes (lossless)", ""]
        lines += [*matrix(results, views, gigabytes), ""]
    return lines


def gigabytes(results: Results, cell: Cell, who: Contestant) -> str:
    row = results[cell][who]
    if not row.gigabytes:
        return "failed"
    median, low, high = spread(row.gigabytes)
    text = f"{median:.2f} ({low:.2f} – {high:.2f})"
    ratio = share_of_ceiling(results, cell, who)
    if ratio and who.name not in CEILINGS:
        text += f" {100 * ratio:.0f} %"
    if cell.guarantee == "drop":
        text += f", lost {100 * spread(row.lost).median:.0f} %"
    return text


def share_of_ceiling(results: Results, cell: Cell, who: Contestant) -> float:
    """Return the median over the repeats of its throughput divided by the ceiling's; 0 without a ceiling.

    The ratio is taken within each repeat, because the speed of the machine varies.
    """
    same = (cell.kind, cell.size, cell.readers)
    ceilings = [
        row.gigabytes
        for other, rows in results.items()
        for bare, row in rows.items()
        if (other.kind, other.size, other.readers) == same
        if bare.language == who.language
        if bare.name in CEILINGS
    ]
    mine = results[cell][who].gigabytes
    if not ceilings or any(len(ceiling) != len(mine) for ceiling in ceilings) or not mine:
        return 0.0
    most = [max(repeat) for repeat in zip(*ceilings, strict=True)]
    return spread([own / top for own, top in zip(mine, most, strict=True)]).median


# -- latency, push, processor


def latencies(results: Results) -> list[str]:
    lines = ["## One-way latency", ""]
    lines += ["From the time a message was due until the reader has used every byte of it, µs.", ""]
    lines += ["In brackets: the least and the most of the repeats' own medians.", ""]
    for cell in cells(results, "latency"):
        lines += [f"### {describe(cell)}", ""]
        lines += ["| | p50 | p99 | p99.9 | in hand, p50 | samples | |", "|---|---|---|---|---|---|---|"]
        for who in contestants(results, [cell]):
            row = results[cell][who]
            read, arrived = quantiles(row.read), quantiles(row.arrived)
            if who.name in CEILINGS:
                continue
            if not read:
                lines.append(f"| {who.label} | failed | | | | | {'; '.join(sorted(set(row.errors)))} |")
                continue
            median = f"{read['p50']:.1f} ({read['p50_low']:.1f} – {read['p50_high']:.1f})"
            late = "fell behind the pace" if max(row.behind) > BEHIND else ""
            lines.append(
                f"| {who.label} | {median} | {read['p99']:.1f} | {read['p99.9']:.1f} | {arrived['p50']:.1f}"
                f" | {read['samples']:,} | {late} |"
            )
        lines.append("")
    return lines


def pushes(results: Results) -> list[str]:
    lines = ["## What a push costs the producer", ""]
    lines += [
        "Duration of the call, µs: p50 / p99 / mean, of the paced runs above; the ceiling's is its copy.",
        "",
    ]
    return [*lines, *matrix(results, cells(results, "latency"), push), ""]


def push(results: Results, cell: Cell, who: Contestant) -> str:
    cost = quantiles(results[cell][who].push)
    return f"{cost['p50']:.2f} / {cost['p99']:.2f} / {cost['mean']:.2f}" if cost else "failed"


def processor_time(results: Results) -> list[str]:
    lines = [
        "## Processor time",
        "",
        "CPU seconds of all processes for each 10⁹ bytes delivered, lossless.",
        "",
    ]
    return [*lines, *matrix(results, cells(results, "throughput", guarantee="lossless"), seconds), ""]


def seconds(results: Results, cell: Cell, who: Contestant) -> str:
    row = results[cell][who]
    return f"{spread(row.cpu).median:.2f}" if row.cpu else "failed"


def checks(results: Results) -> list[str]:
    rows = [(cell, who, row) for cell, all_rows in results.items() for who, row in all_rows.items()]
    checked = sum(row.checked for _, who, row in rows if who.name not in CEILINGS)
    lines = ["## Checks", "", f"{checked:,} messages were checked: number, order and sum of their bytes.", ""]
    for cell, who, row in rows:
        if row.wrong:
            lines.append(f"- **{who.label}**, {describe(cell)}: {row.wrong} wrong")
        if cell.guarantee == "lossless" and any(row.lost):
            lines.append(
                f"- **{who.label}**, {describe(cell)}: lost {100 * max(row.lost):.2f} % though lossless"
            )
        lines += [f"- **{who.label}**, {describe(cell)}: {error}" for error in sorted(set(row.errors))]
    if lines[-1] == "":
        lines.append("None was wrong, none was lost where nothing may be.")
    return [*lines, ""]


def how(measured: Plan, facts: dict[str, object]) -> list[str]:
    return [
        "## Run",
        "",
        f"{measured.repeats} repeats; throughput {measured.seconds} s each, paced runs up to"
        f" {measured.samples:,} samples each. Took {facts['seconds']} s."
        f" Made by `{str(facts['command']).strip()}`.",
        "",
        "Machine: "
        + ", ".join(f"{k} {v}" for k, v in facts.items() if k not in ("command", "seconds"))
        + ".",
    ]


# -- shape


def cells(results: Results, kind: str, **wanted: str) -> list[Cell]:
    return [
        cell
        for cell in results
        if cell.kind == kind and all(getattr(cell, k) == v for k, v in wanted.items())
    ]


def contestants(results: Results, group: Iterable[Cell]) -> list[Contestant]:
    return [who for who in CONTESTANTS if any(who in results[cell] for cell in group)]


def matrix(
    results: Results, group: list[Cell], entry: Callable[[Results, Cell, Contestant], str]
) -> list[str]:
    lines = ["| | " + " | ".join(heading(cell) for cell in group) + " |", "|---" * (len(group) + 1) + "|"]
    for who in contestants(results, group):
        entries = (entry(results, cell, who) if who in results[cell] else "" for cell in group)
        lines.append(f"| {who.label} | " + " | ".join(entries) + " |")
    return lines


def heading(cell: Cell) -> str:
    words = [name(cell.size), readers(cell)]
    return ", ".join([*words, WAITING[cell.waiting]] if cell.kind == "latency" else words)


def describe(cell: Cell) -> str:
    words = {
        "throughput": f"throughput, {cell.guarantee}",
        "view": "throughput, view only",
        "latency": "latency",
    }
    tail = f", {WAITING[cell.waiting]}" if cell.kind == "latency" else ""
    return f"{words[cell.kind]}, {name(cell.size)}, {readers(cell)}{tail}"


WAITING = {"block": "sleeping", "spin": "spinning"}


def readers(cell: Cell) -> str:
    return "1 reader" if cell.readers == 1 else f"{cell.readers} readers (oversubscribed)"


def name(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def record(results: Results, measured: Plan, facts: dict[str, object]) -> dict[str, object]:
    """Return the run in machine-readable form: throughput per repeat, quantiles, aims."""
    rows = []
    for cell, all_rows in results.items():
        for who, row in all_rows.items():
            rows.append(
                {
                    "contestant": who.name,
                    "language": who.language,
                    **asdict(cell),
                    "gigabytes_per_second": row.gigabytes,
                    "lost_share": row.lost,
                    "cpu_seconds_per_gigabyte": row.cpu,
                    "wrong": row.wrong,
                    "push_us": quantiles(row.push),
                    "in_hand_us": quantiles(row.arrived),
                    "read_us": quantiles(row.read),
                    "errors": row.errors,
                }
            )
    return {
        "machine": facts,
        "repeats": measured.repeats,
        "sizes": list(SIZES),
        "aims": [asdict(aim) for aim in all_aims(results)],
        "rows": rows,
    }
