"""The operator's own metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

RECONCILES = Histogram(
    "asysi_operator_reconcile_seconds",
    "Duration of one reconcile of one experiment in seconds, including its writes.",
    registry=REGISTRY,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60),
)
ERRORS = Counter(
    "asysi_operator_reconcile_errors",
    "Failed reconciles, by reason.",
    ["reason"],
    registry=REGISTRY,
)
QUEUE = Gauge("asysi_operator_queue_depth", "Experiments waiting to be reconciled.", registry=REGISTRY)
WAITED = Histogram(
    "asysi_operator_queue_seconds",
    "Seconds that an experiment waited in the queue.",
    registry=REGISTRY,
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60),
)
REQUESTS = Counter(
    "asysi_operator_api_requests",
    "Requests to the API server, by verb, kind and status; `none` means no response.",
    ["verb", "kind", "code"],
    registry=REGISTRY,
)
SAID = Counter(
    "asysi_operator_status_writes",
    "Status writes: `counters` changed nothing but counters, `state` is everything else.",
    ["of"],
    registry=REGISTRY,
)
EXPERIMENTS = Gauge("asysi_operator_experiments", "Experiments by phase.", ["phase"], registry=REGISTRY)
EVENT_AGE = Gauge(
    "asysi_operator_last_event_timestamp_seconds",
    "Time of the last watch event, of any kind.",
    registry=REGISTRY,
)
AUDIT = Gauge(
    "asysi_operator_last_audit_timestamp_seconds",
    "Time of the last comparison of the watches' state with a listing.",
    registry=REGISTRY,
)
MISSED = Counter(
    "asysi_operator_missed_changes",
    "Changes that an audit found and no watch had reported.",
    ["kind"],
    registry=REGISTRY,
)
