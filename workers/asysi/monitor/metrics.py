"""Every metric of A-Sys-I in one table, from which objects, collectors and the page in docs are made."""

from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

Type = Literal["counter", "gauge", "histogram", "summary"]


@dataclass(frozen=True)
class Metric:
    """A row of the table."""

    name: str
    """Name in `/metrics`; counters end in `_total`."""
    type: Type
    """Prometheus's type."""
    labels: tuple[str, ...]
    """Names of its labels."""
    served_by: str
    """The container whose `/metrics` shows it; a series is shown by one container only, so sums are right."""
    help: str
    """What it counts, in which unit."""
    source: str = ""
    """Name of its counterpart in the original design, where there is one."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, in its unit."""


_LATENCIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)

# fmt: off
METRICS = (
    # Of every worker.
    Metric("asysi_heartbeat_timestamp_seconds", "gauge", ("container",), "each",
           "Unix time of the last heartbeat of the worker's own loop.", "heartbeat"),
    Metric("asysi_ready", "gauge", ("container",), "each",
           "1 once start-up is over, else 0."),
    Metric("asysi_attempt", "gauge", (), "each",
           "Number of the attempt, from 0."),
    # Of the host, by way of the capture ring's control file.
    Metric("asysi_host_steps_total", "counter", (), "hook",
           "Steps that the model has begun."),
    Metric("asysi_host_steps_expected", "gauge", (), "hook",
           "Steps of the whole run; 0 when unknown."),
    Metric("asysi_host_steps_dropped_total", "counter", (), "hook",
           "Whole steps left out because the capture ring was full."),
    Metric("asysi_host_tokens_total", "counter", (), "hook",
           "Content tokens that the model has read."),
    Metric("asysi_host_tokens_expected", "gauge", (), "hook",
           "Content tokens of the whole run, all passes; 0 when unknown."),
    Metric("asysi_host_tokens_excluded_total", "counter", (), "hook",
           "Special and padding tokens that the model has read; they are never data."),
    Metric("asysi_host_forward_seconds_total", "counter", (), "hook",
           "Seconds spent in the model's forward, hooks included."),
    Metric("asysi_hook_latency_seconds", "summary", (), "hook",
           "Seconds that capture added to a step: the sum over all hook points, "
           "and the count of steps.", "hook_latency_ms"),
    Metric("asysi_capture_errors_total", "counter", (), "hook",
           "Exceptions kept away from the model by capture."),
    # Of the rings, by way of their control files: no restart resets them.
    Metric("asysi_data_bus_push_total", "counter", ("ring", "point"), "hook",
           "Packets published.", "data_bus_push_count"),
    Metric("asysi_data_bus_drop_total", "counter", ("ring", "reason"), "hook",
           "Rows dropped, by reason.", "data_bus_drop_count"),
    Metric("asysi_rows_seen_total", "counter", ("ring", "point"), "hook",
           "Rows offered to the ring (a row is one token at one hook point)."),
    Metric("asysi_rows_sampled_out_total", "counter", ("ring", "point"), "hook",
           "Rows left out by the sampling rate."),
    Metric("asysi_rows_published_total", "counter", ("ring", "point"), "hook",
           "Rows published."),
    Metric("asysi_consumer_rows_total", "counter", ("ring", "consumer", "fate"), "hook",
           "Rows by their fate at a consumer: durable, lapped (overwritten unread) "
           "or rolled_back (read after the last checkpoint of a consumer that was "
           "killed)."),
    Metric("asysi_consumer_lag_ratio", "gauge", ("ring", "consumer"), "hook",
           "Largest share of a shard's depth that the consumer has not read, 0 to 1."),
    Metric("asysi_consumer_up", "gauge", ("ring", "consumer"), "hook",
           "1 while the consumer holds its lock, else 0."),
    Metric("asysi_producer_restarts_total", "counter", ("ring",), "hook",
           "Times that the ring's producer was restarted."),
    Metric("asysi_sampling_rate", "gauge", (), "hook",
           "Share of the tokens kept from the next step on, 0 to 1."),
    # Of the hook worker itself.
    Metric("asysi_relay_latency_seconds", "histogram", (), "hook",
           "Seconds from the capture of a packet to its publication on the bus.", "", _LATENCIES),
    # Of the SAEs, by way of the bus's control file.
    Metric("asysi_sae_loss", "gauge", ("point",), "sae",
           "Training loss.", "sae_loss"),
    Metric("asysi_sae_fvu", "gauge", ("point",), "sae",
           "Fraction of variance unexplained on held-out content tokens."),
    Metric("asysi_sae_l0", "gauge", ("point",), "sae",
           "Latents that fire for a token, on average."),
    Metric("asysi_sae_dead_ratio", "gauge", ("point",), "sae",
           "Share of the latents that are dead, 0 to 1."),
    Metric("asysi_sae_rows_trained", "gauge", ("point",), "sae",
           "Rows that the SAE has been trained on."),
    # Of the archiver.
    Metric("asysi_archive_records_total", "counter", ("kind",), "archiver",
           "Records written, by kind: metrics or tensor."),
    Metric("asysi_archive_bytes_total", "counter", (), "archiver",
           "Bytes written to the archive."),
    Metric("asysi_archive_retired_rows_total", "counter", (), "archiver",
           "Durable rows deleted with the oldest segments to keep to archive.maxSize."),
    Metric("asysi_archive_segments_total", "counter", (), "archiver",
           "Segments closed with their footer."),
)
"""Every metric, in the order of the documentation."""
# fmt: on

