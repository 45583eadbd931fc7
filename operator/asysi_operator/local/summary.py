"""The summary printed at the end of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asysi.contract.runtime import HOST_FOLDER, LEDGER_FILE, LOG_FOLDER, REPORT_FILE, VERDICT_FILE, Exit
from asysi.contract.telemetry import RunStatus
from asysi_operator.local.attempts import RunOutcome
from asysi_operator.local.display import UNKNOWN, measured, percent, ratio
from asysi_operator.local.verdict import MARKS, RunVerdict, read_verdict

PROGRESS = HOST_FOLDER / "progress.json"

_WORDS = {
    Exit.OK: "finished",
    Exit.FAILED: "failed",
    Exit.CONFIG: "refused",
    Exit.INTERRUPTED: "interrupted",
    Exit.TERMINATED: "terminated",
}

_BALANCED: dict[object, str] = {"True": "balanced", "False": "NOT balanced", "Unknown": "not known"}
_INDENT = f"\n{' ' * 11}"


_NO_FIGURES = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""What a ledger that is not one of ours, or whose figures no number can be, raises."""


def summary(name: str, outcome: RunOutcome, status: RunStatus, output: Path) -> str:
    """Return a summary of a run: verdicts, exit code, reason, FVU, kept and lapped shares, restarts."""
    ledger, verdict = _object(output / LEDGER_FILE), read_verdict(output / VERDICT_FILE)
    mark = f"{verdict.mark} " if verdict else ""
    lines = [
        f"{mark}{name} {_WORDS.get(outcome.code, 'ended')} (exit {int(outcome.code)})",
        *_indented(outcome.reason),
    ]
    restarts = ", ".join(f"{container} {count}" for container, count in sorted(outcome.restarts.items()))
    facts = {
        "FVU": _INDENT.join(_figures(verdict, status)),
        "ledger": _books(verdict, ledger),
        "data": _data(verdict, ran=(output / PROGRESS).is_file()),
        "kept": _kept(ledger),
        "lapped": _lapped(ledger),
        "restarts": restarts or ("none in place" if outcome.attempts > 1 else "none"),
        "attempts": str(outcome.attempts) if outcome.attempts > 1 else "",
        "report": str(output / REPORT_FILE) if (output / REPORT_FILE).is_file() else "",
        "logs": str(output / LOG_FOLDER) if (output / LOG_FOLDER).is_dir() else "",
    }
    return "\n".join([*lines, *(f"  {fact:<9}{value}" for fact, value in facts.items() if value)])


def _indented(reason: str | None) -> list[str]:
    return [f"  {line}" for line in reason.splitlines()] if reason else []


def _figures(verdict: RunVerdict | None, status: RunStatus) -> list[str]:
    """Return the FVU of every trained hook point, with any caveat."""
    if verdict is None:
        return [f"{ratio(one.fvu)} {one.path}" for one in measured(status) if one.fvu is not None]
    return [
        f"{ratio(fvu)} {path}{f' ({note})' if note else ''}" if fvu is not None else f"{UNKNOWN:<5} {path}"
        + (f": {note}" if note else "")
        for path, fvu, note in verdict.figures
    ]  # fmt: skip


def _books(verdict: RunVerdict | None, ledger: Mapping[str, Any]) -> str:
    if verdict is None:  # the attempt ended before its verdict
        return _BALANCED.get(str(ledger.get("balanced")), "")
    said, message = verdict.ledger
    return _BALANCED.get(said, "not known") + (f": {message}" if said != "True" and message else "")


def _data(verdict: RunVerdict | None, *, ran: bool) -> str:
    if verdict is None:
        return "not known: finish left no verdict" if ran else ""
    if not verdict.findings:
        return "sound"
    return _INDENT.join(f"{MARKS.get(level, '?')} {text}" for level, text in verdict.findings)


def _kept(ledger: Mapping[str, Any]) -> str:
    try:
        capture = _whole(ledger)["capture"]
        seen, published = int(capture["seen"]), int(capture["published"])
        return f"{percent(published / seen)} of {seen:,} rows" if seen else ""
    except _NO_FIGURES:
        return ""


def _lapped(ledger: Mapping[str, Any]) -> str:
    """Return the share of rows that each consumer lost, for consumers that lost any."""
    try:
        whole = _whole(ledger)
        offered = {"hook": int(whole["capture"]["published"])}
        rest = int(whole["bus"]["published"])
        lost = {name: int(rows["lapped"]) for name, rows in whole["consumers"].items()}
        shares = {name: rows / (offered.get(name, rest) or 1) for name, rows in lost.items() if rows}
    except _NO_FIGURES:
        return ""
    return ", ".join(f"{lost[name]:,} rows ({share:.1%}) for {name}" for name, share in shares.items())


def _whole(ledger: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the totals of all attempts, or of the last attempt if there are no such totals."""
    found: Mapping[str, Any] = ledger["allAttempts"] if "allAttempts" in ledger else ledger["totals"]
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
