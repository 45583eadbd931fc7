"""The page on parameters: one self-contained HTML file with plots per layer, styled like the run's report."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from asysi.report import words
from asysi.weights.comparing.compare import DIFFERENCE_COLUMNS, said_in_short, totals
from asysi.weights.reading.tensors import STORED_FORM
from asysi.weights.reporting import formatting
from asysi.weights.reporting.plots import Plot, Point, dots_by_name, plot
from asysi.weights.tables.columns import COLUMNS, Row

MOST_ROWS = 2_000
"""Maximum number of parameters in the page's table: the largest ones; the exported table has all."""
MOST_LISTED = 100
"""Maximum number of tensors listed per status."""
SHADES = 10
_PER_LAYER = (
    ("std", "Standard deviation", "A layer that stands out was trained, or stored, differently."),
    ("abs_max", "Largest element", "Logarithmic; outliers cost precision when quantised."),
    ("stable", "Stable rank, share", "‖W‖F² / σmax² over the shorter side: 1 for equal singular values."),
    ("effective", "Effective rank, share", "exp of the spectrum's entropy over the shorter side."),
    ("alpha", "Power-law exponent", "Of the upper end of the eigenvalues σ²; smaller means a heavier tail."),
    ("lost", "Rank beyond noise, share", "Singular values that storage rounding cannot have made."),
    ("zeros", "Near zeros, share", "Elements with |x| <= zero_epsilon."),
)  # fmt: skip
_DIFFERENCES = (
    ("delta_relative", "Change, relative", "‖ΔW‖F / ‖W‖F."),
    ("delta_stable_rank", "Stable rank of the change", "How many directions the change has, at most."),
    (
        "angle_left_max",
        "Largest angle, outputs",
        "Between the spans of the k largest left singular vectors, degrees.",
    ),
    ("angle_right_max", "Largest angle, inputs", "The same for the right singular vectors."),
)
_SHOWN = ("rank", "rank_noise", "mean", "std", "sparsity", "stable_rank", "effective_rank", "alpha")


@dataclass(frozen=True, slots=True)
class WeightsPage:
    """The data shown on the page."""

    name: str
    rows: Sequence[Row]
    problems: Sequence[str] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Content of `run_meta.json`."""
    differences: Sequence[Row] = ()
    """Rows of a comparison; empty without one."""
    against: str = ""
    """Sentence that says what the differences are relative to."""


def build(page: WeightsPage) -> str:
    """Return the page as HTML; all text in it is escaped."""
    style = _file("asysi.report", "static", "report.css") + _file(
        "asysi.weights.reporting", "templates", "weights.css"
    )
    environment = Environment(
        loader=DictLoader({"weights.html": _file("asysi.weights.reporting", "templates", "weights.html")}),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        count=words.count,
        percent=words.percent,
        short=formatting.short_number,
        size=formatting.size,
        breakable=_breakable,
    )
    matrices = [row for row in page.rows if row["method"] in {"svd", "gram", "randomized"}]
    shades = _shades(page.rows)
    return environment.get_template(
        "weights.html"
    ).render(
        page=page,
        style=Markup(style),  # noqa: S704 - our own files
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii"),
        verdict=verdict(page),
        figures=_figures(page.rows),
        shades=shades,
        layer_plots=_layer_plots(matrices, shades),
        one_layer=len({row["layer_index"] for row in page.rows} - {None}) == 1,
        spectra=_spectra(matrices),
        loose=[row for row in matrices if row["layer_index"] is None],
        difference_plots=_difference_plots(page.differences, shades),
        totals=totals(page.differences) if page.differences else None,
        changed=_most_changed(page.differences),
        listed=_listed(page.differences),
        most_listed=MOST_LISTED,
        shown=_SHOWN,
        table=sorted(page.rows, key=lambda row: -row["elements"])[:MOST_ROWS],
        definitions=[*COLUMNS, *(one for one in DIFFERENCE_COLUMNS[6:] if page.differences)],
        meta=json.dumps(page.meta, indent=1, ensure_ascii=False),
    )


def verdict(page: WeightsPage) -> str:
    """Return a one-sentence summary of the page."""
    if not page.rows and page.differences:
        said = said_in_short(totals(page.differences))
        return f"{words.count(len(page.differences))} tensors compared: {said}."
    broken = sum(row["nans"] + row["infinities"] for row in page.rows)
    parts = [f"{words.count(len(page.rows))} parameters analysed"]
    if page.problems:
        parts.append(f"{len(page.problems)} problems")
    if coded := sum(row["form"] == STORED_FORM for row in page.rows):
        parts.append(f"{words.count(coded)} are in {STORED_FORM}")
    parts.append(
        "every element is finite" if not broken else f"{words.count(broken)} elements are not finite"
    )
    return ", ".join(parts) + "."


def _breakable(name: str) -> Markup:
    """Return a name with a line-break opportunity after each dot."""
    return Markup(".<wbr>").join(name.split("."))


def _file(package: str, folder: str, name: str) -> str:
    return resources.files(package).joinpath(folder, name).read_text(encoding="utf-8")


def _figures(rows: Sequence[Row]) -> Row:
    layers = {row["layer_index"] for row in rows if row["layer_index"] is not None}
    return {
        "elements": sum(row["elements"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "layers": len(layers),
        "types": ", ".join(sorted({row["dtype"] for row in rows})),
        "zeros": sum(row["near_zeros"] for row in rows) / max(1, sum(row["elements"] for row in rows)),
        "broken": sum(row["nans"] + row["infinities"] for row in rows),
        "inexact": sum(row["exact"] is False for row in rows),
    }


def _shades(rows: Sequence[Row]) -> dict[str, int]:
    blocks = dict.fromkeys(str(row["block_type"]) for row in rows)
    return {block: number % SHADES for number, block in enumerate(blocks)}


def _most_changed(differences: Sequence[Row]) -> list[Row]:
    changed = [row for row in differences if row["status"] == "changed"]
    return sorted(changed, key=_by_change)[:20]


def _by_change(row: Row) -> float:
    """Return the sort key: rows without a relative change, because W was zero before, come first."""
    return -math.inf if row["delta_relative"] is None else -float(row["delta_relative"])


def _listed(differences: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows whose status is neither `same` nor `changed`, by status."""
    shown = ("resized", "added", "removed", "reshaped", "failed")
    found = {status: [row for row in differences if row["status"] == status] for status in shown}
    return {status: rows for status, rows in found.items() if rows}


