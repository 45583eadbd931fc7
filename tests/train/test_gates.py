"""Baseline, thresholds and exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from asysi.cli import main
from asysi.contract.errors import ConfigError
from asysi.train.baseline import Baseline, BaselineFigure, compare, hold, read_baseline, write_baseline
from asysi.train.config import Threshold
from asysi.train.launch import parse_devices
from asysi.train.project import Project
from asysi.train.scaffold import TASKS, project_files
from asysi.train.table import digest_of

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
    assert read_baseline(file) == Baseline()
    write_baseline(file, {"accuracy": {"0": 0.9}, "loss": {"0": 0.3}}, config="digest", test_sha256="t")
    assert read_baseline(file).covers("t")
    assert not read_baseline(file).covers("another")
    read = read_baseline(file).metrics
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


@pytest.mark.parametrize("task", TASKS)
def test_a_project_has_a_baseline_of_several_seeds(task: str) -> None:
    """Both projects have figures of three seeds, each of which passes; accuracy may be half a point worse."""
    figures = Baseline.model_validate(json.loads(project_files(task)["baseline.json"])).metrics
    assert {"accuracy", "macro_f1"} <= set(figures)
    assert figures["accuracy"].tolerance == 0.005
    for name, figure in figures.items():
        assert (figure.direction, figure.kind) == ("higher", "absolute")
        assert set(figure.values) == {"0", "1", "2"}
        assert all(compare({name: value}, {name: figure})[0].passed for value in figure.values.values())
        worse = sum(figure.values.values()) / 3 - figure.tolerance - 0.001
        assert not compare({name: worse}, {name: figure})[0].passed


def test_a_baseline_is_passed_by_its_own_seeds(tmp_path: Path) -> None:
    """Where seeds differ by more than half a point, the written tolerance covers the worst of them."""
    file = tmp_path / "baseline.json"
    values = {
        "accuracy": {"0": 0.9, "1": 0.92, "2": 0.94},
        "loss": {"0": 0.3, "1": 0.5},
        "macro_f1": {"0": 0.5},
    }
    write_baseline(file, values)
    read = read_baseline(file).metrics
    assert read["macro_f1"].tolerance == 0.005
    assert 0.02 <= read["accuracy"].tolerance < 0.022
    assert 0.1 <= read["loss"].tolerance < 0.102
    for name, seeds in values.items():
        assert all(compare({name: value}, {name: read[name]})[0].passed for value in seeds.values())


def test_the_digits_baseline_is_of_the_table_that_is_made(digits: Path) -> None:
    """The shipped figures apply to the test table that the project makes, and to no other."""
    found = read_baseline(digits / "baseline.json")
    assert found.test_sha256 == digest_of(digits / "data/test.csv")
    assert not found.covers(digest_of(digits / "data/val.csv"))


@pytest.mark.parametrize(
    ("metrics", "of_this_table", "code"),
    [
        ({"accuracy": {"0": 1.0, "1": 1.0}}, True, 1),
        ({"accuracy": {"0": 0.0, "1": 0.0}}, True, 0),
        ({"accuracy": {"0": 1.0, "1": 1.0}}, False, 0),
        ({"auroc": {"0": 0.5}}, True, 1),
    ],
)
def test_the_gate_of_a_run(  # noqa: PLR0917 - fixtures
    digits: Path,
    project: Opened,
    tiny: list[str],
    tmp_path: Path,
    metrics: dict[str, dict[str, float]],
    of_this_table: bool,
    code: int,
) -> None:
    """A run that misses its baseline ends with 1; one of another test table is not compared, and says so."""
    project()
    table = digest_of(tmp_path / "test.csv") if of_this_table else "0" * 64
    write_baseline(tmp_path / "baseline.json", metrics, test_sha256=table)
    settings = [*FAST, *tiny, "train.epochs=1", f"eval.baseline={tmp_path}/baseline.json"]
    words = [word for setting in settings for word in ("--set", setting)]
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as leaving:
        main(["train", "run", "cpu", "--project", str(digits), "--output", str(out), *words])
    assert leaving.value.code == code
    report = json.loads((out / "report.json").read_text())
    assert len(report["gates"]) == of_this_table
    assert ("another test table" in report["baseline"]) is not of_this_table


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
