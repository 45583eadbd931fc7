"""Exports the rings' control files as metrics, which are not reset by worker restarts."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from asysi.bus.accounts import read_accounts, total_consumed, total_produced
from asysi.bus.factory import create_data_bus
from asysi.bus.mailbox import CaptureWord, Gauge
from asysi.bus.states import DropReason, ReaderState
from asysi.bus.stream import StreamControl, StreamError
from asysi.contract.runtime import BUS_RING, CAPTURE_RING, Container
from asysi.contract.spec import Spec
from asysi.monitor.metrics import counter_family, gauge_family, summary_family

_SECOND = 1e-9
_COUNTED_WORDS = {
    "asysi_host_steps_total": (CaptureWord.STEPS, 1.0),
    "asysi_host_steps_dropped_total": (CaptureWord.STEPS_DROPPED, 1.0),
    "asysi_host_tokens_total": (CaptureWord.TOKENS, 1.0),
    "asysi_host_tokens_excluded_total": (CaptureWord.TOKENS_EXCLUDED, 1.0),
    "asysi_host_forward_seconds_total": (CaptureWord.FORWARD_NS, _SECOND),
    "asysi_capture_errors_total": (CaptureWord.CAPTURE_ERRORS, 1.0),
}
_GAUGED_WORDS = {
    "asysi_host_steps_expected": CaptureWord.STEPS_TOTAL,
    "asysi_host_tokens_expected": CaptureWord.TOKENS_TOTAL,
}
_SAE_GAUGES = {
    "asysi_sae_loss": Gauge.LOSS,
    "asysi_sae_fvu": Gauge.FVU,
    "asysi_sae_l0": Gauge.L0,
    "asysi_sae_dead_ratio": Gauge.DEAD,
    "asysi_sae_rows_trained": Gauge.TRAINED,
}


def collectors(container: Container, spec: Spec, shm: Path) -> list[Collector]:
    """Return the collectors of `container`: streams and host for hook, gauges for sae, none for others.

    In CONSUMER mode the host does the hook's work.
    """
    capture, bus = (partial(_control, spec, shm, stream) for stream in (CAPTURE_RING, BUS_RING))
    if container is (Container.HOOK if spec.mode == "HPC" else Container.HOST):
        return [HostCollector(capture), RingCollector({"capture": capture, "bus": bus})]
    if container is Container.SAE:
        return [Saes(bus)]
    return []


def _control(spec: Spec, shm: Path, stream: PurePosixPath) -> StreamControl:
    return create_data_bus(spec, shm, stream).control()


Opens = Callable[[], StreamControl]
"""Opens a stream; raises StreamError where there is none."""


class _Look(Collector):
    """Reads the counters of streams; missing or unreadable ones produce no metrics."""

    def __init__(self, streams: dict[str, Opens]) -> None:
        self._streams = streams
        self._controls: dict[str, StreamControl] = {}

    def _open(self) -> Iterator[tuple[str, StreamControl]]:
        for name, opens in self._streams.items():
            if name not in self._controls:
                try:
                    self._controls[name] = opens()
                except StreamError:
                    continue
            yield name, self._controls[name]


class HostCollector(_Look):
    """The host's progress, read from the mailbox of the capture ring."""

    def __init__(self, capture: Opens) -> None:
        super().__init__({"capture": capture})

    def collect(self) -> Iterable[Metric]:
        for _, control in self._open():
            for name, (word, unit) in _COUNTED_WORDS.items():
                counted = counter_family(name)
                counted.add_metric([], control.get(word) * unit)
                yield counted
            for name, gauged in _GAUGED_WORDS.items():
                family = gauge_family(name)
                family.add_metric([], control.get(gauged))
                yield family
            rate = gauge_family("asysi_sampling_rate")
            rate.add_metric([], control.get_float(CaptureWord.RATE))
            yield rate
            latency = summary_family("asysi_hook_latency_seconds")
            latency.add_metric(
                [], control.get(CaptureWord.STEPS), control.get(CaptureWord.CAPTURE_NS) * _SECOND
            )
            yield latency


class RingCollector(_Look):
    """Row counters of the rings: offered, published, dropped, and the counters of each consumer."""

    def collect(self) -> Iterable[Metric]:
        push, drop, seen, out, published, fate, restarts = (
            counter_family(f"asysi_{name}_total")
            for name in (
                "data_bus_push", "data_bus_drop", "rows_seen", "rows_sampled_out", "rows_published",
                "consumer_rows", "producer_restarts",
            )
        )  # fmt: skip
        lag, up = gauge_family("asysi_consumer_lag_ratio"), gauge_family("asysi_consumer_up")
        for ring, control in self._open():
            accounts = read_accounts(control)
            for point, made in accounts.produced.items():
                push.add_metric([ring, point], accounts.packets[point])
                seen.add_metric([ring, point], made.seen)
                out.add_metric([ring, point], made.sampled_out)
                published.add_metric([ring, point], made.published)
            dropped = total_produced(accounts.produced.values()).dropped
            for reason in DropReason:
                drop.add_metric([ring, reason.word], dropped.get(reason.word, 0))
            restarts.add_metric([ring], max(0, accounts.generation - 1))
            for name, consumer in accounts.consumers.items():
                used = total_consumed(consumer.consumed.values())
                for kind in ("durable", "lapped", "rolled_back"):
                    fate.add_metric([ring, name, kind], getattr(used, kind))
                lag.add_metric([ring, name], consumer.lag)
                up.add_metric([ring, name], float(consumer.state is ReaderState.ATTACHED))
        return push, drop, seen, out, published, fate, restarts, lag, up


class Saes(_Look):
    """Gauges of the SAE worker, read from the bus's control file."""

    def __init__(self, bus: Opens) -> None:
        super().__init__({"bus": bus})

    def collect(self) -> Iterable[Metric]:
        for _, control in self._open():
            gauges = read_accounts(control).consumers["sae"].gauges
            for name, slot in _SAE_GAUGES.items():
                family = gauge_family(name)
                for point, values in gauges.items():
                    family.add_metric([point], values[slot])
                yield family
