"""The table of metrics, its page, and the objects made from it."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from asysi.monitor.metrics import METRICS, counter, gauge, histogram, render

PAGE = Path(__file__).parents[2] / "docs/reference/metrics.md"


def test_the_page_is_the_table():
    """docs/reference/metrics.md is what the table renders; `python -m asysi.monitor.metrics` makes it."""
    assert PAGE.read_text() == render()


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric):
    """Names have the prefix and base units, counters and only they end in _total; each has a sentence."""
    assert re.fullmatch(r"asysi_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.type == "counter")
    assert not re.search(r"_(ms|us|milliseconds|kb|mb|percent)(_|$)", metric.name)
    assert metric.help.endswith(".")
    assert bool(metric.buckets) == (metric.type == "histogram")


def test_names_are_distinct():
    """No name stands twice in the table."""
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@pytest.mark.parametrize(
    "word", ["data_bus_push_count", "data_bus_drop_count", "hook_latency_ms", "sae_loss", "heartbeat"]
)
def test_every_metric_of_the_original_design_has_its_counterpart(word):
    """The names of the original design stand beside ours."""
    assert word in {metric.source for metric in METRICS}


def test_objects_carry_the_tables_names_and_labels():
    """What is made from the table appears in the exposition under the table's name."""
    registry = CollectorRegistry()
    makers = {"counter": counter, "gauge": gauge, "histogram": histogram}
    for metric in METRICS:
        if metric.type in makers:
            made = makers[metric.type](registry, metric.name)
            if metric.labels:
                made.labels(*metric.labels)
    text = generate_latest(registry).decode()
    for metric in METRICS:
        assert metric.type not in makers or f"# TYPE {metric.name} {metric.type}" in text


def test_a_metric_outside_the_table_cannot_be_made():
    """A name that the page does not have, or of another type, is an error."""
    with pytest.raises(KeyError, match="no gauge asysi_invented"):
        gauge(CollectorRegistry(), "asysi_invented")
    with pytest.raises(KeyError, match="no gauge asysi_data_bus_push_total"):
        gauge(CollectorRegistry(), "asysi_data_bus_push_total")
