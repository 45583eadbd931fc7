"""The ring as a DataBus."""

import numpy as np
import pytest

from asysi.bus.bus import CppShardedSPMCBus, DataBus, shard_of
from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype
from asysi_ring import Control


def packet(point: str, value: int, dtype: Dtype = Dtype.FLOAT32) -> ActivationPacket:
    """A packet of 2 rows × 4, all elements `value`."""
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["width"], header["dtype"], header["step"] = 4, dtype, value
    payload = np.full((2, 4), value, np.int8 if dtype is Dtype.INT8 else np.float32)
    scales = np.array([0.5, 2], np.float32) if dtype is Dtype.INT8 else None
    return ActivationPacket(header, point, np.zeros(2, ROW_DTYPE), scales, payload)


@pytest.fixture
def ends(make_ring):
    """A producer's and a consumer's bus over one ring of two shards."""
    ring = make_ring(shards=2, chunks=40, pins=16)
    with CppShardedSPMCBus(ring.folder) as producer, CppShardedSPMCBus(ring.folder, "r") as consumer:
        yield ring, producer, consumer


def test_packets_travel_whole(ends):
    """What was pushed is pulled: point, header, rows, scales and payload; points may join at any time."""
    _, producer, consumer = ends
    bus: DataBus = producer
    for number, point in enumerate(["a", "b", "a"]):
        assert bus.push(packet(point, number))
    pulled = {int(p.header["step"]): p for p in consumer.pull_batch(8, 1)}
    assert {step: p.point for step, p in pulled.items()} == {0: "a", 1: "b", 2: "a"}
    del pulled
    assert producer.push(packet("new", 3, Dtype.INT8))
    (late,) = consumer.pull_batch(8, 1)
    assert late.point == "new"
    np.testing.assert_array_equal(late.to_float32(), [[1.5] * 4, [6.0] * 4])


def test_a_point_has_one_shard_everywhere():
    """The shard depends on the name alone, not on the process."""
    assert [shard_of(f"encoder.layer.{i}.output", 4) for i in range(6)] == [0, 2, 1, 3, 2, 0]
    assert {shard_of(f"layer.{i}", 4) for i in range(32)} == {0, 1, 2, 3}


def test_a_batch_is_consumed_by_the_next_call(ends):
    """Packets are valid, and unread for the books, until the bus is asked again or closed."""
    ring, producer, consumer = ends
    producer.push(packet("a", 7))
    (held,) = consumer.pull_batch(8, 1)
    assert ring.consumed("r")["position"] == 0
    assert consumer.lag() > 0
    assert held.payload[0, 0] == 7
    assert consumer.pull_batch(8, 0) == []
    assert ring.consumed("r")["position"] == 2
    assert consumer.lag() == producer.lag() == 0


def test_a_caller_that_still_holds_its_last_batch_is_not_starved(ends):
    """Every packet arrives, although each batch is kept until the next is there."""
    _, producer, consumer = ends
    seen: list[int] = []
    batch: list[ActivationPacket] = []
    for number in range(300):
        producer.push(packet("a", number))
        if number % 5 == 4:
            batch = consumer.pull_batch(64, 60)
            seen += [int(p.header["step"]) for p in batch]
    assert len(batch) == 5
    assert seen == list(range(300))


def test_commit_declares_durable_what_was_handed_out(ends):
    """Without a number everything; with one, only when all that was consumed is within it."""
    ring, producer, consumer = ends
    for number in range(4):
        producer.push(packet("a", number))
    assert len(consumer.pull_batch(2, 1)) == 2
    consumer.commit(1)
    assert ring.consumed("r") == {"position": 2, "durable": 2, "lapped": 0, "rolled_back": 0}
    assert len(consumer.pull_batch(2, 1)) == 2
    consumer.commit(1)
    assert ring.consumed("r") == {"position": 4, "durable": 2, "lapped": 0, "rolled_back": 0}
    consumer.commit()
    assert ring.consumed("r")["durable"] == 8
    ring.balance("r")


def test_leaving_consumes_what_was_handed_out(make_ring):
    """close() books the last batch and frees the place for another."""
    ring = make_ring()
    with CppShardedSPMCBus(ring.folder) as producer:
        producer.push(packet("a", 1))
        with CppShardedSPMCBus(ring.folder, "r") as consumer:
            consumer.pull_batch(1, 1)
        with CppShardedSPMCBus(ring.folder, "r") as consumer:
            assert consumer.pull_batch(1, 0) == []
    with Control(ring.folder) as control:
        assert control.writer_state() == control.reader_state("r") == "gone"
    assert ring.consumed("r")["position"] == 2
