"""The pacer between real rings: what it reads and what it tells the host."""

import numpy as np
import pytest

from asysi.bus.mailbox import CaptureWord
from asysi.bus.packet import HEADER_DTYPE, MAGIC, VERSION, Dtype
from asysi.contract.runtime import BUS_RING, CAPTURE_RING
from asysi.hook.pacer import Pacer
from asysi.hook.rate import Limits
from asysi.hook.totals import read_totals
from asysi_ring import Control, Reader, Writer, create

LIMITS = Limits(most=0.8, least=0.05)
ROWS = 50


@pytest.fixture
def rings(tmp_path):
    """Controls of a capture ring and a bus with one shard, and the bus's producer."""
    (tmp_path / "capture").mkdir()
    shape = {"shards": 1, "chunks": 60, "chunk_bytes": 4096, "accounts": 4}
    create(str(tmp_path / CAPTURE_RING), readers=["hook"], policy="drop_new", **shape)
    create(str(tmp_path / BUS_RING), readers=["sae"], policy="overwrite", **shape)
    with (
        Control(str(tmp_path / CAPTURE_RING)) as capture,
        Control(str(tmp_path / BUS_RING)) as bus,
        Writer(str(tmp_path / CAPTURE_RING)) as host,
        Writer(str(tmp_path / BUS_RING)) as writer,
        Reader(str(tmp_path / CAPTURE_RING), "hook"),
    ):
        yield tmp_path, capture, bus, host, writer


def publish(writer, packets):
    """Publish packets of ROWS rows."""
    values = np.zeros((ROWS, 8), np.float32)
    header = np.zeros(1, HEADER_DTYPE)
    header["magic"], header["version"], header["width"] = MAGIC, VERSION, 8
    header["account"] = writer.account("layer.0")
    address = values.__array_interface__["data"][0]
    for _ in range(packets):
        writer.publish_block(0, header, None, address, 32, None, ROWS, Dtype.FLOAT32, 0)


def offer(host, rows):
    """Offer rows at the host, none of them kept: what it keeps does not matter here."""
    host.book(host.account("layer.0"), seen=rows, sampled_out=rows)


def read_all(reader):
    """Consume what is there."""
    while views := reader.pull(16, 0.0):
        for view in views:
            reader.consumed(view)
            view.release()


def test_the_rate_begins_at_the_specs_and_goes_on_after_a_restart(rings):
    """A first worker begins with the highest rate, a restarted one with the one that stands, in bounds."""
    _, capture, bus, *_ = rings
    for told, rate in ((0.0, 0.8), (0.3, 0.3), (1.0, 0.8), (0.01, 0.05)):
        capture.set_float(CaptureWord.RATE, told)
        Pacer(capture, bus, LIMITS, read_totals(capture, bus))
        assert capture.get_float(CaptureWord.RATE) == rate


def test_the_host_is_told_what_the_consumer_can_follow(rings):
    """A bus that fills unread brings the rate to the floor, reading brings it up, no offer leaves it."""
    folder, capture, bus, host, writer = rings
    with Reader(str(folder / BUS_RING), "sae") as reader:
        pacer = Pacer(capture, bus, LIMITS, read_totals(capture, bus))

        def rate_after(packets, offered):
            publish(writer, packets)
            offer(host, offered)
            pacer.observe()
            pacer.decide(read_totals(capture, bus))
            return capture.get_float(CaptureWord.RATE)

        assert rate_after(int(0.3 * bus.geometry()["depth"]), 10_000) == 0.8
        assert rate_after(int(0.5 * bus.geometry()["depth"]), 10_000) == 0.05
        read_all(reader)
        after_reading = [rate_after(0, 10) for _ in range(3)]
        assert after_reading[2] > 0.05
        assert rate_after(0, 0) == after_reading[2]


def test_books_count_by_shard_what_was_given_and_what_was_lapped(rings):
    """Consumed is the position less what was lapped, also for a reader that came too late."""
    folder, capture, bus, _, writer = rings
    depth = bus.geometry()["depth"]
    with Reader(str(folder / BUS_RING), "sae") as reader:
        publish(writer, 3 * depth)
        read_all(reader)
        totals = read_totals(capture, bus).bus
        sae = totals.consumers["sae"]
        assert totals.published == [3 * depth * ROWS]
        assert sae.position == totals.published
        assert 0 < sae.lapped < 3 * depth * ROWS
        assert sae.consumed == [3 * depth * ROWS - sae.lapped]
        assert sae.state == "attached"
    assert read_totals(capture, bus).bus.consumers["sae"].state == "gone"


def test_a_consumer_that_returned_is_loading_until_it_reads(rings):
    """A reader that was gone and is attached again does not lower the rate before it has read anything."""
    folder, capture, bus, host, writer = rings
    pacer = Pacer(capture, bus, LIMITS, read_totals(capture, bus))
    depth = bus.geometry()["depth"]

    def decide():
        offer(host, 4 * ROWS)
        pacer.observe()
        pacer.decide(read_totals(capture, bus))
        return capture.get_float(CaptureWord.RATE)

    with Reader(str(folder / BUS_RING), "sae") as reader:
        for _ in range(4):
            publish(writer, 2)
            read_all(reader)
            steady = decide()
    publish(writer, depth // 2)
    gone = [decide() for _ in range(3)]
    with Reader(str(folder / BUS_RING), "sae") as reader:
        loading = [decide() for _ in range(5)]
        read_all(reader)
        back = decide()
    assert min(steady, *gone, *loading, back) > 0.1


def test_the_time_before_the_first_row_is_no_pace(rings):
    """While the host loads its model nothing is offered, and the first rows set no rate by that time."""
    _, capture, bus, host, _ = rings
    pacer = Pacer(capture, bus, LIMITS, read_totals(capture, bus))
    pacer.decide(read_totals(capture, bus))
    offer(host, 100)
    pacer.decide(read_totals(capture, bus))
    assert pacer.pace.offered is None
    offer(host, 100)
    pacer.decide(read_totals(capture, bus))
    assert pacer.pace.offered > 0