_BY_NAME = {metric.name: metric for metric in METRICS}


def describe(name: str, kind: Type) -> Metric:
    """Return the row of the table.

    Raises:
        KeyError: the table has no metric of this name and type.
    """
    metric = _BY_NAME.get(name)
    if metric is None or metric.type != kind:
        raise KeyError(f"the table of metrics has no {kind} {name}")
    return metric


def counter(registry: CollectorRegistry, name: str) -> Counter:
    """Make and register the table's counter `name`; KeyError when the table has none."""
    metric = describe(name, "counter")
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


def gauge(registry: CollectorRegistry, name: str) -> Gauge:
    """Make and register the table's gauge `name`; KeyError when the table has none."""
    metric = describe(name, "gauge")
    return Gauge(metric.name, metric.help, metric.labels, registry=registry)


def histogram(registry: CollectorRegistry, name: str) -> Histogram:
    """Make and register the table's histogram `name`; KeyError when the table has none."""
    metric = describe(name, "histogram")
    return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)


def counter_family(name: str) -> CounterMetricFamily:
    """Return an empty family of the table's counter `name`, for a collector to fill."""
    metric = describe(name, "counter")
    return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)


def gauge_family(name: str) -> GaugeMetricFamily:
    """Return an empty family of the table's gauge `name`, for a collector to fill."""
    metric = describe(name, "gauge")
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def summary_family(name: str) -> SummaryMetricFamily:
    """Return an empty family of the table's summary `name`, for a collector to fill."""
    metric = describe(name, "summary")
    return SummaryMetricFamily(metric.name, metric.help, labels=metric.labels)


def render() -> str:
    """Return `docs/reference/metrics.md`: the table as Markdown."""
    head = (
        "# Metrics",
        "",
        "<!-- Made by `python -m asysi.monitor.metrics`; edit workers/asysi/monitor/metrics.py instead. -->",
        "",
        "Every container serves `/metrics`, `/livez`, `/readyz` and `/status` on a port of its own. What",
        "stands in the control files of the rings (rows, drops, lag, the host's progress) survives every",
        "restart and is served by `hook`. Each series is served by one container only, so that sums over a",
        "pod are right.",
        "",
        "| metric | type | labels | meaning | served by | in the original design |",
        "|---|---|---|---|---|---|",
    )
    return "\n".join([*head, *(_render_row(metric) for metric in METRICS), ""])


def _render_row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    source = f"`{metric.source}`" if metric.source else ""
    return f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} | {metric.served_by} | {source} |"


if __name__ == "__main__":
    print(render(), end="")
