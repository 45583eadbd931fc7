"""An experiment's pipeline as the processes that a Job's pods, or a local run, start."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asysi.contract.errors import ConfigError
from asysi.contract.loading import check
from asysi.contract.rows import pipeline_folder, read_rows
from asysi.contract.runtime import Exit
from asysi.contract.spec import ScanExperiment
from asysi.pipeline.job import settle

ROWS = 300
SLOW = "{% for _ in range(20000) %}{% endfor %}<{{ text }}>"
"""A template that takes about a millisecond."""


class Volume:
    """A folder in the place of the claim: an input, an output, and processes over them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "output"
        self.source = folder / "text.jsonl"
        self.write("row")
        self.words = folder / "termination"

    def write(self, word: str) -> None:
        """Write the input."""
        rows = (json.dumps({"_i": row, "text": f"{word} {row}"}) for row in range(ROWS))
        self.source.write_text("".join(f"{row}\n" for row in rows))

    def experiment(self, **pipeline: Any) -> ScanExperiment:
        """Return an experiment over the input."""
        operators = [{"operator": "template", "params": {"fields": {"text": SLOW}}}]
        writer = {"flushBatchSize": 5, "flushInterval": 0.05}
        made = {"operators": operators, "shards": 2, "writer": writer, **pipeline}
        return check(
            {
                "metadata": {"name": "tiny"},
                "spec": {
                    "model": {"uri": "file:///model"},
                    "data": {"uri": f"jsonl://{self.source}", "pipeline": made},
                    "workload": {"scan": {}},
                    "capture": {"hookPoints": ["*"]},
                },
            }
        )

    def start(self, experiment: ScanExperiment, index: int | None) -> "subprocess.Popen[bytes]":
        """Start the process of a shard, or of all of them."""
        (self.folder / "experiment.json").write_text(experiment.model_dump_json(by_alias=True))
        environment = os.environ | {
            "ASYSI_CONFIG": str(self.folder / "experiment.json"),
            "ASYSI_OUTPUT": str(self.output),
            "ASYSI_SHM": str(self.folder),
            "ASYSI_WORKSPACE": str(self.folder),
            "ASYSI_TERMINATION": str(self.words),
            **({} if index is None else {"JOB_COMPLETION_INDEX": str(index)}),
        }
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "asysi.pipeline.job"]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def run(self, experiment: ScanExperiment, index: int | None = None) -> int:
        """Run it to its end and return the exit code."""
        return self.start(experiment, index).wait(60)

    def halfway(self, experiment: ScanExperiment, index: int) -> "subprocess.Popen[bytes]":
        """Start the process of a shard and return it once some rows are there, and not all."""
        process = self.start(experiment, index)
        assert experiment.spec.data is not None
        folder = self.output / pipeline_folder(experiment.spec.data)
        deadline = time.monotonic() + 60
        rows = f"rows.shard-{index:05d}-*.jsonl"
        while sum(file.stat().st_size for file in folder.glob(rows)) < 1000:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return process

    def rows(self, experiment: ScanExperiment) -> list[Any]:
        """Return what the model would read."""
        assert experiment.spec.data is not None
        file = Path(read_rows(experiment.spec.data, self.output).uri.removeprefix("jsonl://"))
        return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """An input and an empty output."""
    return Volume(tmp_path)


EXPECTED = [{"_i": row, "text": f"<row {row}>"} for row in range(ROWS)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, Exit.TERMINATED)])
def test_a_shard_that_ends_early_goes_on(volume, number, code):
    """Killed or asked to end, it resumes behind its ledger; the rows are each there once, in order."""
    experiment = volume.experiment()
    process = volume.halfway(experiment, 0)
    process.send_signal(number)
    assert process.wait(30) == code
    with pytest.raises(ConfigError, match="shards are not done"):
        settle(experiment, volume.output)
    assert [volume.run(experiment, index) for index in (0, 1, 1)] == [0, 0, 0]
    assert "begins at row" in (volume.folder / "log").read_text()
    assert settle(experiment, volume.output) == settle(experiment, volume.output)
    assert volume.rows(experiment) == EXPECTED


@pytest.mark.parametrize("shards", [1, 3])
def test_without_a_job_one_process_runs_all(volume, shards):
    """Where nobody tells an index, every shard runs here, and prepare finds the same rows."""
    experiment = volume.experiment(shards=shards)
    assert volume.run(experiment) == Exit.OK
    assert settle(experiment, volume.output).rows == ROWS
    assert volume.rows(experiment) == EXPECTED


def test_an_input_that_has_changed_is_refused(volume):
    """Rows of two inputs would be nobody's: exit code 2, and the last words say what to do."""
    experiment = volume.experiment()
    volume.run(experiment, 0)
    volume.write("another row")
    assert volume.run(experiment, 1) == Exit.CONFIG
    assert "was changed after the pipeline over it had begun" in volume.words.read_text()


