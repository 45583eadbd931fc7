"""The page of the benchmark. Pure."""

import math
from typing import Any

Tree = dict[str, Any]
AIM, BURST_AIM = 0.100, 0.500
"""Seconds from apply to Job at 1,000 experiments, p99: one by one, and from eight clients at once."""
WRITES_AIM = 12
"""Maximum writes per experiment, without those that change only counters."""
MEMORY_AIM = 150
"""Maximum resident MiB at 1,000 experiments."""


def quantile(values: list[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def page(found: Tree, facts: Tree) -> str:
    """Return the page in Markdown."""
    count = facts["experiments"]
    rows = [
        ("the API server's own create of that Job", found["create"]),
        ("apply → Job, the operator with nothing else", found["alone"]),
        (f"**apply → Job, {count:,} experiments present**", found["beside"]),
        ("the same, applied by 8 clients at once", found["burst"]),
        ("`kubectl apply -f` → Job, kubectl's own start included", found["kubectl"]),
    ]
    return f"""# The operator beside {count:,} experiments

Made by `{facts["command"].strip()}`. Experiments are suspended: their ConfigMap, claim,
NetworkPolicy and Job are made, and no pod. Times are from before the request that applies the experiment to
the moment at which a watch of the measuring program brings its Job: they hold the API server's part too. The
p99 of 50 times is the slowest of them, that of 400 the fifth slowest.

| | p50, ms | p90, ms | p99, ms | max, ms | n |
|---|---|---|---|---|---|
{"".join(latency(*row) for row in rows if row[1])}
{aims(found)}

{filling(found["filling"], count)}

## Writes to the API server

{lives(found["life"])}

## What the operator uses

{usage(found, count)}

Machine: {", ".join(f"{key} {value}" for key, value in facts.items() if key not in {"command", "samples"})}.
"""


def aims(found: Tree) -> str:
    """Return the aims, and whether they are met."""
    life = found["life"]
    memory = max(found["memory"], found["idle"]["memory"]) / 2**20
    rows = [
        ("apply → Job, p99, ms", quantile(found["beside"], 0.99) * 1000, AIM * 1000),
        ("the same by 8 clients at once, p99, ms", quantile(found["burst"], 0.99) * 1000, BURST_AIM * 1000),
        ("writes a life, beyond counters", beyond_counters(life), WRITES_AIM),
        ("resident memory, MiB", memory, MEMORY_AIM),
    ]
    lines = [
        f"| {name} | {aim:.0f} | {value:.4g} | {'kept' if value <= aim else 'missed'} |"
        for name, value, aim in rows
    ]
    return "\n".join(["| aim | at most | measured | |", "|---|---|---|---|", *lines])


def beyond_counters(life: Tree) -> float:
    """Return the writes of an experiment's life without those that change only counters."""
    total: float = sum(sum(phase.values()) for phase in life["phases"].values())
    return total - life["counters"] / life["count"]


def latency(name: str, values: list[float]) -> str:
    """Return a row of the table of times."""
    cells = [quantile(values, share) * 1000 for share in (0.5, 0.9, 0.99)] + [max(values) * 1000]
    return f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} | {len(values)} |\n"


def filling(part: Tree, count: int) -> str:
    """Return the cost of creating all experiments."""
    made = ", ".join(f"{key} {value:.2f}" for key, value in sorted(part["writes"].items()))
    return (
        f"All {count:,} were applied by eight clients in {part['applied']:.0f} s and had their Jobs after "
        f"{part['made']:.0f} s ({count / part['made']:.0f} a second, everything on one machine). Each cost "
        f"the operator {part['cpu'] * 1000:.0f} ms of CPU, the API server {part['served'] * 1000:.0f} ms, "
        f"and the writes {made}."
    )


def lives(part: Tree) -> str:
    """Return the table of writes by phase."""
    kinds = sorted({key for phase in part["phases"].values() for key in phase})
    total = {kind: sum(phase.get(kind, 0) for phase in part["phases"].values()) for kind in kinds}
    said = {
        "created": "applied: accepted, all objects made, pod pending",
        "scheduled": "the pod has a node",
        "started": "prepare runs and ends, sidecars, host and finish start",
        "running": "30 s of running, counters growing",
        "ended": "host, finish and the Job end",
        "deleted": "the experiment is deleted",
    }
    head = f"| phase | {' | '.join(kinds)} | all |\n|---|{'---|' * (len(kinds) + 1)}\n"
    lines = [row(said[name], phase, kinds) for name, phase in part["phases"].items()]
    lines.append(row("**a life**", total, kinds))
    counters = part["counters"] / part["count"]
    return (
        f"Mean over {part['count']} experiments that ran at the same time on a node that is made up, from\n"
        "the operator's own `asysi_operator_api_requests_total`. PATCH is a server-side apply; that of\n"
        "ScanExperiment is the status. Counters are written at most once in five seconds: "
        f"{counters:.3g} of a life's\nwrites bring nothing else.\n\n"
        + head
        + "\n".join(lines)
        + "\n\nThe API server's own count of writes to experiments in that time, less this program's:\n"
        f"{part['told']:.0f}; the operator's: {part['said']:.0f}."
    )


def row(name: str, counted: Tree, kinds: list[str]) -> str:
    """Return a row of the table of writes."""
    cells = " | ".join(f"{counted.get(kind, 0):.3g}" for kind in kinds)
    return f"| {name} | {cells} | {sum(counted.values()):.3g} |"


def usage(found: Tree, count: int) -> str:
    """Return CPU, memory and requests."""
    idle = found["idle"]
    asked = ", ".join(
        f"{value / idle['seconds'] * 60:.1f} {key}" for key, value in sorted(idle["requests"].items())
    )
    reconciliations, waits = found["reconciliations"], found["waits"]
    return f"""| | |
|---|---|
| CPU at rest, {count:,} experiments, {idle["seconds"]:.0f} s | {idle["cpu"] * 100:.1f} % of a processor |
| requests a minute at rest | {asked or "none"} |
| resident memory at rest | {idle["memory"] / 2**20:.0f} MiB |
| resident memory at the end | {found["memory"] / 2**20:.0f} MiB |
| reconciliations | {reconciliations["count"]:.0f}, mean {reconciliations["mean"] * 1000:.1f} ms |
| waiting for a reconciliation | mean {waits["mean"] * 1000:.1f} ms |"""
