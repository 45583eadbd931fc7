"""Metrics that come from the rings' control files."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from asysi.bus.mailbox import CaptureWord, Gauge
from asysi.bus.packet import HEADER_DTYPE, MAGIC, VERSION, Dtype
from asysi.contract.runtime import BUS_RING, CAPTURE_RING, Container
from asysi.contract.spec import Spec
from asysi.monitor.rings import collectors
from asysi_ring import Control, Reader, Writer, create

SPEC = Spec.model_validate(
    {"model": {"uri": "file://m"}, "workload": {"scan": {}}, "capture": {"hookPoints": ["*"]}}
)


@pytest.fixture
def shm(tmp_path):
    """Folder with both rings, one hook point, 7 rows published on each and 3 dropped."""
    (tmp_path / "capture").mkdir()
    shape = {"shards": 1, "chunks": 40, "chunk_bytes": 4096, "accounts": 4}
    create(str(tmp_path / CAPTURE_RING), readers=["hook"], policy="drop_new", **shape)
    create(str(tmp_path / BUS_RING), readers=["sae"], policy="overwrite", **shape)
    values = np.zeros((7, 8), np.float32)
    for ring in (CAPTURE_RING, BUS_RING):
        with Writer(str(tmp_path / ring)) as writer:
            header = np.zeros(1, HEADER_DTYPE)
            header["magic"], header["version"], header["width"] = MAGIC, VERSION, 8
            header["account"] = account = writer.account("layer.0")
            address = values.__array_interface__["data"][0]
            writer.publish_block(0, header, None, address, 32, None, 7, Dtype.FLOAT32, 0)
            writer.book(account, seen=5, sampled_out=2, dropped=3, reason=1)
    return tmp_path


def registry_of(container, shm):
    """Return a registry with what `container` shows of the rings."""
    registry = CollectorRegistry()
    for collector in collectors(container, SPEC, shm):
        registry.register(collector)
    return registry


def test_hook_shows_the_books_of_both_rings(shm):
    """Rows, packets, drops by reason, consumers' fates and lag are those of the control files."""
    with Reader(str(shm / BUS_RING), "sae") as reader:
        value = registry_of(Container.HOOK, shm).get_sample_value
        for ring in ("capture", "bus"):
            at = {"ring": ring, "point": "layer.0"}
            assert value("asysi_data_bus_push_total", at) == 1
            assert value("asysi_rows_seen_total", at) == 12
            assert value("asysi_rows_published_total", at) == 7
            assert value("asysi_rows_sampled_out_total", at) == 2
            assert value("asysi_data_bus_drop_total", {"ring": ring, "reason": "ring_full"}) == 3
            assert value("asysi_data_bus_drop_total", {"ring": ring, "reason": "crash"}) == 0
            assert value("asysi_producer_restarts_total", {"ring": ring}) == 0
        sae = {"ring": "bus", "consumer": "sae"}
        assert value("asysi_consumer_lag_ratio", sae) > 0
        assert value("asysi_consumer_up", sae) == 1
        [view] = reader.pull(1, 1.0)
        reader.consumed(view)
        view.release()
        reader.mark_durable()
        assert value("asysi_consumer_rows_total", {**sae, "fate": "durable"}) == 7
        assert value("asysi_consumer_lag_ratio", sae) == 0


def test_hook_shows_the_hosts_progress(shm):
    """Steps, tokens, rate and the time in hooks come from the capture ring's mailbox, in seconds."""
    with Control(str(shm / CAPTURE_RING)) as control:
        control.set(CaptureWord.STEPS, 40)
        control.set(CaptureWord.TOKENS_TOTAL, 9000)
        control.set(CaptureWord.CAPTURE_NS, 2_500_000_000)
        control.set_float(CaptureWord.RATE, 0.25)
    value = registry_of(Container.HOOK, shm).get_sample_value
    assert value("asysi_host_steps_total") == value("asysi_hook_latency_seconds_count") == 40
    assert value("asysi_host_tokens_expected") == 9000
    assert value("asysi_hook_latency_seconds_sum") == 2.5
    assert value("asysi_sampling_rate") == 0.25


def test_sae_shows_its_gauges(shm):
    """The gauges that the SAE worker keeps in the control file appear by hook point."""
    with Reader(str(shm / BUS_RING), "sae") as reader:
        for slot, number in ((Gauge.FVU, 0.25), (Gauge.L0, 32.0), (Gauge.DEAD, 0.5), (Gauge.LOSS, 2.0)):
            reader.gauge(0, slot, number)
    value = registry_of(Container.SAE, shm).get_sample_value
    names = ("asysi_sae_fvu", "asysi_sae_l0", "asysi_sae_dead_ratio", "asysi_sae_loss")
    assert [value(name, {"point": "layer.0"}) for name in names] == [0.25, 32.0, 0.5, 2.0]


@pytest.mark.parametrize("container", sorted(set(Container) - {Container.HOOK, Container.SAE}))
def test_no_series_is_shown_twice(container, shm):
    """The other containers show nothing of the rings: sums over a pod count everything once."""
    assert collectors(container, SPEC, shm) == []
