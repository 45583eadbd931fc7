"""Scores of gradients travel through the ring beside the rows they belong to."""

import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest

import asysi_ring
from asysi.bus.packet import (
    HEADER_DTYPE,
    ROW_DTYPE,
    ActivationPacket,
    Dtype,
    Kind,
    Quantization,
    parse_packet,
)
from asysi.bus.ring import CppShardedSPMCBus
from asysi_ring import create


@pytest.fixture
def bus():
    """A bus of one shard with one reader."""
    folder = Path("/dev/shm") / f"asysi-test-{uuid.uuid4().hex}"
    create(str(folder), shards=1, chunks=64, chunk_bytes=1 << 14, readers=["archiver"], policy="overwrite")
    yield CppShardedSPMCBus(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.FLOAT16])
def test_a_packet_of_floats_has_two_scores_a_row(bus, dtype):
    """They arrive bit for bit, in a packet of the newest version; without scores it is of an older."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 6)).astype(np.float32 if dtype is Dtype.FLOAT32 else np.float16)
    header = np.zeros(1, HEADER_DTYPE)
    header["kind"], header["width"], header["dtype"] = Kind.GRADIENT, 6, dtype
    header["loss_scale"], header["accumulated"], header["microbatch"], header["reduction"] = 8.0, 4, 3, 1
    scores = rng.normal(size=(5, 2)).astype(np.float32)
    with bus.producer() as producer, bus.consumer("archiver") as consumer:
        for beside in (scores, None):
            rows = np.zeros(5, ROW_DTYPE)
            packet = ActivationPacket(header[0], "h.0:gradient", rows, beside, values)
            assert producer.push(packet, quantization=Quantization.NONE)
        first, second = consumer.pull(4, 0)
        np.testing.assert_array_equal(first.scores, scores)
        np.testing.assert_array_equal(first.to_float32(), values.astype(np.float32))
        assert (int(first.header["version"]), int(second.header["version"])) == (asysi_ring.PACKET_VERSION, 2)
        assert second.scores is None
        names = ("loss_scale", "accumulated", "microbatch", "reduction")
        assert [float(first.header[name]) for name in names] == [8.0, 4, 3, 1]
        picked = first.select(slice(1, 3))
        np.testing.assert_array_equal(picked.scores, scores[1:3])
        del first, second, picked


def test_scores_of_another_number_are_refused(bus):
    """A table that does not hold two numbers a row is not a packet."""
    header = np.zeros(1, HEADER_DTYPE)
    header["width"] = 2
    values, rows = np.zeros((3, 2), np.float32), np.zeros(3, ROW_DTYPE)
    with bus.producer() as producer:
        packet = ActivationPacket(header[0], "p", rows, np.zeros((3, 3), np.float32), values)
        with pytest.raises(ValueError, match="scales"):
            producer.push(packet)
    with pytest.raises(ValueError, match="no packet"):
        parse_packet(memoryview(header.tobytes()), ["p"])
