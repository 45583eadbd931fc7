"""Progress of an experiment's pipeline, from its shards' own status files, treated as untrusted input."""

import json
from pathlib import Path
from typing import Any

from asysi.contract.runtime import PIPELINE_FOLDER

RUNTIME = "runtime.json"
"""File next to each ledger with the nodes and the number of durable rows of each."""


def progress(output: Path) -> str:
    """Return done and total rows per operator, summed over the newest pipeline's shards; empty if unknown.

    Args:
        output: results directory.
    """
    folders = [folder for folder in (output / PIPELINE_FOLDER).glob("*") if folder.is_dir()]
    newest = max(folders, key=_changed, default=None)
    if newest is None:
        return ""
    done: dict[str, list[int]] = {}
    for file in [newest / RUNTIME, *newest.glob(f"shard-*/{RUNTIME}")]:
        for node in _nodes(file):
            sums = done.setdefault(str(node.get("node_id")), [0, 0])
            sums[0] += _count(node.get("durable"))
            sums[1] += _count(node.get("total"))
    return ", ".join(f"{name} {rows:,} of {total:,} rows" for name, (rows, total) in done.items() if total)


def _changed(folder: Path) -> float:
    """Return when a folder was last changed; one that has gone meanwhile is the oldest."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return float("-inf")


def _nodes(file: Path) -> list[dict[str, Any]]:
    try:
        image = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    nodes = image.get("nodes") if isinstance(image, dict) else None
    return [node for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else []


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
