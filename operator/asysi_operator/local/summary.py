"""What is said at the end."""

import json
from pathlib import Path
from typing import Any

from asysi.contract.runtime import LEDGER_FILE, LOG_FOLDER, REPORT_FILE, Exit
from asysi_operator.local.attempts import Outcome
from asysi_operator.local.display import percent, ratio
from asysi_operator.local.status import Status

_WORDS = {
    Exit.OK: "finished",
    Exit.FAILED: "failed",
    Exit.CONFIG: "refused",
    Exit.INTERRUPTED: "interrupted",
    Exit.TERMINATED: "terminated",
}

_BALANCED: dict[object, str] = {True: "balanced", False: "NOT balanced"}


def summary(name: str, outcome: Outcome, status: Status, output: Path) -> str:
    """Return the run in a few lines: code, reason, FVU, ledger, kept share, restarts, report."""
    ledger = _ledger(output / LEDGER_FILE)
    lines = [
        f"{name} {_WORDS.get(outcome.code, 'ended')} (exit {int(outcome.code)})",
        *_indented(outcome.reason),
    ]
    fvu = [f"{ratio(point.fvu)} {point.path}" for point in status.points if point.fvu is not None]
    restarts = ", ".join(f"{container} {count}" for container, count in sorted(outcome.restarts.items()))
    facts = {
        "FVU": f"\n{' ' * 11}".join(fvu),
        "ledger": _BALANCED.get(ledger.get("balanced"), ""),
        "kept": _kept(ledger),
        "restarts": restarts or "none",
        "attempts": str(outcome.attempts) if outcome.attempts > 1 else "",
        "report": str(output / REPORT_FILE) if (output / REPORT_FILE).is_file() else "",
        "logs": str(output / LOG_FOLDER) if (output / LOG_FOLDER).is_dir() else "",
    }
    return "\n".join([*lines, *(f"  {fact:<9}{value}" for fact, value in facts.items() if value)])


def _indented(reason: str | None) -> list[str]:
    return [f"  {line}" for line in reason.splitlines()] if reason else []


def _kept(ledger: dict[str, Any]) -> str:
    try:
        capture = ledger["totals"]["capture"]
        seen, published = int(capture["seen"]), int(capture["published"])
    except (KeyError, TypeError, ValueError):
        return ""
    return f"{percent(published / seen)} of {seen:,} rows" if seen else ""


def _ledger(path: Path) -> dict[str, Any]:
    try:
        ledger = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return ledger if isinstance(ledger, dict) else {}
