"""The ring as a bus."""

import re
from pathlib import Path

import numpy as np
import pytest

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype
from asysi.bus.ring import CppShardedSPMCBus
from asysi.bus.stream import StreamError, shard_of
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
    """Both ends of the bus over one ring of two shards."""
    ring = make_ring(shards=2, chunks=40, pins=16)
    bus = CppShardedSPMCBus(ring.folder)
    with bus.producer() as producer, bus.consumer("r") as consumer:
        yield ring, producer, consumer


def test_packets_travel_whole(ends):
    """What was pushed is pulled: point, header, rows, scales and payload; points may join at any time."""
    _, producer, consumer = ends
    for number, point in enumerate(["a", "b", "a"]):
        assert producer.push(packet(point, number))
    pulled = {int(p.header["step"]): p for p in consumer.pull(8, 1)}
    assert {step: p.point for step, p in pulled.items()} == {0: "a", 1: "b", 2: "a"}
    assert {p.shard for p in pulled.values()} <= {0, 1}
    del pulled
    assert producer.push(packet("new", 3, Dtype.INT8))
    (late,) = consumer.pull(8, 1)
    assert (late.point, late.shard) == ("new", shard_of("new", 2))
    np.testing.assert_array_equal(late.to_float32(), [[1.5] * 4, [6.0] * 4])


def test_a_point_has_one_shard_everywhere():
    """The shard depends on the name alone, not on the process."""
    assert [shard_of(f"encoder.layer.{i}.output", 4) for i in range(6)] == [0, 2, 1, 3, 2, 0]
    assert {shard_of(f"layer.{i}", 4) for i in range(32)} == {0, 1, 2, 3}


def test_a_packet_is_a_view(ends):
    """Nothing is copied on the way out: the arrays of a packet lie in the ring and cannot be written."""
    _, producer, consumer = ends
    producer.push(packet("a", 7))
    (held,) = consumer.pull(8, 1)
    for array in (held.rows, held.payload):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_a_batch_is_consumed_by_the_next_call(ends):
    """Packets are valid, and unread for the books, until they are taken or the bus is asked again."""
    ring, producer, consumer = ends
    producer.push(packet("a", 7))
    (held,) = consumer.pull(8, 1)
    assert ring.consumed("r")["position"] == 0
    assert consumer.lag() > 0
    assert held.payload[0, 0] == 7
    assert consumer.pull(8, 0) == []
    assert ring.consumed("r")["position"] == 2
    assert consumer.lag() == 0


def test_a_caller_that_still_holds_its_last_batch_is_not_starved(ends):
    """Every packet arrives, although each batch is kept until the next is there."""
    _, producer, consumer = ends
    seen: list[int] = []
    batch: list[ActivationPacket] = []
    for number in range(300):
        producer.push(packet("a", number))
        if number % 5 == 4:
            batch = consumer.pull(64, 60)
            seen += [int(p.header["step"]) for p in batch]
    assert len(batch) == 5
    assert seen == list(range(300))


def test_acknowledged_is_what_was_taken(ends):
    """Durable is what was taken, one by one or by the next pull; what was only handed out is not."""
    ring, producer, consumer = ends
    for number in range(4):
        producer.push(packet("a", number))
    assert len(consumer.pull(2, 1)) == 2
    consumer.take()
    consumer.acknowledge()
    assert ring.consumed("r") == {"position": 2, "durable": 2, "lapped": 0, "rolled_back": 0}
    assert len(consumer.pull(2, 1)) == 2
    assert ring.consumed("r") == {"position": 4, "durable": 2, "lapped": 0, "rolled_back": 0}
    consumer.take()
    consumer.take()
    consumer.acknowledge()
    assert ring.consumed("r")["durable"] == 8
    ring.balance("r")


def test_what_is_acknowledged_and_let_go_is_free(make_ring):
    """A chunk that nobody holds is given back by `acknowledge`, not only by the next pull."""
    ring = make_ring(chunks=8, pins=4)
    bus = CppShardedSPMCBus(ring.folder)
    with bus.producer() as producer, bus.consumer("r") as consumer, bus.control() as control:
        producer.push(packet("a", 1))
        producer.push(packet("a", 2))
        batch = consumer.pull(2, 1)
        batch.pop(0)
        consumer.take()
        consumer.acknowledge()
        assert sum(control.pins("r")) == 1
        consumer.take()
        consumer.acknowledge()
        assert sum(control.pins("r")) == 1, "the array in `batch` still holds its chunk"
        batch.clear()
        assert sum(control.pins("r")) == 0


def test_leaving_takes_nothing(make_ring):
    """close() frees the place for another, who is handed what this one had not taken."""
    ring = make_ring(chunks=10, pins=4)
    bus = CppShardedSPMCBus(ring.folder)
    with bus.producer() as producer:
        producer.push(packet("a", 1))
        producer.push(packet("a", 2))
        with bus.consumer("r") as consumer:
            assert len(consumer.pull(2, 1)) == 2
            consumer.take()
        with bus.consumer("r") as consumer:
            assert [int(p.header["step"]) for p in consumer.pull(2, 1)] == [2]
    with Control(ring.folder) as control:
        assert control.writer_state() == control.reader_state("r") == "gone"
    assert ring.consumed("r")["position"] == 2


def test_a_damaged_packet_is_refused_alone(make_ring):
    """A packet whose bytes were overwritten is not handed out, and lapped; those around it arrive."""
    ring = make_ring(chunks=16, pins=8)
    bus = CppShardedSPMCBus(ring.folder)
    with bus.producer() as producer, bus.consumer("r") as consumer:
        for number in range(4):
            producer.push(packet("a", number))
        data = (Path(ring.folder) / "data").read_bytes()
        second = [at.start() for at in re.finditer(rb"ASPK", data)][1]
        with (Path(ring.folder) / "data").open("r+b") as file:
            file.seek(second + HEADER_DTYPE.fields["dtype"][1])
            file.write(b"\x63\x00")
        assert [int(p.header["step"]) for p in consumer.pull(4, 1)] == [0, 2, 3]
        assert consumer.pull(4, 0) == []
        consumer.acknowledge()
    assert ring.consumed("r") == {"position": 8, "durable": 6, "lapped": 2, "rolled_back": 0}


def test_a_folder_without_a_ring_is_named(tmp_path):
    """Whoever attaches where no ring is gets one kind of error, and it names the folder."""
    bus = CppShardedSPMCBus(tmp_path / "nothing")
    for attach in (bus.producer, lambda: bus.consumer("r"), bus.control):
        with pytest.raises(StreamError, match="nothing"):
            attach()
