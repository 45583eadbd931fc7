"""Evaluation and report."""

import json
from pathlib import Path

from train.report import make_report
from train.trainer import SupervisedTrainer

from asysi.train.project import Project


def test_the_report_repeats_the_evaluation(short: Project, tmp_path: Path) -> None:
    """The report's accuracy is that of its confusion matrix, and its line runs it again."""
    trainer = SupervisedTrainer(short, tmp_path)
    trainer.fit()
    report = make_report(short, tmp_path, "sh train.sh cpu", {"steps": trainer.step}, trainer.history)
    matrix = report["confusion"]
    right = sum(matrix[number][number] for number in range(len(matrix)))
    assert report["metrics"]["accuracy"]["value"] == right / sum(map(sum, matrix))
    assert json.loads((tmp_path / "report.json").read_text())["command"] == "sh train.sh cpu"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
