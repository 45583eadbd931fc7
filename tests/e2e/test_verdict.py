"""What a run says of itself when its data is not as it should be: terminal, exit code, verdict, page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long  # whole experiments

MODELS = '''
import torch

WIDTH = 32


class Model(torch.nn.Module):
    """An embedding and two layers; what lies between them differs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(200, WIDTH)
        self.first = torch.nn.Linear(WIDTH, WIDTH)
        self.last = torch.nn.Linear(WIDTH, WIDTH)


class Routed(Model):
    """`late` is left out for short sequences, as those of the trial are, and `never` always."""

    def __init__(self):
        super().__init__()
        self.late = torch.nn.Linear(WIDTH, 2 * WIDTH)
        self.never = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids, attention_mask=None):
        x = self.first(self.embed(input_ids))
        if len(input_ids.unique()) > 20:  # the trial repeats one token
            x = x + self.late(x)[..., :WIDTH]
        return self.last(x)


class Overflowing(Model):
    """In float16 every row of `first` is infinite, and of `last` some are; nothing infinite is passed on."""

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        self.first(x * 60000)
        big = (input_ids % 16 == 3).unsqueeze(-1)
        return self.last(torch.where(big, x * 60000, x))
'''


@pytest.fixture
def models(tmp_path: Path, model: Path) -> Callable[..., Callable[[dict[str, Any]], None]]:
    """A function that makes a change of the spec: one of the models above, beside the spec file."""
    (tmp_path / "mymodels.py").write_text(MODELS)

    def choose(
        name: str, points: list[str], trained: list[str], **more: Any
    ) -> Callable[[dict[str, Any]], None]:
        def change(spec: dict[str, Any]) -> None:
            spec["model"] = {"uri": f"python://mymodels:{name}", "tokenizer": str(model), **more}
            spec["capture"]["hookPoints"] = points
            spec["sae"]["train"][0]["hookPoints"] = trained

        return change

    return choose


def _verdict(run: Any) -> dict[str, Any]:
    return json.loads((run.output / "verdict.json").read_text())


def _said(run: Any) -> str:
    return (run.output.parent / f"{run.name}.out").read_text()


def test_a_module_that_the_trial_misses_is_captured_and_trained(
    scan: Callable, start: Callable, models: Callable
) -> None:
    """Rows of a module that only later batches reach are kept and trained on; one that is never called is a
    warning while no trainer names it.
    """
    from asysi.archive.dataset import MScanDataset

    run = start(scan("routed", models("Routed", ["first", "late", "never"], ["first", "late"])))
    assert run.finish() == 0, run.text()
    assert "does not call late, never" in run.text()
    points = {point["path"]: point for point in run.ledger()["points"]}
    assert points["late"]["capture"]["seen"] == points["first"]["capture"]["seen"] > 0
    assert (
        len(MScanDataset(run.output).metrics("late"))
        == points["late"]["consumers"]["archiver"]["durable"]
        > 0
    )
    config = json.loads((run.output / "sae" / "topk" / "late" / "cfg.json").read_text())
    assert config["d_in"] == 64
    (finding,) = [one for one in _verdict(run)["findings"] if one["reason"] == "NeverCalled"]
    assert (finding["level"], finding["points"]) == ("warning", ["never"])
    assert _verdict(run)["level"] == "warning"
    assert f"! {run.name} finished (exit 0)" in _said(run)


def test_a_trained_point_that_is_never_called_fails_the_run(
    scan: Callable, start: Callable, models: Callable
) -> None:
    """Whoever trains on a hook point that the model never calls gets no SAE, exit code 1 and a sentence."""
    run = start(scan("never", models("Routed", ["first", "never"], ["*"])))
    assert run.finish() == 1, run.text()
    finding = _verdict(run)["findings"][0]
    assert (finding["level"], finding["reason"], finding["points"]) == ("fail", "NoResult", ["never"])
    said = _said(run)
    assert "✕ Trainer topk has no result at never: the model never called it." in said
    assert "INFO" not in said


@pytest.mark.parametrize(("trained", "code"), [(["last"], 0), (["first", "last"], 1)], ids=["some", "all"])
def test_float16_overflow(
    scan: Callable, start: Callable, models: Callable, trained: list[str], code: int
) -> None:
    """Infinite rows are never trained on, counted and warned of; a trained point with no finite row fails."""
    run = start(
        scan(
            f"overflow{code}",
            lambda spec: (
                models("Overflowing", ["first", "last"], trained, dtype="float16")(spec),
                spec["capture"].update(quantization="none"),
            ),
        )
    )
    assert run.finish() == code, run.text()
    points = {point["path"]: point for point in _verdict(run)["points"]}
    ledger = {point["path"]: point for point in run.ledger()["points"]}
    assert points["first"]["notFinite"] == ledger["first"]["capture"]["published"] > 0
    assert 0 < points["last"]["notFinite"] < points["last"]["kept"]
    findings = {one["reason"]: one for one in _verdict(run)["findings"]}
    assert set(findings["RowsNotFinite"]["points"]) == {"first", "last"}
    assert ("NoResult" in findings) is (code == 1)
    config = json.loads((run.output / "sae" / "topk" / "last" / "cfg.json").read_text())
    assert config["d_in"] == 32
    assert not (run.output / "sae" / "topk" / "first").exists()
    training = json.loads((run.output / "sae" / "topk" / "training.json").read_text())["points"]
    assert 0 < training["last"]["not_finite"] < training["last"]["received"]
    assert training["last"]["fvu"] < 1
    said = _said(run)
    assert f"{'!✕'[code]} {run.name} " in said
    assert "INFO" not in said
    if code:
        assert "contain NaN or infinity" in findings["NoResult"]["text"]
        assert training["first"]["trained"] == 0
    page = (run.output / "report.html").read_text()
    assert "NaN or infinity" in page
    assert ("mean of 1 of 2: the rest has none" in page) is (code == 1)
