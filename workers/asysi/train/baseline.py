"""`baseline.json`: metric values that a run is compared with, and the thresholds of the configuration."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from pydantic import Field, ValidationError

from asysi.contract.errors import ConfigError
from asysi.files import write_atomic
from asysi.train.config import ConfigPart, Threshold

TOLERANCE = 0.005


class BaselineFigure(ConfigPart):
    """Values of a metric over several seeds, and how far from their mean a run may be."""

    values: dict[str, float] = Field(min_length=1)
    """By seed."""
    direction: Literal["higher", "lower"] = "higher"
    """Which is better."""
    tolerance: float = Field(default=TOLERANCE, ge=0)
    """Allowed distance on the worse side."""
    kind: Literal["absolute", "relative"] = "absolute"
    """Whether the tolerance is a difference, or a share of the mean."""


class Baseline(ConfigPart):
    """Contents of `baseline.json`."""

    config: str = ""
    """Digest of the trained configuration without its seed."""
    test_sha256: str | None = None
    """SHA-256 of the table on which the figures were measured; None if unknown."""
    metrics: dict[str, BaselineFigure] = Field(default_factory=dict)

    def covers(self, test_sha256: str | None) -> bool:
        """Whether its figures were measured on a table: figures of two tables cannot be compared."""
        return None in {self.test_sha256, test_sha256} or self.test_sha256 == test_sha256


@dataclass(frozen=True, slots=True)
class Gate:
    """A metric value compared with the value it must reach."""

    name: str
    value: float
    wanted: str
    """The condition, in words."""
    passed: bool
    note: str = ""
    """Further information: evidence, spread, an improvement."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def read_baseline(file: Path) -> Baseline:
    """Return a baseline, empty if there is no file.

    Raises:
        ConfigError: the file is not a baseline.
    """
    if not file.is_file():
        return Baseline()
    try:
        return Baseline.model_validate(json.loads(file.read_text()))
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"{file} is not a baseline: {' '.join(str(error).split())}") from error


def write_baseline(
    file: Path,
    figures: Mapping[str, Mapping[str, float]],
    *,
    config: str = "",
    test_sha256: str | None = None,
) -> None:
    """Write a baseline.

    The tolerance is half a percentage point, or what the worst of the seeds needs: a gate that the baseline's
    own runs miss would say nothing.

    Args:
        file: path of the baseline.
        figures: by metric, the value for each seed.
        config: digest of the trained configuration without its seed.
        test_sha256: of the table on which they were measured.
    """
    metrics = {name: _figure(name, values) for name, values in figures.items()}
    found = Baseline(config=config, test_sha256=test_sha256, metrics=metrics)
    write_atomic(file, json.dumps(found.model_dump(), indent=2) + "\n")


def _figure(name: str, values: Mapping[str, float]) -> BaselineFigure:
    sign = -1 if name == "loss" else 1
    worst = max(sign * (mean(values.values()) - value) for value in values.values())
    return BaselineFigure(
        values=dict(values),
        direction="higher" if sign > 0 else "lower",
        tolerance=max(TOLERANCE, math.ceil(worst * 1000) / 1000),
    )


def compare(figures: Mapping[str, float], baseline: Mapping[str, BaselineFigure]) -> list[Gate]:
    """Compare each figure of the baseline with the run's; a metric that was not measured fails."""
    return [_compared(name, figures.get(name), figure) for name, figure in baseline.items()]


def hold(figures: Mapping[str, float], thresholds: Sequence[Threshold]) -> list[Gate]:
    """Compare each threshold with the run's figure; a metric that was not measured fails."""
    verdicts = []
    for threshold in thresholds:
        value = figures.get(threshold.metric, float("nan"))
        low = threshold.min is None or value >= threshold.min
        high = threshold.max is None or value <= threshold.max
        bounds = [f"≥ {threshold.min:g}" if threshold.min is not None else ""]
        bounds.append(f"≤ {threshold.max:g}" if threshold.max is not None else "")
        wanted = " and ".join(filter(None, bounds))
        verdicts.append(Gate(threshold.metric, value, wanted, low and high, threshold.evidence))
    return verdicts


def _compared(name: str, value: float | None, figure: BaselineFigure) -> Gate:
    values = list(figure.values.values())
    middle = mean(values)
    margin = figure.tolerance * (abs(middle) if figure.kind == "relative" else 1)
    sign = 1 if figure.direction == "higher" else -1
    limit = middle - sign * margin
    bound = f"{'≥' if sign > 0 else '≤'} {limit:.4f}"
    wanted = f"{bound} (baseline {middle:.4f}, {figure.kind} tolerance {figure.tolerance:g})"
    if value is None:
        return Gate(name, float("nan"), wanted, passed=False, note="not measured in this run")
    spread = (
        f"spread over {len(values)} seeds: {stdev(values):.4f}"
        if len(values) > 1
        else "one seed: spread unknown"
    )
    better = sign * (value - middle) > margin
    note = spread + (
        "; better than the baseline by more than the tolerance: write a new one" if better else ""
    )
    return Gate(name, value, wanted, sign * (value - limit) >= -1e-12, note)
