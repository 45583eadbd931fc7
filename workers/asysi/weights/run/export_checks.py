"""Checks of an exported table: rows, columns, missing values, and a few rows recomputed with numpy."""

import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asysi.files import write_atomic
from asysi.weights.reading.checkpoint import Checkpoint
from asysi.weights.run.plan import Done
from asysi.weights.statistics.analysis import CheckpointAnalysis, Settings
from asysi.weights.tables.columns import COLUMNS, NAMES, ORIGINAL, Row
from asysi.weights.tables.export import read_table

CHECK_FILE = "check.json"
SPOT_CHECKS = 5
_SPOT_ELEMENTS = 1 << 24
"""Maximum number of elements of a spot-checked tensor: numpy recomputes it as a whole."""
_LARGE = 1e150
"""Magnitude from which squares of elements overflow float64, so statistics based on them are missing."""
_TOLERANCE = 1e-9
"""Tolerance of a statistic, relative to the largest element."""
_BASIC_TOLERANCE = 1e-5
"""The same for `--stats basic`, which sums 16-bit and 32-bit elements in float32."""


def check_export(table: Path, checkpoint: Checkpoint, analysis: CheckpointAnalysis, names: Iterable[str]
                 ) -> Done[list[str]]:  # fmt: skip
    """Read a table back, check it, write `check.json` next to it, and return the failures."""
    rows = read_table(table)
    failures = check_table(rows, names, analysis)
    spots, wrong = spot_checks(rows, checkpoint, analysis.settings)
    failures += wrong
    content = {
        "rows": len(rows),
        "columns": len(rows[0]) if rows else 0,
        "failures": failures,
        "spot_checks": spots,
    }
    write_atomic(table.with_name(CHECK_FILE), json.dumps(content, indent=1) + "\n")
    note = "; ".join(failures[:3]) or f"{len(spots)} spot checks agree"
    return Done(failures, "failed" if failures else "done", note)


def check_table(rows: Sequence[Row], names: Iterable[str], analysis: CheckpointAnalysis) -> list[str]:
    """Return the problems of a table: rows, columns and missing values.

    Args:
        rows: of the table.
        names: tensors that were selected for analysis.
        analysis: its problems name the tensors without a row.
    """
    failures = []
    lost = {name for problem in analysis.problems for name in problem.tensors}
    expected = [name for name in names if name not in lost]
    found = [str(row.get("param_name")) for row in rows]
    if sorted(found) != sorted(expected):
        failures.append(f"the table has {len(found)} rows, {len(expected)} tensors were to be analysed")
    if rows and tuple(rows[0])[: len(NAMES)] != NAMES:
        failures.append(f"the columns are not the {ORIGINAL} of the design and ours, in that order")
    required = [column.name for column in COLUMNS if column.required]
    for row in rows:
        if missing := [name for name in required if row.get(name) is None]:
            failures.append(f"{row.get('param_name')}: no {', '.join(missing)}")
        if row.get("finite") and row.get("mean") is None and not _is_large(row):
            failures.append(f"{row.get('param_name')}: no mean")
    return failures


def _is_large(row: Row) -> bool:
    return any(abs(row[name]) > _LARGE for name in ("min", "max") if row.get(name) is not None)


def spot_checks(
    rows: Sequence[Row], checkpoint: Checkpoint, settings: Settings
) -> tuple[list[Row], list[str]]:
    """Recompute a few rows with numpy, in float64 and as a whole; return the errors and the mismatches."""
    able = [
        row
        for row in rows
        if row["elements"]
        and row["elements"] <= _SPOT_ELEMENTS
        and row["param_name"] in checkpoint.tensors
        and not _is_large(row)
    ]
    chosen = random.Random(settings.seed).sample(able, min(SPOT_CHECKS, len(able)))  # noqa: S311 - no secret
    tolerance = _BASIC_TOLERANCE if settings.basic else _TOLERANCE
    spots, wrong = [], []
    for row in chosen:
        whole = _numbers(checkpoint.tensors[row["param_name"]].array())
        finite = np.isfinite(whole)
        values = whole if finite.all() else whole[finite]
        if not values.size:
            continue
        variance = values.var()
        truth = {"mean": values.mean(), "std": np.sqrt(variance), "var": variance,
                 "min": values.min(), "max": values.max()}  # fmt: skip
        if whole.size == row["elements"]:
            truth["sparsity"] = float((np.abs(whole) <= settings.zero_epsilon).mean())
        scale = float(np.abs(values).max()) or 1.0
        errors = {
            name: abs(float(value) - row[name]) for name, value in truth.items() if row[name] is not None
        }
        spots.append({"param_name": row["param_name"], "errors": errors})
        wrong += [
            f"{row['param_name']}: {name} is {row[name]!r}, numpy says {float(truth[name])!r}"
            for name in truth
            if not errors.get(name, math.inf)
            <= tolerance * (scale**2 if name == "var" else 1.0 if name == "sparsity" else scale)
        ]
    return spots, wrong


def _numbers(array: NDArray[Any]) -> NDArray[np.float64]:
    """Return the elements in float64, real parts followed by imaginary parts."""
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag])
    return array.astype(np.float64)
