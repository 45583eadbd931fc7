"""How far a pipeline is, as `asysi run` shows it: from what its shards write, whatever stands there."""

import json
from pathlib import Path

import pytest

from asysi_operator.local.display import line
from asysi_operator.local.pipeline_progress import progress
from asysi_operator.local.view import ProcessView, View


def write(output, shard, *nodes):
    """Write what a shard says of its nodes."""
    folder = output / "pipeline" / "0123" / shard
    folder.mkdir(parents=True)
    made = [{"node_id": name, "durable": rows, "total": total} for name, rows, total in nodes]
    (folder / "runtime.json").write_text(json.dumps({"nodes": made}))


def test_shards_are_added_up(tmp_path):
    """Each operator's rows are those of all shards together."""
    write(tmp_path, "shard-00000-of-00002", ("1_Template", 1000, 1200), ("2_Filter", 10, 1000))
    write(tmp_path, "shard-00001-of-00002", ("1_Template", 500, 1300), ("2_Filter", 0, None))
    assert progress(tmp_path) == "1_Template 1,500 of 2,500 rows, 2_Filter 10 of 1,000 rows"


def test_before_anything_is_written_nothing_is_known(tmp_path):
    """No folder, or an empty one, gives no text."""
    assert progress(tmp_path) == ""
    (tmp_path / "pipeline" / "0123").mkdir(parents=True)
    assert progress(tmp_path) == ""


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"nodes": 3}', '{"nodes": [7, {"durable": "x"}]}']
)
def test_whatever_stands_there_is_no_failure(tmp_path, text):
    """A file that is being written, or is something else, is passed over."""
    folder = tmp_path / "pipeline" / "0123"
    folder.mkdir(parents=True)
    (folder / "runtime.json").write_text(text)
    assert progress(tmp_path) == ""


def test_a_folder_that_goes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    """A pipeline begins in a new folder and the old one goes: to be asked just then ends no run."""
    write(tmp_path, "shard-00000-of-00001", ("1_Template", 5, 10))
    gone = tmp_path / "pipeline" / "gone"
    gone.mkdir()
    there = Path.is_dir

    def is_dir(path):
        answer = there(path)
        if path == gone and answer:
            gone.rmdir()
        return answer

    monkeypatch.setattr(Path, "is_dir", is_dir)
    assert progress(tmp_path) == "1_Template 5 of 10 rows"


def test_the_line_tells_it():
    """While the pipeline runs, its rows stand behind the container's state."""
    view = View("tiny", processes=(ProcessView("pipeline", "runs", 0),), rows="1_Template 5 of 10 rows")
    assert line(view).endswith("tiny: pipeline runs · 1_Template 5 of 10 rows")
