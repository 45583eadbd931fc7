"""docs/extending.md: what it says must be done is enough."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from asysi.monitor import metrics

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text()


def _section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_a_metric_is_one_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row in the table is all that a counter and its line on the reference page need."""
    row = metrics.Metric("asysi_example_total", "counter", ("point",), "sae", "Rows that somebody looked at.")
    with pytest.raises(KeyError):
        metrics.counter(CollectorRegistry(), row.name)
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, row))
    monkeypatch.setitem(metrics._BY_NAME, row.name, row)
    registry = CollectorRegistry()
    metrics.counter(registry, row.name).labels("a.b").inc(3)
    assert registry.get_sample_value("asysi_example_total", {"point": "a.b"}) == 3
    assert "| `asysi_example_total` | counter | `point` | Rows that somebody looked at. |" in metrics.render()


def test_a_bus_is_a_class_and_a_row() -> None:
    """The row that the page shows is one of the suite's, and every file that the page names is there."""
    section = _section("Add a bus")
    (row,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    root = Path(__file__).parents[2]
    suite = (root / "tests/bus/test_stream_conformance.py").read_text()
    assert textwrap.dedent(row).strip() in textwrap.dedent(suite.split("KINDS = {\n")[1].split("\n}")[0])
    named = re.findall(r"`((?:workers|tests)/[\w/.]+)`", section)
    assert named
    assert all((root / name).exists() for name in named)


def test_an_operator_of_ones_own_runs_as_the_page_has_it(tmp_path: Path) -> None:
    """The page's class and YAML file, beside each other, run with `asysi pipeline run`."""
    pytest.importorskip("orjson")
    section = _section("Add an operator of the pipeline")
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL))
    (tmp_path / "shorten.py").write_text(blocks["python"])
    (tmp_path / "short.yaml").write_text(blocks["yaml"])
    (tmp_path / "rows.jsonl").write_text('{"text": "one two three"}\n{"text": "four"}\n')
    command = [str(Path(sys.executable).with_name("asysi")), "pipeline", "run", "short.yaml", "--plain"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    rows = [json.loads(line) for line in (tmp_path / "short.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["one two", "four"]
