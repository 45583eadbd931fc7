"""The same bytes mean the same in C++ and in Python."""

import asysi_ring
from asysi.bus.mailbox import DROP_REASONS
from asysi.bus.packet import HEADER_BYTES, HEADER_DTYPE


def test_packet_header_is_laid_out_alike_in_cpp_and_numpy():
    """Every field of the packet's header has one name, offset and size."""
    fields = [
        (name, HEADER_DTYPE.fields[name][1], HEADER_DTYPE.fields[name][0].itemsize)
        for name in HEADER_DTYPE.names
    ]
    assert asysi_ring.header_layout() == fields
    assert asysi_ring.HEADER_BYTES == HEADER_BYTES == HEADER_DTYPE.itemsize


def test_control_header_has_no_holes():
    """Fields of the control file follow each other, each at a multiple of its size: no compiler moves one."""
    layout = asysi_ring.control_layout()
    end = 0
    for name, offset, size in layout:
        assert offset == end, name
        assert name == "reader_names" or offset % size == 0
        end = offset + size
    assert layout[0][0] == "magic"


def test_every_drop_reason_has_a_name():
    """The ring books as many reasons as the mailbox names."""
    assert len(DROP_REASONS) == asysi_ring.MAX_REASONS
    assert [DROP_REASONS[number] for number in (0, 1, 3)] == ["crash", "ring_full", "no_chunk"]
