"""Builds one self-contained HTML page from the report's data."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from asysi.report import words
from asysi.report.data import (
    Browser,
    Comparison,
    Curve,
    Features,
    LayerRow,
    ReportData,
    Sentence,
    TimelineSection,
)
from asysi.report.definitions import DEFINITIONS
from asysi.report.packing import embed, pack


def build(data: ReportData) -> str:
    """Return the page. It lists missing parts; all text in `data` is escaped."""
    style, script = _file("static", "report.css"), _file("static", "report.js")
    environment = Environment(
        loader=DictLoader({"report.html": _file("templates", "report.html")}),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        count=words.count, percent=words.percent, decimal=words.decimal, figure=words.figure
    )
    names = [layer.name for layer in data.layers]
    return environment.get_template("report.html").render(
        data=data,
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        style_hash=_digest(style),
        script_hash=_digest(script),
        shape=_shape,
        trained=_trained(data.layers),
        shapes=list(dict.fromkeys(_shape(layer) for layer in data.layers)),
        short=dict(zip(names, words.short_names(names), strict=True)),
        sparklines={layer.name: sparkline(layer) for layer in data.layers},
        polyline=polyline,
        outliers=_outliers(data),
        spliced=max((layer.spliced[0] for layer in data.layers if layer.spliced), default=0),
        definitions=DEFINITIONS,
        payload=Markup(embed(payload(data))),  # noqa: S704 - embed() leaves nothing that could end the element
    )


def _file(folder: str, name: str) -> str:
    return resources.files("asysi.report").joinpath(folder, name).read_text(encoding="utf-8")


def _shape(layer: LayerRow) -> str:
    """Describe the size of an autoencoder."""
    size = f"{words.count(layer.latents)} latents of width {layer.width}"
    fires = f", {layer.k} of which fire for a token" if layer.k else ""
    calls = ", ".join(words.percent(fvu) for fvu in layer.fvu_calls)
    return size + fires + (f"; {len(layer.fvu_calls)} calls per forward pass, FVU {calls}" if calls else "")


def _trained(layers: tuple[LayerRow, ...]) -> str:
    """Describe how many rows the autoencoders were trained on; "" if unknown."""
    rows = sorted({layer.trained for layer in layers if layer.trained is not None})
    if not rows:
        return ""
    least, most = words.count(rows[0]), words.count(rows[-1])
    return f"trained on {least} rows" if len(rows) == 1 else f"trained on {least} to {most} rows"


def _outliers(data: ReportData) -> dict[str, str]:
    """Return, by layer, the name of the group of rows that holds most of the variance at its hook point."""
    by_path = {point.path: point.outlier for point in data.points}
    return {
        layer.name: next((name for path, name in by_path.items() if layer.name.endswith(path)), "")
        for layer in data.layers
    }


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def sparkline(layer: LayerRow) -> str:
    """Return the SVG path of the layer's density histogram in a 100 × 24 box; "" if it has none."""
    highest = max(layer.density, default=0)
    if not highest:
        return ""
    step = 100 / len(layer.density)
    tops = [24 - 23 * height / highest for height in layer.density]
    steps = "".join(f"L{i * step:.1f} {top:.1f}L{(i + 1) * step:.1f} {top:.1f}" for i, top in enumerate(tops))
    return f"M0 24{steps}L100 24Z"


def polyline(values: Sequence[float | None]) -> str:
    """Return the points of an SVG line through the known values in a 100 × 24 box, equally spaced."""
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    step, span = 100 / max(1, len(values) - 1), (high - low) or 1.0
    points = enumerate(values)
    return " ".join(
        f"{i * step:.1f},{23 - 22 * (one - low) / span:.1f}" for i, one in points if one is not None
    )


def payload(data: ReportData) -> dict[str, Any]:
    """Return the data that the page's script reads."""
    names = [layer.name for layer in data.layers]
    names += [curve.name for curve in data.curves if curve.name not in names]
    return {
        "short": dict(zip(names, words.short_names(names), strict=True)),
        "curves": [_curve(curve) for curve in data.curves],
        "timeline": None if data.timeline is None else _timeline(data.timeline),
        "comparisons": [_comparison(comparison) for comparison in data.comparisons],
        "browser": None if data.browser is None else _browser(data.browser),
    }


def _curve(curve: Curve) -> dict[str, Any]:
    series = {"loss": curve.loss, "fvu": curve.fvu, "l0": curve.l0, "dead": curve.dead}
    return {
        "name": curve.name,
        "trained": _rounded(curve.trained),
        **{
            name: [None if value is None else float(f"{value:.5g}") for value in values]
            for name, values in series.items()
        },
    }


def _timeline(timeline: TimelineSection) -> dict[str, Any]:
    return {
        "at": _rounded(timeline.at),
        "rate": _rounded(timeline.rate),
        "lag": {name: _rounded(values) for name, values in timeline.lag.items()},
        "dropped": _rounded(timeline.dropped),
        "offered": _rounded(timeline.offered),
        "events": [
            {"at": round(event.at, 2), "text": event.text, "kind": event.kind} for event in timeline.events
        ],
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "by": comparison.by,
        "note": comparison.note,
        "histograms": [
            {
                "name": histogram.name,
                "edges": _rounded(histogram.edges),
                "seen": _rounded(histogram.seen),
                "kept": _rounded(histogram.kept),
                "distance": round(histogram.distance, 6),
                "chance": None if histogram.chance is None else round(histogram.chance, 6),
            }
            for histogram in comparison.histograms
        ],
    }


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(float(value), 4) for value in values]


def _browser(browser: Browser) -> dict[str, Any]:
    corpus = browser.corpus
    return {
        "vocabulary": list(corpus.vocabulary),
        "tokens": pack(corpus.tokens),
        "starts": pack(corpus.starts),
        "rows": [str(row) for row in corpus.rows],  # JavaScript numbers are exact up to 2^53
        "heldOut": pack(corpus.held_out),
        "before": browser.before,
        "after": browser.after,
        "groups": list(browser.groups),
        "heldOutTokens": browser.held_out_tokens,
        "logitTokens": list(browser.logit_tokens),
        "features": [_features(features) for features in browser.features],
        "sentence": None if browser.sentence is None else _sentence(browser.sentence),
    }


def _features(features: Features) -> Mapping[str, Any]:
    return {
        "layer": features.layer,
        "latents": pack(features.latents),
        "density": pack(features.density),
        "maximum": pack(features.maximum),
        "explained": pack(features.explained),
        "contexts": pack(features.contexts.astype("u4")),
        "shades": pack(features.shades),
        "neighbours": pack(features.neighbours),
        "cosines": pack(features.cosines),
        "random": list(features.random),
        "best": list(features.best),
        "firings": pack(features.firings),
        "logits": None if features.logits is None else pack(features.logits.astype("u4")),
        "logitValues": None if features.logit_values is None else pack(features.logit_values),
    }


def _sentence(sentence: Sentence) -> Mapping[str, Any]:
    return {
        "document": sentence.document,
        "steps": [
            {
                "layer": step.layer,
                "latents": pack(step.latents),
                "values": pack(step.values),
                "each": int(step.latents.shape[1]),
            }
            for step in sentence.steps
        ],
    }