def test_a_row_that_cannot_be_processed_is_a_failure(volume):
    """Exit code 1, so that the shard is tried again, with the row in its last words."""
    fields = {"fields": {"text": "{{ missing }}"}}
    experiment = volume.experiment(shards=1, operators=[{"operator": "template", "params": fields}])
    assert volume.run(experiment, 0) == Exit.FAILED
    assert "row 0" in volume.words.read_text()


def test_a_spent_budget_cannot_be_tried_again_but_raised(volume, monkeypatch):
    """Exit code 2 while the budget is what it was; with a higher one the pipeline goes on."""
    (volume.folder / "paying.py").write_text(
        "from asysi.pipeline import BaseOperator\n"
        "class Paying(BaseOperator):\n"
        "    def process_item(self, item, ctx=None):\n"
        "        ctx.report_usage({'cost': 1.0})\n"
        "        return item\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(volume.folder), os.environ.get("PYTHONPATH", "")]))
    paying: Callable[[float], ScanExperiment] = lambda cost: volume.experiment(  # noqa: E731
        shards=1, operators=[{"operator": "paying:Paying"}], budget={"cost": cost}
    )
    assert volume.run(paying(100.0), 0) == Exit.CONFIG
    assert "spec.data.pipeline.budget is spent" in volume.words.read_text()
    assert volume.run(paying(1000.0), 0) == Exit.OK
    assert settle(paying(1000.0), volume.output).rows == ROWS


def test_a_changed_operator_says_what_leads_out_of_an_experiment(volume, monkeypatch):
    """No flag can be given to a Job: the refusal names the folder to delete, and that leads out."""
    module = volume.folder / "marking.py"
    text = "WORD = 'a'\ndef mark(items):\n    return [{**item, 'word': WORD} for item in items]\n"
    module.write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(volume.folder), os.environ.get("PYTHONPATH", "")]))
    experiment = volume.experiment(shards=1, operators=[{"operator": "marking:mark"}])
    assert volume.run(experiment, 0) == Exit.OK
    module.write_text(text.replace("'a'", "'b'"))
    assert volume.run(experiment, 0) == Exit.CONFIG
    said = volume.words.read_text()
    folder = volume.output / pipeline_folder(experiment.spec.data)
    assert "its module marking was changed" in said
    assert f"delete {folder} to start over" in said
    shutil.rmtree(folder)
    assert volume.run(experiment, 0) == Exit.OK
    assert volume.rows(experiment)[0]["word"] == "b"


def test_what_changes_rows_has_a_folder_of_its_own(volume):
    """Another operator, input or split begins anew; where and for how much it runs does not."""
    folder = lambda **pipeline: pipeline_folder(volume.experiment(**pipeline).spec.data)  # noqa: E731
    assert folder(shards=3) != folder()
    assert folder(operators=[{"operator": "template", "params": {"fields": {"text": "x"}}}]) != folder()
    same = {
        "cpus": 2.0,
        "memory": "2Gi",
        "parallelism": 1,
        "budget": {"cost": 1.0},
        "secretRefs": [{"name": "k"}],
    }
    assert folder(**same) == folder()
    assert read_rows(check(_plain(volume)).spec.data, volume.output).uri == f"jsonl://{volume.source}"


def _plain(volume: Volume) -> dict[str, Any]:
    tree = volume.experiment().model_dump(mode="json", by_alias=True)
    tree["spec"]["data"]["pipeline"] = None
    return tree


@pytest.mark.parametrize("shards", [1, 2])
def test_rows_of_an_operator_go_where_it_says(volume, shards):
    """outputUri: relative to the pipeline's folder, or absolute; the model reads what the last one writes."""
    field = {"fields": {"text": "<{{ text }}>"}}
    operators = [
        {"operator": "template", "params": field, "outputUri": f"csv://{volume.folder}/first.csv"},
        {"operator": "template", "params": field, "outputUri": "jsonl://kept/last.jsonl"},
    ]
    experiment = volume.experiment(shards=shards, operators=operators)
    assert volume.run(experiment) == Exit.OK
    assert settle(experiment, volume.output).rows == ROWS
    assert volume.rows(experiment) == [{"_i": row, "text": f"<<row {row}>>"} for row in range(ROWS)]
    folder = volume.output / pipeline_folder(experiment.spec.data)
    assert (folder / "kept" / "last.jsonl.done").exists()
    first = sorted(volume.folder.glob("first*.csv"))
    assert sum(len(file.read_text().splitlines()) - 1 for file in first) == ROWS


def test_the_last_operator_writes_what_the_model_reads(volume):
    """Another format than JSON lines cannot be read by the model: refused, by path."""
    operators = [{"operator": "template", "params": {"fields": {"text": "x"}}, "outputUri": "csv://a.csv"}]
    assert volume.run(volume.experiment(shards=1, operators=operators)) == Exit.CONFIG
    assert "spec.data.pipeline.operators[0].outputUri is csv://a.csv" in volume.words.read_text()
