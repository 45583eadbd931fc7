"""The page and the picture of a run; `python page.py` regenerates both from the record."""

import json
from html import escape
from pathlib import Path
from statistics import median, quantiles
from typing import Any

AIM, CALLS_AIM = 0.6, 0.8
"""Target share of the plain loop's rows per second, and of bare httpx's calls per second, fully durable."""
SLOWER = 1.03
"""Maximum factor by which this version may be slower than the previous one."""
BEFORE = ", before"
LATENCY = 0.05
_ORDER = ("plain", "ours", "ours, no fsync", "ours, shards", "datatrove", "ray")
_LABELS = {"plain": "plain orjson loop", "ray": "Ray Data"}
Record = dict[str, Any]


def text(result: Record) -> str:
    """Return the page, Markdown."""
    parts = [_words("introduction"), *_aims(result), "![Rows a second](pipeline.svg)", ""]
    for files in (1, 8):
        for workers in (1, 2):
            parts += _table(result, files, workers)
    parts += [*_calls(result), *_before(result), *_how(result)]
    return "\n".join(parts) + "\n"


def picture(result: Record) -> str:
    """Return a bar chart of rows per second, as SVG."""
    width, left, bar = 760, 190, 17
    body, y = [], 46
    most = max(_rate(runs) for _, _, _, runs in _groups(result))
    for files in (1, 8):
        for workers in (1, 2):
            body.append(_word(left, y, f"{_files(files)}, {_workers(workers)}", weight="bold"))
            y += 8
            for who in _ORDER:
                runs = _runs(result, who, files, workers)
                if not runs:
                    continue
                long = _rate(runs) / most * (width - left - 90)
                colour = {"plain": "#d9d9d9", "datatrove": "#9db4c0", "ray": "#9db4c0"}.get(who, "#0b6e99")
                body += [
                    _word(left - 8, y + bar - 4, _LABELS.get(who, who), anchor="end"),
                    f'<rect x="{left}" y="{y}" width="{long:.1f}" height="{bar}" fill="{colour}"/>',
                    _word(left + long + 6, y + bar - 4, f"{_rate(runs):,.0f}"),
                ]
                y += bar + 5
            y += 26
    title = _word(16, 22, "Rows a second, 306 bytes per row: upper case, nine in ten kept", weight="bold")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{title}{"".join(body)}</svg>\n'
    )


def _aims(result: Record) -> list[str]:
    lines = ["| aim | found |", "|---|---|"]
    for files in (1, 8):
        for workers in (1, 2):
            best = "ours, shards" if workers > 1 else "ours"
            share = max(_share(result, who, files, workers) for who in {"ours", best})
            peers = [_rate(_runs(result, who, files, workers)) for who in ("datatrove", "ray")]
            own = max(_rate(_runs(result, who, files, workers)) for who in {"ours", best})
            first = "no peer was run" if not any(peers) else f"{own / max(peers):.1f} × the better peer"
            met = "met" if share >= AIM else "not met"
            what = f"{_files(files)}, {_workers(workers)}: {AIM} of the plain loop, and first otherwise"
            lines.append(f"| {what} | {share:.2f} ({met}); {first} |")
    for at_once in _levels(result):
        share = _call_share(result, "ours", "bare", at_once)
        met = "met" if share >= CALLS_AIM else "not met"
        lines.append(f"| {at_once} calls at once: {CALLS_AIM} of bare httpx | {share:.2f} ({met}) |")
    return [*lines, ""]