def _value(row: Row, what: str) -> float | None:
    side = min(row["rows"], row["cols"])
    match what:
        case "abs_max":
            return None if row["max"] is None else float(max(abs(row["min"]), abs(row["max"])))
        case "stable":
            return None if row["stable_rank"] is None else row["stable_rank"] / side
        case "effective":
            return None if row["effective_rank"] is None else row["effective_rank"] / side
        case "lost":
            return None if row["rank_noise"] is None else row["rank_noise"] / side
        case "zeros":
            return float(row["sparsity"])
    return None if row[what] is None else float(row[what])


def _layer_plots(matrices: Sequence[Row], shades: Mapping[str, int]) -> list[Plot]:
    found = []
    for what, title, note in _PER_LAYER:
        series: dict[str, list[Point]] = {}
        for row in matrices:
            value = _value(row, what)
            if row["layer_index"] is not None and value is not None:
                series.setdefault(row["block_type"], []).append((float(row["layer_index"]), value))
        drawn = _by_layer(title, note, series, shades, log=what == "abs_max")
        if drawn is not None:
            found.append(drawn)
    return found


def _by_layer(
    title: str,
    note: str,
    series: Mapping[str, Sequence[Point]],
    shades: Mapping[str, int],
    *,
    log: bool = False,
) -> Plot | None:
    """Return lines over the layers; for a single layer, one row per block type."""
    means = _means(series)
    if len({layer for points in means.values() for layer, _ in points}) == 1:
        values = {name: points[0][1] for name, points in means.items()}
        return dots_by_name(title, note, values, shades=shades, log_x=log)
    return plot(title, note, means, shades=shades, log_y=log)


def _means(series: Mapping[str, Sequence[Point]]) -> dict[str, list[Point]]:
    """Return one point per layer: the mean if a layer has several matrices of a type, such as experts."""
    found: dict[str, list[Point]] = {}
    for name, points in series.items():
        layers: dict[float, list[float]] = {}
        for layer, value in points:
            layers.setdefault(layer, []).append(value)
        found[name] = [(layer, sum(values) / len(values)) for layer, values in layers.items()]
    return found


def _spectra(matrices: Sequence[Row]) -> list[Plot]:
    """Return a plot per block type with a line per layer; shades run from the first (0) to the last layer."""
    blocks: dict[str, dict[str, list[Point]]] = {}
    depths: dict[str, int] = {}
    last = max((row["layer_index"] or 0 for row in matrices), default=0) or 1
    for row in matrices:
        layer = row["layer_index"]
        name = f"layer {layer}" if layer is not None else str(row["param_name"])
        points = [(float(number), float(value)) for number, value in json.loads(row["spectrum"] or "[]")]
        blocks.setdefault(row["block_type"], {}).setdefault(name, points)
        depths[name] = round((layer or 0) / last * (SHADES - 1))
    drawn = [
        plot(block, "", series, shades=depths, log_x=True, log_y=True, dots=False)
        for block, series in blocks.items()
    ]
    return [one for one in drawn if one is not None]


def _difference_plots(rows: Sequence[Row], shades: Mapping[str, int]) -> list[Plot]:
    found = []
    for what, title, note in _DIFFERENCES:
        series: dict[str, list[Point]] = {}
        for row in rows:
            if (
                row["layer_index"] is not None
                and row.get(what) is not None
                and row["sigma_shift"] is not None
            ):
                series.setdefault(row["block_type"], []).append((float(row["layer_index"]), float(row[what])))
        drawn = _by_layer(title, note, series, shades)
        if drawn is not None:
            found.append(drawn)
    return found
