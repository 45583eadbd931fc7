"""The same bytes mean the same in C++ and in Python."""

from hypothesis import given
from hypothesis import strategies as st

import asysi_ring
from asysi.bus.packet import (
    HEADER_BYTES,
    HEADER_DTYPE,
    PAYLOAD_ALIGNMENT,
    ROW_DTYPE,
    VERSION,
    payload_at,
    rows_that_fit,
)
from asysi.bus.states import DropReason


def test_packet_header_is_laid_out_alike_in_cpp_and_numpy():
    """Every field of the packet's header has one name, offset and size."""
    fields = [
        (name, HEADER_DTYPE.fields[name][1], HEADER_DTYPE.fields[name][0].itemsize)
        for name in HEADER_DTYPE.names
    ]
    assert asysi_ring.header_layout() == fields
    assert asysi_ring.HEADER_BYTES == HEADER_BYTES == HEADER_DTYPE.itemsize


@given(st.integers(0, 100_000), st.sampled_from([0, 4]))
def test_the_payload_begins_at_the_same_place_in_cpp_and_python(rows, scale):
    """At the first multiple of 64 bytes behind records and scales."""
    at = payload_at(rows, rows * scale)
    assert asysi_ring.payload_at(rows, rows * scale) == at
    assert at % PAYLOAD_ALIGNMENT == 0
    assert 0 <= at - (HEADER_BYTES + rows * (ROW_DTYPE.itemsize + scale)) < PAYLOAD_ALIGNMENT
    assert asysi_ring.PACKET_VERSION == VERSION


@given(st.integers(4, 20_000).map(lambda n: n * 64), st.integers(1, 20_000), st.sampled_from([0, 4]))
def test_as_many_rows_fit_as_can(chunk, row, scale):
    """So many rows fill a chunk, and one more is too many."""
    rows = rows_that_fit(chunk, row, scale)
    assert rows == 0 or payload_at(rows, rows * scale) + rows * row <= chunk
    assert payload_at(rows + 1, (rows + 1) * scale) + (rows + 1) * row > chunk


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
    assert len(DropReason) == asysi_ring.MAX_REASONS
    assert [DropReason(number).word for number in (0, 1, 3)] == ["crash", "ring_full", "no_chunk"]
