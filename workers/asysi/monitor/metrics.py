"""All metrics of A-Sys-I in one table; metric objects, collectors and the docs page are generated from it."""

from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

Type = Literal["counter", "gauge", "histogram", "summary"]


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    name: str
    """Name in `/metrics`; counters end in `_total`."""
    type: Type
    """Prometheus type."""
    labels: tuple[str, ...]
    """Names of its labels."""
    served_by: str
    """Container whose `/metrics` exposes it; only one container exposes a series, so sums are correct."""
    help: str
    """Description with unit."""
    source: str = ""
    """Name of its counterpart in the original design, if any."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, in its unit."""


_LATENCIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)

# fmt: off
METRICS = (
    # Every worker.
    Metric("asysi_heartbeat_timestamp_seconds", "gauge", ("container",), "each",
           "Unix time of the last heartbeat of the worker's own loop.", "heartbeat"),
    Metric("asysi_ready", "gauge", ("container",), "each",
           "1 once startup is complete, else 0."),
    Metric("asysi_attempt", "gauge", (), "each",
           "Number of the attempt, from 0."),
    # The host, read from the capture ring's control file.
    Metric("asysi_host_steps_total", "counter", (), "hook",
           "Steps started by the model."),
    Metric("asysi_host_steps_expected", "gauge", (), "hook",
           "Steps of the whole run; 0 if unknown."),
    Metric("asysi_host_steps_dropped_total", "counter", (), "hook",
           "Whole steps skipped because the capture ring was full."),
    Metric("asysi_host_tokens_total", "counter", (), "hook",
           "Content tokens read by the model."),
    Metric("asysi_host_tokens_expected", "gauge", (), "hook",
           "Content tokens of the whole run, over all passes; 0 if unknown."),
    Metric("asysi_host_tokens_excluded_total", "counter", (), "hook",
           "Special and padding tokens read by the model; they are never data."),
    Metric("asysi_host_forward_seconds_total", "counter", (), "hook",
           "Seconds spent in the model's forward pass, including hooks."),
    Metric("asysi_hook_latency_seconds", "summary", (), "hook",
           "Seconds that capture added to a step: the sum over all hook points, "
           "and the count of steps.", "hook_latency_ms"),
    Metric("asysi_capture_errors_total", "counter", (), "hook",
           "Exceptions suppressed by capture."),
    # The rings, read from their control files; restarts do not reset them.
    Metric("asysi_data_bus_push_total", "counter", ("ring", "point"), "hook",
           "Packets published.", "data_bus_push_count"),
    Metric("asysi_data_bus_drop_total", "counter", ("ring", "reason"), "hook",
           "Rows dropped, by reason.", "data_bus_drop_count"),
    Metric("asysi_rows_seen_total", "counter", ("ring", "point"), "hook",
           "Rows offered to the ring (a row is one token at one hook point)."),
    Metric("asysi_rows_sampled_out_total", "counter", ("ring", "point"), "hook",
           "Rows skipped by the sampling rate."),
    Metric("asysi_rows_published_total", "counter", ("ring", "point"), "hook",
           "Rows published."),
    Metric("asysi_consumer_rows_total", "counter", ("ring", "consumer", "fate"), "hook",
           "Rows by their fate at a consumer: durable, lapped (overwritten unread) "
           "or rolled_back (read after the last checkpoint of a consumer that was "
           "killed)."),
    Metric("asysi_consumer_lag_ratio", "gauge", ("ring", "consumer"), "hook",
           "Largest unread share of a shard's depth, 0 to 1."),
    Metric("asysi_consumer_up", "gauge", ("ring", "consumer"), "hook",
           "1 while the consumer holds its lock, else 0."),
    Metric("asysi_producer_restarts_total", "counter", ("ring",), "hook",
           "Number of restarts of the ring's producer."),
    Metric("asysi_sampling_rate", "gauge", (), "hook",
           "Share of tokens to keep from the next step on, 0 to 1."),
    # The hook worker.
    Metric("asysi_relay_latency_seconds", "histogram", (), "hook",
           "Seconds from the capture of a packet to its publication on the bus.", "", _LATENCIES),
    # The SAEs, read from the bus's control file.
    Metric("asysi_sae_loss", "gauge", ("point",), "sae",
           "Training loss.", "sae_loss"),
    Metric("asysi_sae_fvu", "gauge", ("point",), "sae",
           "Fraction of variance unexplained on held-out content tokens."),
    Metric("asysi_sae_l0", "gauge", ("point",), "sae",
           "Average number of latents that fire per token."),
    Metric("asysi_sae_dead_ratio", "gauge", ("point",), "sae",
           "Share of dead latents, 0 to 1."),
    Metric("asysi_sae_rows_trained", "gauge", ("point",), "sae",
           "Rows that the SAE has been trained on."),
    # The archiver.
    Metric("asysi_archive_records_total", "counter", ("kind",), "archiver",
           "Records written, by kind: metrics or tensor."),
    Metric("asysi_archive_bytes_total", "counter", (), "archiver",
           "Bytes written to the archive."),
    Metric("asysi_archive_retired_rows_total", "counter", (), "archiver",
           "Durable rows deleted with the oldest segments to keep to archive.maxSize."),
    Metric("asysi_archive_segments_total", "counter", (), "archiver",
           "Segments closed with their footer."),
    Metric("asysi_archive_uploaded_bytes_total", "counter", (), "archiver",
           "Bytes of segments that have reached the store of output.uri."),
    Metric("asysi_archive_upload_failures_total", "counter", (), "archiver",
           "Failed attempts to upload segments; they are repeated."),
)
"""Every metric, in the order of the documentation."""
# fmt: on

