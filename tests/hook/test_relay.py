"""The relay's account of packets that the bus refuses."""

import numpy as np
import pytest
from tests.bus.memory import MemoryBus, MemoryProducer

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype, Quantization
from asysi.bus.states import DropReason
from asysi.hook.relay import Relay

WIDTH, BLOCK = 16_384, 15
ROWS = 4 * BLOCK


class Refusing(MemoryProducer):
    """Refuses a push."""

    refused = -1
    pushes = 0

    def push(self, packet, **options):
        self.pushes += 1
        if self.pushes - 1 == self.refused:
            raise ValueError("no such conversion")
        return super().push(packet, **options)


def packet(sequence=1):
    """A captured packet that takes several blocks."""
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["sequence"], header["width"], header["rows"], header["dtype"] = (
        sequence,
        WIDTH,
        ROWS,
        Dtype.FLOAT32,
    )
    rows = np.zeros(ROWS, ROW_DTYPE)
    rows["sample"] = np.arange(ROWS)
    return ActivationPacket(header, "p", rows, None, np.ones((ROWS, WIDTH), np.float32))


@pytest.mark.parametrize("refused", [0, 1, 3])
def test_a_row_is_published_or_dropped_and_not_both(refused):
    """Where the bus refuses a later block, the rows of the blocks before it are not counted as dropped; a
    successor that is given the packet again counts none of its rows once more.
    """
    bus = MemoryBus(["sae"], depth=64)
    producer = Refusing(bus)
    producer.refused = refused
    relay = Relay(producer, Quantization.NONE, (), lambda _: None)
    relay.forward(packet())
    books = bus.table[bus.account("p")]
    assert producer.pushes == refused + 1
    assert books.seen == ROWS
    assert books.published + books.dropped[DropReason.ERROR] == ROWS
    assert books.published == BLOCK * refused
    Relay(MemoryProducer(bus), Quantization.NONE, (), lambda _: None).forward(packet())
    assert (books.seen, books.published) == (ROWS, BLOCK * refused)
