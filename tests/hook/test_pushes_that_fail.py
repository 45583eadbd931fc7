"""Backpressure where the bus has queues: a push that fails lowers the sampling rate, and it recovers."""

from pathlib import PurePosixPath

import numpy as np
import pytest

from asysi.bus.mailbox import CaptureWord
from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype
from asysi.bus.plan import StreamPlan
from asysi.bus.queue import PythonQueueBus
from asysi.bus.queue_server import QueueHub
from asysi.hook.pacer import Pacer
from asysi.hook.rate import Limits
from asysi.hook.totals import HOOK, read_totals

DEPTH, ROWS = 16, 10


def packet():
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["width"], header["dtype"] = 4, Dtype.FLOAT32
    return ActivationPacket(
        header, "layer.0", np.zeros(ROWS, ROW_DTYPE), None, np.zeros((ROWS, 4), np.float32)
    )


def test_a_full_queue_lowers_the_rate_and_an_empty_one_raises_it(monkeypatch):
    """Down to the spec's minimum while the consumer stands still, as in HPC mode, and back once it reads."""
    hub, now = QueueHub(), [0.0]
    monkeypatch.setattr("asysi.hook.totals.time.monotonic", lambda: now[0])
    capture, bus = PythonQueueBus(hub, "capture"), PythonQueueBus(hub, "bus")
    for stream, reader in ((capture, HOOK), (bus, "sae")):
        stream.create(StreamPlan(PurePosixPath("x"), 1, DEPTH, 1 << 16, (reader,), 0, "drop_new"))
    host, producer, consumer = capture.producer(), bus.producer(), bus.consumer("sae")
    seen, sent = capture.control(), bus.control()
    pacer = Pacer(seen, sent, Limits(most=1.0, least=0.05), read_totals(seen, sent))

    def second(packets, reading):
        now[0] += 0.25
        host.channel("layer.0").book(seen=packets * ROWS, sampled_out=packets * ROWS)
        pushed = [producer.push(packet()) for _ in range(packets)]
        pacer.observe()
        if reading:
            consumer.pull(DEPTH, 0.0)
            consumer.pull(1, 0.0)
            consumer.acknowledge()
        pacer.decide(read_totals(seen, sent))
        return all(pushed)

    assert all(second(4, reading=True) for _ in range(8))
    assert pacer.pace.rate == 1.0
    failed = [not second(4, reading=False) for _ in range(60)]
    assert any(failed)
    assert pacer.pace.rate == seen.get_float(CaptureWord.RATE) == pytest.approx(0.05)
    dropped = sent.produced()[0]["dropped"]
    assert 0 < sum(dropped) <= sum(failed) * 4 * ROWS
    for _ in range(60):
        second(1, reading=True)
    assert pacer.pace.rate == 1.0
