"""The report of a run: `report.json` with all results, and the same as an HTML page."""

import base64
import io
import json
import math
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.files import write_atomic
from asysi.train.baseline import Baseline, Gate, compare, hold, read_baseline
from asysi.train.batches import BatchContract
from asysi.train.checkpoint import BEST, load_weights
from asysi.train.compression import compressed, stored_bytes
from asysi.train.config import TrainConfig
from asysi.train.data_loader import BatchLoader, TableDataset
from asysi.train.eval import EvalResult, evaluate
from asysi.train.metrics import intervals
from asysi.train.model import make_model
from asysi.train.project import Project

REPORT_JSON = "report.json"
REPORT_PAGE = "report.html"
_PACKAGES = ("asysi", "torch", "numpy", "pillow", "transformers", "torchvision", "scikit-learn")


def make_report(
    project: Project,
    out: Path,
    command: str,
    training: Mapping[str, Any] | None = None,
    history: list[dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Evaluate the best weights on the test table, write the report, and return it.

    Args:
        project: the trained project.
        out: folder of the run.
        command: command line that repeats the run.
        training: facts about the run from the trainer.
        history: figures of each epoch.

    Raises:
        ConfigError: there are no weights, or the test table cannot be used.
    """
    config = project.config
    model = make_model(config)
    load_weights(out / BEST, model)
    dataset = project.dataset("test")
    loader = BatchLoader(dataset, BatchContract(config.contract), config.train.batch_size)
    result = evaluate(model, loader, len(config.classes), worst=config.eval.worst)
    figures = {"loss": result.loss} | {name: result.figure(name) for name in config.eval.metrics}
    baseline = read_baseline(project.folder / config.eval.baseline) if config.eval.baseline else Baseline()
    comparable = baseline.covers(project.digest("test"))
    gates = [
        *(compare(figures, baseline.metrics) if comparable else ()),
        *hold(figures | (training or {}).get("figures", {}), config.eval.thresholds),
    ]
    report = {
        "task": config.task,
        "passed": all(gate.passed for gate in gates),
        "gates": [gate.to_dict() for gate in gates],
        "baseline": _baseline_note(baseline, comparable=comparable),
        "metrics": _metrics(config, result),
        "loss": result.loss,
        "calibration_error": result.calibration_error,
        "calibration": result.calibration.tolist(),
        "confusion": result.matrix.tolist(),
        "classes": config.classes,
        "compression": _variants(config, model, loader, result),
        "history": history or [],
        "training": dict(training or {}),
        "worst": [_example(dataset, config, *one) for one in result.worst],
        "data": _data(project, dataset),
        "command": command,
        "config": config.model_dump(mode="json"),
        "config_sha256": config.digest(),
        "seed": config.seed,
        "versions": versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_atomic(out / REPORT_JSON, json.dumps(_finite(report), indent=1, ensure_ascii=False) + "\n")
    write_atomic(out / REPORT_PAGE, page(report))
    return report


def _baseline_note(baseline: Baseline, *, comparable: bool) -> str:
    """Return why a run is not compared with a baseline; "" if it is."""
    if not baseline.metrics:
        return "no baseline: `asysi train baseline` writes one"
    if not comparable:
        return "not compared with the baseline, which was measured on another test table"
    return ""


def versions() -> dict[str, str]:
    """Return the versions of the software that a run depends on."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def page(report: Mapping[str, Any]) -> str:
    """Return the report as one HTML page without scripts or external resources."""
    from jinja2 import Environment, PackageLoader  # noqa: PLC0415 - only reports need it

    environment = Environment(loader=PackageLoader("asysi.train", "pages"), autoescape=True, trim_blocks=True)
    environment.filters |= {"percent": lambda share: f"{100 * share:.2f}%", "polyline": polyline}
    return environment.get_template("report.html.j2").render(report=report)


def polyline(values: list[float], width: int = 320, height: int = 90) -> str:
    """Return the points of an SVG line through equally spaced values, with the minimum at the bottom."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    span = (high - low) or 1.0
    step = width / max(1, len(values) - 1)
    points = [(number * step, height - (value - low) / span * height) for number, value in enumerate(values)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points if math.isfinite(y))


def _metrics(config: TrainConfig, result: EvalResult) -> dict[str, dict[str, float]]:
    found = intervals(
        result.matrix, config.eval.metrics, confidence=config.eval.confidence,
        resamples=config.eval.resamples, seed=config.seed,
    )  # fmt: skip
    return {name: asdict(interval) for name, interval in found.items()}


def _variants(
    config: TrainConfig, model: Any, loader: BatchLoader, plain: EvalResult
) -> list[dict[str, Any]]:
    if not config.eval.compression:
        return []
    names = config.eval.metrics
    rows = [{"variant": "model", "bytes": stored_bytes(model)} | {name: plain.figure(name) for name in names}]
    for variant in config.eval.compression:
        smaller, size = compressed(model, variant)
        result = evaluate(smaller, loader, len(config.classes))
        rows.append({"variant": variant, "bytes": size} | {name: result.figure(name) for name in names})
    return rows


def _data(project: Project, dataset: TableDataset) -> dict[str, Any]:
    return {
        "tables_sha256": project.digests(),
        "test_rows": dataset.dropped.rows,
        "test_dropped": dataset.dropped.reasons,
    }


def _example(  # noqa: PLR0917 - a row of EvalResult.worst
    dataset: TableDataset, config: TrainConfig, loss: float, index: int, predicted: int, probability: float
) -> dict[str, Any]:
    raw = dataset.get_raw_data(index)
    shown = {"image": _png(raw["image"])} if "image" in raw else {"text": str(raw.get("text", ""))[:400]}
    return {
        "row": dataset.row(index), "loss": loss, "label": config.classes[dataset.label(index)],
        "prediction": config.classes[predicted], "probability": probability, **shown,
    }  # fmt: skip


def _png(image: Any) -> str:
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _finite(value: Any) -> Any:
    """Return a tree in which numbers that JSON cannot represent are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def explain(report: Mapping[str, Any]) -> list[str]:
    """Return the outcome of a run as lines for the terminal."""
    lines = []
    for name, one in report["metrics"].items():
        lines.append(f"{name:>18}  {one['value']:.4f}  ({one['low']:.4f} to {one['high']:.4f})")
    for gate in report["gates"]:
        mark = "✓" if gate["passed"] else "✗"
        lines.append(f"{mark} {gate['name']} {gate['value']:.4f}, wanted {gate['wanted']}")
    if report["baseline"]:
        lines.append(report["baseline"])
    return lines


def read_report(out: Path) -> dict[str, Any]:
    """Return a run's report.

    Raises:
        ConfigError: there is none.
    """
    try:
        found: dict[str, Any] = json.loads((out / REPORT_JSON).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out / REPORT_JSON} cannot be read: train the project first") from error
    return found


def failures(report: Mapping[str, Any]) -> list[Gate]:
    """Return the comparisons that failed."""
    return [Gate(**gate) for gate in report["gates"] if not gate["passed"]]


def print_lines(lines: list[str]) -> None:
    """Print to the terminal."""
    sys.stdout.write("\n".join(lines) + "\n")
