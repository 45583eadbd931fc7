"""Two pictures of a run, as SVG. Pure."""

import math
from html import escape

from plan import BARE, CONTESTANTS, Cell, Contestant
from results import Results, quantiles, spread
from table import cells, describe, heading

WIDTH, LEFT, BAR, GAP = 760, 150, 16, 6
OURS, PEERS, CEILING, INK = "#0b6e99", "#9db4c0", "#d9d9d9", "#222"


def throughput(results: Results) -> str:
    """Draw a bar per contestant, grouped by message size: lossless, one reader."""
    group = [cell for cell in cells(results, "throughput", guarantee="lossless") if cell.readers == 1]
    parts, y = [], 40
    for cell in group:
        rows = [(who, spread(row.gigabytes)) for who, row in ordered(results, cell) if row.gigabytes]
        most = max(value.high for _, value in rows)
        y += 26
        parts.append(text(LEFT, y - 8, heading(cell), weight="bold"))
        for who, value in rows:
            long = value.median / most * (WIDTH - LEFT - 90)
            parts += [
                text(LEFT - 8, y + BAR - 4, who.label, anchor="end"),
                f'<rect x="{LEFT}" y="{y}" width="{long:.1f}" height="{BAR}" fill="{colour(who)}"/>',
                text(LEFT + long + 6, y + BAR - 4, f"{value.median:.2f} GB/s"),
            ]
            y += BAR + GAP
    return picture("Throughput, lossless, readers use every byte; median", parts, y + 20)


def latency(results: Results) -> str:
    """Draw p50 to p99.9 per contestant on a logarithmic axis: 64 KiB, one reader."""
    group = [cell for cell in cells(results, "latency") if cell.readers == 1 and cell.size == 64 << 10]
    rows = {
        cell: [(who, q) for who, row in ordered(results, cell) if (q := quantiles(row.read))]
        for cell in group
    }
    values = [value for row in rows.values() for _, q in row for value in (q["p50"], q["p99.9"])]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - 40)

    parts, y = [], 40
    for cell, entries in rows.items():
        y += 26
        parts.append(text(LEFT, y - 8, describe(cell), weight="bold"))
        top = y
        for who, q in entries:
            middle = y + BAR / 2
            parts += [
                text(LEFT - 8, y + BAR - 4, who.label, anchor="end"),
                f'<line x1="{x(q["p50"]):.1f}" x2="{x(q["p99.9"]):.1f}" y1="{middle}" y2="{middle}"'
                f' stroke="{colour(who)}" stroke-width="3"/>',
                *(
                    f'<circle cx="{x(q[p]):.1f}" cy="{middle}" r="{r}" fill="{colour(who)}"/>'
                    for p, r in (("p50", 5), ("p99", 4), ("p99.9", 3))
                ),
            ]
            y += BAR + GAP
        for power in range(low, high + 1):
            at = x(10.0**power)
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{y}" stroke="#ddd"/>')
            parts.append(text(at, y + 12, f"{10.0**power:g} µs", anchor="middle"))
        y += 24
    return picture("One-way latency, every byte used; p50, p99, p99.9", parts, y + 10)


def ordered(results: Results, cell: Cell):
    return [(who, results[cell][who]) for who in CONTESTANTS if who in results[cell]]


def colour(who: Contestant) -> str:
    return OURS if who.name == "asysi" else CEILING if who.name in BARE else PEERS


def text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'
    )


def picture(title: str, parts: list[str], height: float) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif"'
        f' font-size="12" fill="{INK}"><rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, text(16, 24, title, weight="bold"), *parts, "</svg>"]) + "\n"