_BY_NAME = {metric.name: metric for metric in METRICS}


def describe(name: str, kind: Type) -> Metric:
    """Return the row of the table.

    Raises:
        KeyError: the table has no metric with this name and type.
    """
    metric = _BY_NAME.get(name)
    if metric is None or metric.type != kind:
        raise KeyError(f"the table of metrics has no {kind} {name}")
    return metric


def counter(registry: CollectorRegistry, name: str) -> Counter:
    """Create and register the counter `name` of the table; raises KeyError if there is none."""
    metric = describe(name, "counter")
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


def gauge(registry: CollectorRegistry, name: str) -> Gauge:
    """Create and register the gauge `name` of the table; raises KeyError if there is none."""
    metric = describe(name, "gauge")
    return Gauge(metric.name, metric.help, metric.labels, registry=registry)


def histogram(registry: CollectorRegistry, name: str) -> Histogram:
    """Create and register the histogram `name` of the table; raises KeyError if there is none."""
    metric = describe(name, "histogram")
    return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)


def counter_family(name: str) -> CounterMetricFamily:
    """Return an empty metric family for the counter `name`, to be filled by a collector."""
    metric = describe(name, "counter")
    return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)


def gauge_family(name: str) -> GaugeMetricFamily:
    """Return an empty metric family for the gauge `name`, to be filled by a collector."""
    metric = describe(name, "gauge")
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def summary_family(name: str) -> SummaryMetricFamily:
    """Return an empty metric family for the summary `name`, to be filled by a collector."""
    metric = describe(name, "summary")
    return SummaryMetricFamily(metric.name, metric.help, labels=metric.labels)


def render() -> str:
    """Return `docs/reference/metrics.md`: the table as Markdown."""
    head = (
        "# Metrics",
        "",
        "<!-- Made by `python -m asysi.monitor.metrics`; edit workers/asysi/monitor/metrics.py instead. -->",
        "",
        "Every container serves `/metrics`, `/livez`, `/readyz` and `/status` on its own port. Metrics from",
        "the control files of the rings (rows, drops, lag, the host's progress) are kept across restarts and",
        "served by `hook`. Each series is served by one container only, so that sums over a pod are",
        "correct.",
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
