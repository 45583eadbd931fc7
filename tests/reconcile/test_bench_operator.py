"""The arithmetic of the operator's benchmark, and that its page says what was found."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("bench_page", ROOT / "benchmarks" / "operator" / "page.py")
page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(page)


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1, 100), (0.001, 1)])
def test_a_quantile_is_one_of_the_values(share, value):
    """The smallest value that at least a share of all does not exceed."""
    assert page.quantile([float(one) for one in range(100, 0, -1)], share) == value


def test_the_committed_page_is_that_of_the_committed_figures():
    """docs/benchmarks/operator.md is made of operator.json, and of nothing else."""
    folder = ROOT / "docs" / "benchmarks"
    record = json.loads((folder / "operator.json").read_text())
    assert page.page(record["found"], record["facts"]) == (folder / "operator.md").read_text()


@pytest.mark.parametrize(("slowest", "verdict"), [(0.099, "kept"), (0.101, "missed")])
def test_the_page_says_whether_the_aim_is_kept(slowest, verdict):
    """The verdict is that of the p99 with all experiments present."""
    record = json.loads((ROOT / "docs" / "benchmarks" / "operator.json").read_text())
    found = record["found"] | {"beside": [0.01] * 98 + [slowest] * 2}
    assert f"| apply → Job, p99, ms | 100 | {slowest * 1000:.0f} | {verdict} |" in page.aims(found)


def test_counters_are_counted_apart():
    """What a life costs is said without the writes that bring nothing but counters."""
    life = {"phases": {"one": {"PATCH Job": 1.0, "PATCH ScanExperiment": 9.5}}, "count": 2, "counters": 13}
    assert page.beyond_counters(life) == 4.0
