"""Writes the dead letters of a run to files: one JSON line per letter, one file per node."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from asysi.files import write_atomic
from asysi.pipeline.ledger.ledger import RowLedger


def write_dead_letters(ledger: RowLedger, names: Sequence[str], folder: Path) -> None:
    """Write the dead letters of each node to `<node>.jsonl` in a folder; a node without any has no file."""
    by_node: dict[str, list[str]] = {}
    for _, node, letter, tries in ledger.dead():
        tree = {
            "_i": letter.identity,
            "node": node,
            "row": letter.row,
            "reason": letter.reason,
            "error": letter.error,
            "tries": tries,
            **_as_text(letter.line),
        }
        by_node.setdefault(node, []).append(json.dumps(tree, ensure_ascii=False))
    for name in names:
        file = folder / f"{name}.jsonl"
        if name in by_node:
            write_atomic(file, "\n".join(by_node[name]) + "\n")
        else:
            file.unlink(missing_ok=True)


def _as_text(line: bytes) -> dict[str, str]:
    """Return a line as JSON fields, with its bytes in base64 if it is not UTF-8."""
    try:
        return {"line": line.decode()}
    except UnicodeDecodeError:
        return {
            "line": line.decode(errors="replace"),
            "line_base64": base64.b64encode(line).decode(),
        }