def _table(result: Record, files: int, workers: int) -> list[str]:
    lines = [
        f"## {_files(files).capitalize()}, {_workers(workers)}",
        "",
        "| who | rows/s, median | quartiles | of the plain loop | processor s a million | peak MB | start s "
        "| rows × runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for who in _ORDER:
        runs = _runs(result, who, files, workers)
        if not runs:
            continue
        rates = sorted(run["rows"] / run["seconds"] for run in runs)
        low, _, high = quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else [rates[0]] * 3
        processor = median(run["processor"] / run["rows"] * 1e6 for run in runs)
        memory, startup = median(run["memory"] for run in runs) / 1e6, median(run["startup"] for run in runs)
        lines.append(
            f"| {_LABELS.get(who, who)} | {_rate(runs):,.0f} | {low:,.0f} – {high:,.0f} | "
            f"{_share(result, who, files, workers):.2f} | {processor:.1f} | {memory:.0f} | {startup:.1f} | "
            f"{runs[0]['rows']:,} × {len(runs)} |"
        )
    return [*lines, ""]


def _calls(result: Record) -> list[str]:
    lines = [
        _words("calls"),
        "| at once | ideal, calls/s | bare httpx | ours | bare, share | ours | ms a call: bare | ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for at_once in _levels(result):
        rates, spent = {}, {}
        for who in ("bare", "ours"):
            runs = _call_runs(result, who, at_once)
            rates[who] = median(run["calls"] / run["seconds"] for run in runs)
            spent[who] = median(run["processor"] / run["calls"] * 1e3 for run in runs)
        ideal = at_once / LATENCY
        shares = " | ".join(f"{rates[who] / ideal:.2f}" for who in ("bare", "ours"))
        times = " | ".join(f"{spent[who]:.1f}" for who in ("bare", "ours"))
        lines.append(
            f"| {at_once} | {ideal:,.0f} | {rates['bare']:,.0f} | {rates['ours']:,.0f} | {shares} | {times} |"
        )
    return [*lines, ""]


def _before(result: Record) -> list[str]:
    """Return each case compared with the previous version, if that was run."""
    cases = [
        (who, files, workers)
        for who in ("ours", "ours, shards")
        for files in (1, 8)
        for workers in (1, 2)
        if _runs(result, who + BEFORE, files, workers)
    ]
    if not cases:
        return []
    lines = [
        _words("before"),
        "| case | rows/s before | now | seconds, now / before | processor, now / before | |",
        "|---|---|---|---|---|---|",
    ]
    for who, files, workers in cases:
        runs, old = _runs(result, who, files, workers), _runs(result, who + BEFORE, files, workers)
        spent = _ratio(runs, old, "processor")
        lines.append(
            f"| {who}: {_files(files)}, {_workers(workers)} | {_rate(old):,.0f} | {_rate(runs):,.0f} | "
            f"{_ratio(runs, old, 'seconds'):.2f} | {spent:.2f} | {_verdict(spent)} |"
        )
    for at_once in _levels(result):
        runs, old = _call_runs(result, "ours", at_once), _call_runs(result, "ours" + BEFORE, at_once)
        rates = [median(run["calls"] / run["seconds"] for run in some) for some in (old, runs)]
        spent = _ratio(runs, old, "processor")
        lines.append(
            f"| {at_once} calls at once, calls/s | {rates[0]:,.0f} | {rates[1]:,.0f} | "
            f"{_ratio(runs, old, 'seconds'):.2f} | {spent:.2f} | {_verdict(spent)} |"
        )
    return [*lines, ""]


def _verdict(ratio: float) -> str:
    return "not slower" if ratio <= SLOWER else f"slower by {ratio - 1:.0%}"


def _ratio(runs: list[Record], old: list[Record], what: str) -> float:
    """Return the median, over the rounds, of the ratio to the previous version in the same round."""
    before = {run["turn"]: run[what] for run in old}
    return median(run[what] / before[run["turn"]] for run in runs)


def _levels(result: Record) -> list[int]:
    return sorted({run["at_once"] for run in result["calls"]})


def _call_runs(result: Record, who: str, at_once: int) -> list[Record]:
    return [run for run in result["calls"] if (run["who"], run["at_once"]) == (who, at_once)]


def _call_share(result: Record, who: str, of: str, at_once: int) -> float:
    """Return the median, over the rounds, of the ratio of two contestants' calls per second."""
    return 1 / _ratio(_call_runs(result, who, at_once), _call_runs(result, of, at_once), "seconds")


def _how(result: Record) -> list[str]:
    facts = ", ".join(f"{name} {value}" for name, value in result["facts"].items())
    return [
        _words("costs"),
        f"Machine and versions: {facts}. The run took {result['minutes']} minutes; 5-minute load at its end"
        f" {result['load']:.1f}.",
    ]


def _words(name: str) -> str:
    return Path(__file__).with_name(f"{name}.md").read_text()


def _groups(result: Record) -> list[tuple[str, int, int, list[Record]]]:
    found = [
        (who, files, workers, _runs(result, who, files, workers))
        for who in _ORDER
        for files in (1, 8)
        for workers in (1, 2)
    ]
    return [group for group in found if group[3]]


def _runs(result: Record, who: str, files: int, workers: int) -> list[Record]:
    wanted = (who, files, workers)
    return [run for run in result["rows"] if (run["who"], run["files"], run["workers"]) == wanted]


def _rate(runs: list[Record]) -> float:
    return median(run["rows"] / run["seconds"] for run in runs) if runs else 0.0


def _share(result: Record, who: str, files: int, workers: int) -> float:
    """Return the median, over the rounds, of the ratio to the plain loop of the same round."""
    plain = {run["turn"]: run["rows"] / run["seconds"] for run in _runs(result, "plain", files, workers)}
    runs = _runs(result, who, files, workers)
    return median(run["rows"] / run["seconds"] / plain[run["turn"]] for run in runs) if runs else 0.0


def _files(count: int) -> str:
    return "one file" if count == 1 else f"{count} files"


def _workers(count: int) -> str:
    return "one worker" if count == 1 else f"{count} workers"


def _word(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="#222">'
        f"{escape(words)}</text>"
    )


if __name__ == "__main__":
    place = Path(__file__).parents[2] / "docs" / "benchmarks"
    record = json.loads((place / "pipeline.json").read_text())
    (place / "pipeline.md").write_text(text(record))
    (place / "pipeline.svg").write_text(picture(record))
