"""Baseline, thresholds and exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from asysi.cli import main
from asysi.contract.errors import ConfigError
from asysi.train.baseline import BaselineFigure, compare, hold, read_baseline, write_baseline
from asysi.train.config import Threshold
from asysi.train.launch import parse_devices
from asysi.train.project import Project

from .conftest import FAST

Opened = Callable[..., Project]


@pytest.mark.parametrize(
    ("figure", "value", "passed"),
    [
        ({"values": {"0": 0.98}}, 0.975, True),
        ({"values": {"0": 0.98}}, 0.9749, False),
        ({"values": {"0": 0.98}}, 1.0, True),
        ({"values": {"0": 0.97, "1": 0.99}}, 0.976, True),
        ({"values": {"0": 0.5}, "kind": "relative"}, 0.4974, False),
        ({"values": {"0": 0.5}, "kind": "relative"}, 0.4976, True),
        ({"values": {"0": 0.2}, "direction": "lower"}, 0.2049, True),
        ({"values": {"0": 0.2}, "direction": "lower"}, 0.2051, False),
        ({"values": {"0": 0.2}, "direction": "lower"}, 0.0, True),
    ],
)
def test_a_figure_may_be_half_a_percent_worse(figure: dict[str, object], value: float, passed: bool) -> None:
    """The tolerance is on the worse side, absolute or relative to the mean over the seeds."""
    [gate] = compare({"m": value}, {"m": BaselineFigure.model_validate(figure)})
    assert gate.passed is passed


def test_a_figure_that_was_not_measured_fails() -> None:
    """A metric of the baseline or of a threshold that the run does not have is missed, not skipped."""
    [gate] = compare({}, {"m": BaselineFigure(values={"0": 1.0})})
    assert not gate.passed
    [gate] = hold({}, [Threshold(metric="m", min=0.1, evidence="measured somewhere")])
    assert not gate.passed


def test_an_improvement_is_said() -> None:
    """A figure better than the tolerance allows passes, and the note asks for another baseline."""
    [gate] = compare({"m": 0.99}, {"m": BaselineFigure(values={"0": 0.9, "1": 0.92})})
    assert gate.passed
    assert "write a new one" in gate.note
    assert "2 seeds" in gate.note


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Directions follow the metric; a damaged file is refused; without a file there is nothing to compare."""
    file = tmp_path / "baseline.json"
    assert read_baseline(file) == {}
    write_baseline(file, {"accuracy": {"0": 0.9}, "loss": {"0": 0.3}}, "digest")
    read = read_baseline(file)
    assert (read["accuracy"].direction, read["loss"].direction) == ("higher", "lower")
    file.write_text('{"metrics": {"accuracy": {"value": 1}}}')
    with pytest.raises(ConfigError, match="is not a baseline"):
        read_baseline(file)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ([], 0),
        (["eval.thresholds=[{metric: accuracy, min: 1.01, evidence: cannot be reached}]"], 1),
        (["train.epoch=1"], 2),
        (["data.train=nowhere.csv"], 2),
        (["model={_target_: train.model.NoModel}"], 2),
        (["data.mixup={_target_: train.augmentation.MixUp, alpha: -1.0}"], 2),
    ],
)
def test_exit_codes(  # noqa: PLR0917 - fixtures
    digits: Path, project: Opened, tiny: list[str], tmp_path: Path, change: list[str], code: int
) -> None:
    """0 done, 1 a threshold is missed, 2 wrong configuration or data: with 2 there is no folder of a run."""
    project()  # its modules are forgotten after the test
    settings = [*FAST, *tiny, "train.epochs=1", *change]
    words = [word for setting in settings for word in ("--set", setting)]
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as leaving:
        main(["train", "run", "cpu", "--project", str(digits), "--output", str(out), *words])
    assert leaving.value.code == code
    assert out.exists() is (code < 2)
    if code < 2:
        assert json.loads((out / "report.json").read_text())["passed"] is (code == 0)


def test_an_unknown_key_is_named_with_its_line(digits: Path) -> None:
    """A mistake in the configuration names the file or option, the path, and the key that was meant."""
    from asysi.train.config import load_config

    with pytest.raises(ConfigError, match=r"train\.epoch is not a known key: did you mean epochs\?"):
        load_config(digits / "config.yaml", ["train.epoch=1"])
    with pytest.raises(ConfigError, match=r"train\.monitor is 'f1', which eval\.metrics does not list"):
        load_config(digits / "config.yaml", ["train.monitor=f1"])


def test_devices() -> None:
    """cpu, several processes, and GPUs are named; anything else is refused in words."""
    assert parse_devices("cpu") == ["cpu"]
    assert parse_devices("cpu:2") == ["cpu", "cpu"]
    assert parse_devices("1,2") == ["1", "2"]
    for wrong in ("gpu", "1,1", "cpu:0", "", "-1"):
        with pytest.raises(ConfigError, match="names no devices"):
            parse_devices(wrong)
